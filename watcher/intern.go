// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"strings"
	"sync"

	"shunt/lb"
)

// interned is the maximum number of distinct values in an interner. A full interner is
// emptied; a value may then be in memory twice.
const interned = 1 << 16

// interner retains one copy of equal strings and of equal hints: 100,000 endpoints name a
// few thousand nodes, a few dozen ports and a handful of zones. The zero value is ready to
// use. It is safe for concurrent use.
type interner struct {
	mu      sync.Mutex
	strings map[string]string
	hints   map[string]*lb.Hints
	key     []byte // scratch for the key of hints
}

// string returns the interned copy of s. The copy shares no memory with s, which may be a
// substring of a large text.
func (t *interner) string(s string) string {
	if s == "" {
		return ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stringLocked(s)
}

func (t *interner) stringLocked(s string) string {
	if kept, ok := t.strings[s]; ok {
		return kept
	}
	if t.strings == nil || len(t.strings) >= interned {
		t.strings = make(map[string]string)
	}
	s = strings.Clone(s)
	t.strings[s] = s
	return s
}

// hintSet returns the interned hints for these nodes and zones, nil if both are empty. The
// caller must not change the result.
func (t *interner) hintSet(nodes, zones []string) *lb.Hints {
	if len(nodes) == 0 && len(zones) == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.key = t.key[:0]
	for _, n := range nodes {
		t.key = append(append(t.key, n...), 0)
	}
	t.key = append(t.key, 0) // an empty name ends the nodes: no name is empty
	for _, z := range zones {
		t.key = append(append(t.key, z...), 0)
	}
	if kept, ok := t.hints[string(t.key)]; ok {
		return kept
	}
	if t.hints == nil || len(t.hints) >= interned {
		t.hints = make(map[string]*lb.Hints)
	}
	kept := &lb.Hints{Nodes: t.copyLocked(nodes), Zones: t.copyLocked(zones)}
	t.hints[string(t.key)] = kept
	return kept
}

func (t *interner) copyLocked(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = t.stringLocked(s)
	}
	return out
}
