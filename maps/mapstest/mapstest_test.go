// SPDX-License-Identifier: Apache-2.0

package mapstest

import (
	"os"
	"testing"

	"shunt/maps"
)

// Two file systems are separate, and what is pinned in one can be opened again.
func TestBPFFS(t *testing.T) {
	sizes := maps.Sizes{Services: 16, Slots: 16, Backends: 16, Affinity: 16, Sources: 16, Flows: 16}
	a, b := BPFFS(t), BPFFS(t)
	if _, r := Open(t, a, sizes); r.Adopted {
		t.Error("maps found in a new file system")
	}
	if _, r := Open(t, a, sizes); !r.Adopted {
		t.Error("pinned maps not found again")
	}
	if _, r := Open(t, b, sizes); r.Adopted {
		t.Error("one file system's maps found in another")
	}
	if _, err := os.Stat(a + "/maps/services"); err != nil {
		t.Error(err)
	}
}
