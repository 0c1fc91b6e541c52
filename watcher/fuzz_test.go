// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"testing"

	"shunt/lb"
)

// FuzzManifest reads any bytes as a manifest file: nothing crashes, every model keeps the
// invariants, and every failure has a text. Its corpus is in testdata/fuzz/FuzzManifest.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(docs(serviceDoc("web", "10.96.0.1"), sliceDoc("web-1", "web", "10.1.0.1"))))
	f.Add([]byte(`{"apiVersion":"v1","kind":"List","items":[null,{"apiVersion":"v1","kind":"List","items":[{}]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c Converter
		index, line := 0, 0
		for _, d := range splitDocuments(data) {
			if d.index != index+1 || d.line < line {
				t.Fatalf("document %d at line %d follows %d at line %d", d.index, d.line, index, line)
			}
			index, line = d.index, d.line
			p := c.parse(d)
			for _, fail := range p.failures {
				if fail.err == nil || fail.err.Error() == "" {
					t.Fatal("a failure says nothing")
				}
			}
			for _, o := range p.objects {
				if err := checkModel(o.model); err != nil {
					t.Fatalf("%s: %v", o.key, err)
				}
				for _, w := range o.warnings {
					if w.Kind == "" || w.Problem == "" {
						t.Fatalf("a warning says nothing: %+v", w)
					}
				}
			}
		}
	})
}

func checkModel(m any) error {
	switch m := m.(type) {
	case *lb.Service:
		return checkService(m)
	case *lb.EndpointSlice:
		return checkSlice(m)
	case *lb.Node:
		return checkNode(m)
	}
	return nil
}
