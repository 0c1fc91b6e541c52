// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bufio"
	"bytes"
	"encoding/json"
	"strings"
	"sync"
)

// LogText is what a daemon has logged.
type LogText struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write appends.
func (l *LogText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// Reset forgets all.
func (l *LogText) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Reset()
}

// String gives all of it.
func (l *LogText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Tail gives the last lines.
func (l *LogText) Tail(lines int) string {
	all := strings.Split(strings.TrimSpace(l.String()), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Find gives the fields of the first line with that message, nil: there is none.
func (l *LogText) Find(message string) map[string]any {
	lines := bufio.NewScanner(strings.NewReader(l.String()))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var fields map[string]any
		if json.Unmarshal(lines.Bytes(), &fields) == nil && fields["msg"] == message {
			return fields
		}
	}
	return nil
}
