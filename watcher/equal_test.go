// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

// The functions of equal.go compare every field, also those of structures and elements inside: two
// models that differ in one field are not equal, and two without a difference are.
func TestEqualComparesEveryField(t *testing.T) {
	for name, check := range map[string]func(*testing.T){
		"service": func(t *testing.T) { comparesAll(t, equalService) },
		"slice":   func(t *testing.T) { comparesAll(t, equalSlice) },
		"node":    func(t *testing.T) { comparesAll(t, equalNode) },
	} {
		t.Run(name, check)
	}
}

func comparesAll[T any](t *testing.T, equal func(a, b *T) bool) {
	filled := func() reflect.Value {
		v := reflect.New(reflect.TypeFor[T]())
		fill(v.Elem())
		return v
	}
	a, b := filled(), filled()
	if !equal(a.Interface().(*T), b.Interface().(*T)) {
		t.Fatal("two equal models are said to differ")
	}
	leaves(filled().Elem(), "", func(path string, _ reflect.Value) {
		changed := filled()
		leaves(changed.Elem(), "", func(p string, v reflect.Value) {
			if p == path {
				change(v)
			}
		})
		if equal(a.Interface().(*T), changed.Interface().(*T)) || equal(changed.Interface().(*T), a.Interface().(*T)) {
			t.Errorf("field %s%s is not compared", reflect.TypeFor[T](), path)
		}
	})
}

// whole are types that are compared and changed as one value.
var whole = map[reflect.Type][2]any{
	reflect.TypeFor[time.Time]():    {time.Unix(1, 0), time.Unix(2, 0)},
	reflect.TypeFor[netip.Addr]():   {netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")},
	reflect.TypeFor[netip.Prefix](): {netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/9")},
}

// fill sets every field: slices get one element, pointers a value.
func fill(v reflect.Value) {
	if values, is := whole[v.Type()]; is {
		v.Set(reflect.ValueOf(values[0]))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	}
}

// leaves calls visit for every field, and for every slice and pointer also as a whole.
func leaves(v reflect.Value, path string, visit func(path string, v reflect.Value)) {
	if _, is := whole[v.Type()]; is {
		visit(path, v)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		leaves(v.Elem(), path, visit)
		visit(path+" as a whole", v)
	case reflect.Slice:
		leaves(v.Index(0), path+"[0]", visit)
		visit(path+" as a whole", v)
	case reflect.Struct:
		for i := range v.NumField() {
			leaves(v.Field(i), path+"."+v.Type().Field(i).Name, visit)
		}
	default:
		visit(path, v)
	}
}

// change sets another value.
func change(v reflect.Value) {
	if values, is := whole[v.Type()]; is {
		v.Set(reflect.ValueOf(values[1]))
		return
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Slice:
		v.SetZero()
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(v.Uint() + 1)
	default:
		panic(fmt.Sprintf("the test can't change a %s: teach it", v.Type()))
	}
}
