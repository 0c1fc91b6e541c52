// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"encoding/json"
	"errors"
	"fmt"
	stdmaps "maps"
	"slices"
	"strconv"

	kjson "sigs.k8s.io/json"
)

// decode decodes data into the API object into, and reports whether that succeeded. A field
// that the API does not define becomes a warning. A value that can't be decoded becomes a
// failure that names the field.
func (p *parsed) decode(o *object, data []byte, into any, fresh func() any) bool {
	if o.key.name == "" {
		p.failures = append(p.failures, failure{err: fmt.Errorf("%s: metadata.name: is missing", o.key.kind)})
		return false
	}
	strict, err := kjson.UnmarshalStrict(data, into)
	if err != nil {
		if field := locate(data, func(d []byte) error { return kjson.UnmarshalCaseSensitivePreserveInts(d, fresh()) }); field != "" {
			err = fmt.Errorf("%s: %w", field, err)
		}
		p.failures = append(p.failures, failure{key: o.key, err: err})
		return false
	}
	for _, e := range strict {
		var fe kjson.FieldError
		if errors.As(e, &fe) {
			o.warn(fe.FieldPath(), "%s: ignored", e)
		} else {
			o.warn("", "%s: ignored", e)
		}
	}
	return true
}

// locateTries bounds how often locate decodes one object.
const locateTries = 2000

// locate returns the path of the field on which decode fails, "" if it can't be found.
// The decoder's own message often has the field's type, but not its index in a list.
// locate sets one value after another to null and decodes again: if decoding succeeds, the
// fault is in the value that was set to null.
func locate(data []byte, decode func([]byte) error) string {
	var root any
	if json.Unmarshal(data, &root) != nil {
		return ""
	}
	tries := 0
	helps := func() bool {
		tries++
		d, err := json.Marshal(root)
		return tries <= locateTries && err == nil && decode(d) == nil
	}
	found, node := "", root
	for {
		step, child := blankChild(node, helps)
		if step == "" {
			break
		}
		found, node = found+step, child
	}
	if found != "" && found[0] == '.' {
		found = found[1:]
	}
	return found
}

// blankChild finds the child of a node that makes decoding succeed when it is set to null. It
// returns the child's step in the field path and the child; "" if there is none.
func blankChild(node any, helps func() bool) (string, any) {
	switch n := node.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(stdmaps.Keys(n)) {
			was := n[key]
			n[key] = nil
			ok := was != nil && helps()
			n[key] = was
			if ok {
				return "." + key, was
			}
		}
	case []any:
		for i, was := range n {
			n[i] = nil
			ok := was != nil && helps()
			n[i] = was
			if ok {
				return "[" + strconv.Itoa(i) + "]", was
			}
		}
	}
	return "", nil
}
