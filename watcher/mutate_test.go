// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"encoding/json"
	"fmt"
	stdmaps "maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	kjson "sigs.k8s.io/json"
)

// mutations is the number of mutated objects in each of the tests below.
const mutations = 1000

// values are those that a mutation sets: the ends of ranges, wrong types, addresses of
// every kind that must not be programmed.
var values = []any{
	nil, "", 0, -1, 1, 80, 65535, 65536, 1 << 31, 1 << 40, 1.5, true, false, "x", "None", "Local", "ClientIP", "Proxy", "SCTP", "UDP",
	"IPv4", "IPv6", "FQDN", "ExternalName", "ClusterIP", "10.96.0.10", "10.1.0.1", "0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.1", "ff02::1",
	"fe80::1", "fe80::1%eth0", "169.254.1.1", "255.255.255.255", "::ffff:10.1.0.1", "010.001.000.001", "10.1.0", "10.1.0.1 ", "10.1.0.256",
	"fd00::2", "0.0.0.0/0", "::/0", "10.0.0.0/33", " 10.0.0.0/8", "::ffff:10.0.0.0/104", "::ffff:10.0.0.0/90", "2024-01-01T00:00:00Z",
	strings.Repeat("a", 300), "a\x00b", "\xff\xfe", "a/b", "UPPER", "😀", []any{}, map[string]any{}, []any{"x"}, map[string]any{"x": 1}, []any{nil},
}

type spot struct {
	set    func(any)
	remove func() // nil: not part of a map or list
	value  any
}

// spots returns every value in a JSON tree that a mutation can change.
func spots(node any) []spot {
	var out []spot
	switch n := node.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(stdmaps.Keys(n)) {
			out = append(out, spot{func(v any) { n[k] = v }, func() { delete(n, k) }, n[k]})
			out = append(out, spots(n[k])...)
		}
	case []any:
		for i := range n {
			out = append(out, spot{func(v any) { n[i] = v }, nil, n[i]})
			out = append(out, spots(n[i])...)
		}
	}
	return out
}

func mutateTree(r *rand.Rand, root any) {
	for range 1 + r.IntN(3) {
		all := spots(root)
		s := all[r.IntN(len(all))]
		list, isList := s.value.([]any)
		switch r.IntN(8) {
		case 0:
			if s.remove != nil {
				s.remove()
			}
		case 1:
			s.set(copied(all[r.IntN(len(all))].value)) // another value of the same object
		case 2:
			if isList && len(list) > 0 {
				s.set(append(slices.Clone(list), list[r.IntN(len(list))]))
			}
		case 3:
			s.set(copied(values[r.IntN(len(values))])) // often of a wrong type
		default:
			s.set(copied(like(r, s.value)))
		}
	}
}

// like returns a value of the same JSON type, text or number, else old itself.
func like(r *rand.Rand, old any) any {
	for range 100 {
		v := values[r.IntN(len(values))]
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

// copied returns a deep copy, so that the tree has no cycle.
func copied(v any) any {
	data, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	var out any
	if json.Unmarshal(data, &out) != nil {
		return nil
	}
	return out
}

// mutateTyped changes one field somewhere in a value, within its type.
func mutateTyped(r *rand.Rand, v reflect.Value) {
	var all []reflect.Value
	var walk func(reflect.Value)
	walk = func(v reflect.Value) {
		if v.CanSet() {
			all = append(all, v)
		}
		switch v.Kind() {
		case reflect.Pointer:
			if !v.IsNil() {
				walk(v.Elem())
			}
		case reflect.Struct:
			for i := range v.NumField() {
				walk(v.Field(i))
			}
		case reflect.Slice:
			for i := range v.Len() {
				walk(v.Index(i))
			}
		}
	}
	walk(v)
	f := all[r.IntN(len(all))]
	pick := values[r.IntN(len(values))]
	switch f.Kind() {
	case reflect.String:
		if s, ok := pick.(string); ok {
			f.SetString(s)
		}
	case reflect.Int32, reflect.Int64:
		if n, ok := pick.(int); ok && !f.OverflowInt(int64(n)) {
			f.SetInt(int64(n))
		}
	case reflect.Bool:
		f.SetBool(!f.Bool())
	case reflect.Pointer:
		if f.IsNil() {
			f.Set(reflect.New(f.Type().Elem()))
		} else {
			f.SetZero()
		}
	case reflect.Slice:
		switch n := f.Len(); {
		case n > 0 && r.IntN(2) == 0:
			f.Set(reflect.Append(f, f.Index(r.IntN(n))))
		case r.IntN(2) == 0:
			f.Set(reflect.Append(f, reflect.Zero(f.Type().Elem())))
		default:
			f.SetZero()
		}
	case reflect.Map:
		f.SetZero()
	}
}

// tally counts the outcomes of the mutations, so that a test that tests nothing fails.
type tally struct{ refused, skipped, warned, clean int }

func (n *tally) count(skipped bool, warnings []Warning) {
	switch {
	case skipped:
		n.skipped++
	case len(warnings) > 0:
		n.warned++
	default:
		n.clean++
	}
}

func (n *tally) check(t *testing.T, refusals bool) {
	t.Logf("%+v", *n)
	if n.skipped < 10 || n.warned < 100 || n.clean < 100 || refusals && n.refused < 100 {
		t.Errorf("the mutations are too tame or too wild: %+v", *n)
	}
}

func check(t *testing.T, seed int, in any, errs error, missing []string) {
	t.Helper()
	if errs == nil && len(missing) == 0 {
		return
	}
	data, _ := json.Marshal(in)
	t.Fatalf("mutation %d: %v\n%s\nof %s", seed, errs, strings.Join(missing, "\n"), data)
}

func convertService(t *testing.T, n *tally, seed int, s *v1.Service) {
	t.Helper()
	m, w := new(Converter).Service(s)
	n.count(m == nil, w)
	var err error
	if m != nil {
		err = checkService(m)
	}
	check(t, seed, s, err, accountService(s, m, w))
}

func convertSlice(t *testing.T, n *tally, seed int, s *discoveryv1.EndpointSlice) {
	t.Helper()
	m, w := new(Converter).Slice(s)
	n.count(m == nil, w)
	var err error
	if m != nil {
		err = checkSlice(m)
	}
	check(t, seed, s, err, accountSlice(s, m, w))
}

// TestMutatedFields mutates valid objects within their Go types.
func TestMutatedFields(t *testing.T) {
	var services, slices tally
	for seed := range mutations {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		s, e := webService(), webSlice()
		for range 1 + r.IntN(4) {
			mutateTyped(r, reflect.ValueOf(s).Elem())
			mutateTyped(r, reflect.ValueOf(e).Elem())
		}
		convertService(t, &services, seed, s)
		convertSlice(t, &slices, seed, e)
	}
	services.check(t, false)
	slices.check(t, false)
}

// TestMutatedJSON mutates the JSON of valid objects, regardless of types. It converts what
// can still be decoded. The rest the manifest reader must refuse, with the object and the
// field.
func TestMutatedJSON(t *testing.T) {
	var services, slices tally
	for seed := range mutations {
		r := rand.New(rand.NewPCG(uint64(seed), 2))
		s, e := &v1.Service{}, &discoveryv1.EndpointSlice{}
		if decodeMutated(t, r, seed, "v1", "Service", webService(), s, &services) {
			convertService(t, &services, seed, s)
		}
		if decodeMutated(t, r, seed, "discovery.k8s.io/v1", "EndpointSlice", webSlice(), e, &slices) {
			convertSlice(t, &slices, seed, e)
		}
	}
	services.check(t, true)
	slices.check(t, true)
}

func decodeMutated(t *testing.T, r *rand.Rand, seed int, version, kind string, valid, into any, n *tally) bool {
	t.Helper()
	data, err := json.Marshal(valid)
	must(t, err)
	var tree map[string]any
	must(t, json.Unmarshal(data, &tree))
	mutateTree(r, tree)
	tree["apiVersion"], tree["kind"] = version, kind
	data, err = json.Marshal(tree)
	must(t, err)

	decodes := kjson.UnmarshalCaseSensitivePreserveInts(data, into) == nil
	p := new(Converter).parse(document{index: 1, line: 1, text: data})
	for _, f := range p.failures {
		text := f.err.Error()
		named := f.key.name != "" || strings.Contains(text, "metadata")
		if !named || !strings.ContainsAny(text, ".:") {
			t.Fatalf("mutation %d: a failure that does not say of what: %v: %v\n%s", seed, f.key, f.err, data)
		}
	}
	if !decodes {
		n.refused++
		if len(p.failures) == 0 {
			t.Fatalf("mutation %d: does not decode, and the manifest reader does not mind:\n%s", seed, data)
		}
		return false
	}
	return true
}

// TestLocate: locate finds the field of a fault that the decoder's message does not have.
func TestLocate(t *testing.T) {
	for doc, want := range map[string]string{
		`{"metadata":{"creationTimestamp":"noon"}}`:                   "metadata.creationTimestamp",
		`{"spec":{"ports":[{"port":1},{"port":2,"targetPort":1.5}]}}`: "spec.ports[1].targetPort",
		`{"spec":{"ports":[{"port":1},{"port":"2"}]}}`:                "spec.ports[1].port",
		`{"spec":{"ports":{"port":1}}}`:                               "spec.ports",
		`{"spec":{"clusterIP":1},"metadata":{"name":2}}`:              "", // two faults
		`{"spec":[`: "",
		`{"metadata":{"ownerReferences":[{"controller":"no"}],"labels":{"a":"b"}}}`: "metadata.ownerReferences[0].controller",
	} {
		got := locate([]byte(doc), func(d []byte) error { return kjson.UnmarshalCaseSensitivePreserveInts(d, &v1.Service{}) })
		if got != want {
			t.Errorf("%s: %q, want %q", doc, got, want)
		}
	}
	// The work is bounded, however large the object is.
	doc := `{"spec":{"externalIPs":[` + strings.Repeat(`"a",`, 5000) + `1,2]}}`
	tries := 0
	locate([]byte(doc), func(d []byte) error { tries++; return fmt.Errorf("never") })
	if tries > locateTries {
		t.Errorf("%d tries", tries)
	}
}
