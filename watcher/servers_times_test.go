// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"
	"testing"
	"time"
)

// TestAddressesAreForgotten checks that Servers remembers the latest failures and answers of a
// bounded number of addresses.
func TestAddressesAreForgotten(t *testing.T) {
	s := NewServers(ServersOptions{})
	for i := range 20 * mostTimes {
		s.wayProven("192.0.2.1:443", fmt.Sprintf("10.0.%d.%d:6443", i>>8, i&255))
		s.wayFailed(fmt.Sprintf("10.1.%d.%d:6443", i>>8, i&255), time.Now())
	}
	if len(s.failed) != mostTimes || len(s.proven) != mostTimes {
		t.Errorf("%d failures and %d answers are remembered, want %d", len(s.failed), len(s.proven), mostTimes)
	}
	last := 20*mostTimes - 1
	for _, address := range []string{fmt.Sprintf("10.1.%d.%d:6443", last>>8, last&255), "10.1.9.255:6443"} {
		if s.failed[address].IsZero() {
			t.Errorf("the latest failure of %s is forgotten: %v", address, s.failed)
		}
	}
}
