// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"errors"
	"testing"

	"shunt/bpf"
)

// TestStatusExitCode: the exit code is about the node; problems of Services don't change it.
func TestStatusExitCode(t *testing.T) {
	for _, test := range []struct {
		what string
		do   func(*statusReport)
		want int
	}{
		{"all is well", func(*statusReport) {}, 0},
		{"a Service is not served as it asks", func(s *statusReport) {
			s.Problems = problemsStatus{Total: 1, List: []problemStatus{{}}}
		}, 0},
		{"no daemon", func(s *statusReport) { s.Daemon.Running = false }, exitDegraded},
		{"a hook is not attached", func(s *statusReport) { s.Attachments[0].Attached = false }, exitFailure},
		{"both", func(s *statusReport) { s.Attachments[0].Attached, s.Daemon.Running = false, false }, exitFailure},
	} {
		s := &statusReport{Attachments: []bpf.Attachment{{Hook: "connect4", Attached: true}}}
		s.Daemon.Running = true
		test.do(s)
		s.judge()
		got := 0
		if err := s.exit(); err != nil {
			var exit *exitError
			if !errors.As(err, &exit) {
				t.Fatalf("%s: %v", test.what, err)
			}
			got = exit.code
		}
		if got != test.want {
			t.Errorf("%s: exit code %d, want %d", test.what, got, test.want)
		}
	}
}
