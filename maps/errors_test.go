// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"slices"
	"testing"
)

func TestFirstErrors(t *testing.T) {
	a, b, c, d := errors.New("a"), errors.New("b"), errors.New("c"), errors.New("d")
	for _, test := range []struct {
		errs []error
		more int
		want string
	}{
		{nil, 0, ""},
		{[]error{nil, nil}, 0, ""},
		{[]error{nil, a, nil, b, c}, 0, "a\nb\nc"},
		{[]error{a, nil, b, c, d, d}, 0, "a\nb\nc\nand 2 more"},
		{[]error{a}, 7, "a\nand 7 more"},
		{[]error{a, b, c, d}, 7, "a\nb\nc\nand 8 more"},
	} {
		given := slices.Clone(test.errs)
		got := ""
		err := FirstErrors(test.errs, test.more)
		if err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%v and %d more: %q, want %q", test.errs, test.more, got, test.want)
		}
		if len(given) > 1 && errors.Is(given[1], a) && !errors.Is(err, a) {
			t.Errorf("%v: the result does not wrap its first error", given)
		}
		if !slices.Equal(given, test.errs) {
			t.Errorf("the list of the caller has become %v, it was %v", test.errs, given)
		}
	}
}
