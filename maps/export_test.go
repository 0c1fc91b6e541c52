// SPDX-License-Identifier: Apache-2.0

package maps

// SwitchSteps lets tests stop between the steps of Set.Switch.
func SwitchSteps(s *Set) []func() error { return s.switchSteps() }

// LeftAddrs is how many addresses stay marked after their last backend is gone.
const LeftAddrs = leftAddrs
