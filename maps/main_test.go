// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"shunt/maps"
)

// TestMain fails if a test, or an error path in one, left a map open.
func TestMain(m *testing.M) {
	code := m.Run()
	if n := openMaps(); n != 0 && code == 0 {
		fmt.Fprintf(os.Stderr, "FAIL: %d file descriptors of maps are still open\n", n)
		code = 1
	}
	os.Exit(code)
}

// openMaps returns how many file descriptors of maps this process has.
func openMaps() int {
	links, _ := filepath.Glob("/proc/self/fd/*")
	n := 0
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasSuffix(to, "bpf-map") {
			n++
		}
	}
	return n
}

// mappings returns how many memory mappings of maps this process has.
func mappings(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), "bpf-map")
}

// small are sizes that are enough for every test here.
var small = maps.Sizes{Services: 16, Slots: 32, Backends: 16, Affinity: 16, Sources: 16, Flows: 16}
