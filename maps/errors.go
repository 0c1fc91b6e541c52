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

// FirstErrors joins the first MostErrors errors. It counts the others in one more, together with
// more errors that are not in the list. It returns nil if all errors are nil.
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
