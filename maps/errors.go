// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"slices"
)

// MostErrors is how many errors of one attempt are reported in full: with a full map, thousands of
// writes may fail for the same reason.
const MostErrors = 3

// FirstErrors joins the first MostErrors errors, and one error with the number of all others.
// more is the number of further errors, which are not in errs. FirstErrors returns nil if all
// errors are nil and more is 0.
func FirstErrors(errs []error, more int) error {
	errs = slices.DeleteFunc(slices.Clone(errs), func(err error) bool { return err == nil })
	if n := len(errs) - MostErrors; n > 0 {
		errs, more = errs[:MostErrors], more+n
	}
	if more > 0 {
		errs = append(errs, fmt.Errorf("and %d more", more))
	}
	return errors.Join(errs...)
}
