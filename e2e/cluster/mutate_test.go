// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"encoding/json"
	stdmaps "maps"
	"math/rand/v2"
	"slices"
	"strings"
)

// odd are the values of mutations: ends of ranges, wrong types, addresses that must not be
// programmed, and others that may be.
var odd = []any{
	nil, "", 0, -1, 1, 80, 65535, 65536, 1 << 31, 1.5, true, false, "x", "None", "Local", "ClientIP", "Proxy", "VIP", "SCTP", "UDP", "TCP",
	"IPv4", "IPv6", "FQDN", "ExternalName", "ClusterIP", "LoadBalancer", "NodePort", "RequireDualStack", "SingleStack",
	"198.51.100.77", "fd00:198:51:100::77", "10.250.0.1", "fd00:250::1", "0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.1", "ff02::1",
	"fe80::1", "169.254.1.1", "255.255.255.255", "::ffff:10.250.0.1", "010.001.000.001", "10.250.0", "10.250.0.256",
	"0.0.0.0/0", "::/0", "10.0.0.0/33", " 10.0.0.0/8", "::ffff:10.0.0.0/104", "2024-01-01T00:00:00Z",
	strings.Repeat("a", 300), "a\x00b", "a/b", "UPPER", "😀", []any{}, map[string]any{}, []any{"x"}, map[string]any{"x": 1}, []any{nil},
}

// place is a value in a JSON tree.
type place struct {
	set    func(any)
	remove func() // nil: an element of a list
	value  any
}

func places(node any) (all []place) {
	switch n := node.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(stdmaps.Keys(n)) {
			if k == "metadata" || k == "apiVersion" || k == "kind" {
				continue // its identity stays
			}
			all = append(all, place{func(v any) { n[k] = v }, func() { delete(n, k) }, n[k]})
			all = append(all, places(n[k])...)
		}
	case []any:
		for i := range n {
			all = append(all, place{func(v any) { n[i] = v }, nil, n[i]})
			all = append(all, places(n[i])...)
		}
	}
	return all
}

// mutated returns the JSON of an object after one to three changes.
func mutated(r *rand.Rand, object any) []byte {
	root, _ := tree(object).(map[string]any)
	for range 1 + r.IntN(3) {
		all := places(root)
		at := all[r.IntN(len(all))]
		list, isList := at.value.([]any)
		switch n := r.IntN(8); {
		case n == 0 && at.remove != nil:
			at.remove()
		case n == 1: // another value of the same object
			at.set(tree(all[r.IntN(len(all))].value))
		case isList && len(list) > 0 && n < 5:
			at.set(append(slices.Clone(list), list[r.IntN(len(list))]))
		case n == 2:
			at.set(tree(odd[r.IntN(len(odd))]))
		default:
			at.set(tree(oddLike(r, at.value)))
		}
	}
	text, _ := json.Marshal(root) // cannot fail: it was unmarshalled before
	return text
}

// oddLike returns an odd value of the same JSON type as old, if there is one.
func oddLike(r *rand.Rand, old any) any {
	for range 100 {
		v := odd[r.IntN(len(odd))]
		_, text := v.(string)
		_, wasText := old.(string)
		_, number := v.(int)
		_, wasNumber := old.(float64)
		if text && wasText || number && wasNumber {
			return v
		}
	}
	return old
}

// tree returns a copy of a value in the types of package json.
func tree(v any) (out any) {
	text, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	if err != nil {
		return nil
	}
	return out
}
