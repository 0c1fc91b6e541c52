package maps

// SwitchSteps lets tests stop between the steps of Set.Switch.
func SwitchSteps(s *Set) []func() error { return s.switchSteps() }
