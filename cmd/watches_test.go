// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"shunt/health"
	"shunt/maps"
	"shunt/maps/mapstest"
)

// TestWatchErrorsFit checks that the state of the watches is stored whatever their errors contain.
func TestWatchErrorsFit(t *testing.T) {
	root := mapstest.BPFFS(t)
	memory, err := maps.OpenMemory(root)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	for _, c := range []string{"a", "\"", "<", "\x01", "é", "\xff<"} {
		state := make([]health.Watch, 5)
		for i := range state {
			state[i] = health.Watch{Resource: "endpointslices", LastEvent: time.Now(), FailingSince: time.Now(), Error: strings.Repeat(c, 1000)}
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		d := &daemon{memory: memory, log: zap.NewNop()}
		if err := d.keepWatches(ended, func() []health.Watch { return state }); err != nil {
			t.Fatal(err)
		}
		got := readWatches(root).Watches
		if len(got) != len(state) || got[4].Error == "" || !strings.HasSuffix(got[4].Error, "…") {
			t.Errorf("with errors of %q: stored are %+v", c, got)
			continue
		}
		text, err := json.Marshal(got[4].Error)
		if err != nil || len(text)-2 > watchErrorText || len(text)-2 < watchErrorText-10 {
			t.Errorf("with errors of %q: %d bytes of JSON are stored, want at most %d (%v)", c, len(text)-2, watchErrorText, err)
		}
		if err := memory.Put(maps.MemoryWatches, watchReport{}); err != nil {
			t.Fatal(err)
		}
	}
}
