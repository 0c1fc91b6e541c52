// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// A scenario file is text in sections, each after a line "-- KIND: comment --".
// What comes before the first says what it is about. In the order of the file:
//
//	node      YAML of this node's Node
//	addresses the addresses of this node's interfaces, one a line
//	apply     YAML documents: Services and EndpointSlices that are made or replaced
//	delete    lines "Service NAMESPACE/NAME" or "EndpointSlice NAMESPACE/NAME"
//	warnings  what was said of the objects applied since the last maps
//	maps      what the maps hold then (maps.Dump.Text)
//
// go test -update writes the sections warnings and maps: read the difference.
type section struct {
	kind, title, text string
}

// readFile cuts a scenario into what it is about and its sections.
func readFile(t *testing.T, path string) (about string, sections []section) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if title, is := strings.CutPrefix(line, "-- "); is {
			title, closed := strings.CutSuffix(strings.TrimSpace(title), " --")
			kind, _, _ := strings.Cut(title, ":")
			if !closed {
				t.Fatalf("%s: the line %q is no head of a section", path, line)
			}
			sections = append(sections, section{kind: kind, title: title})
			continue
		}
		if len(sections) == 0 {
			about += line
			continue
		}
		sections[len(sections)-1].text += line
	}
	return about, sections
}

func writeFile(t *testing.T, path, about string, sections []section) {
	t.Helper()
	var b strings.Builder
	b.WriteString(about)
	for _, s := range sections {
		fmt.Fprintf(&b, "-- %s --\n%s", s.title, s.text)
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}
