// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// A scenario file is text in sections, each after a line "-- KIND: comment --".
// The text before the first one is the introduction. In the order of the file:
//
//	node      YAML of this node's Node
//	addresses the addresses of this node's interfaces, one a line
//	apply     YAML documents: Services and EndpointSlices to create or replace
//	delete    lines "Service NAMESPACE/NAME" or "EndpointSlice NAMESPACE/NAME"
//	warnings  the warnings about objects applied since the last maps
//	maps      the content of the maps then (maps.Dump.Text)
//
// go test -update writes the sections warnings and maps: review the difference.
type section struct {
	kind, title, text string
}

// readFile splits a scenario into its introduction and its sections.
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
