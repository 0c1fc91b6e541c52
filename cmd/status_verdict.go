// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"fmt"
	"strings"

	"shunt/bpf"
)

// readScope compares the cgroups to which hooks are attached with those of pods. It returns
// the problem, "" if there is none.
func readScope(hooks []bpf.Attachment) (string, error) {
	looked := map[uint64]bool{}
	for _, a := range hooks {
		if a.Cgroup == 0 || looked[a.Cgroup] {
			continue
		}
		looked[a.Cgroup] = true
		if text, err := bpf.ScopeProblem(a.Cgroup); text != "" || err != nil {
			return text, err
		}
	}
	if len(looked) > 1 {
		return "the hooks are attached to different cgroups", nil
	}
	return "", nil
}

// judge sets Wrong, Degraded and InEffect.
func (s *statusReport) judge() {
	s.Wrong, s.Degraded = []string{}, []string{}
	for _, a := range s.Attachments {
		if !a.Attached {
			s.Wrong = append(s.Wrong, fmt.Sprintf("hook %s: %s", a.Hook, a.Problem))
		}
	}
	if s.Scope != "" {
		s.Wrong = append(s.Wrong, s.Scope)
	}
	s.InEffect = len(s.Wrong) == 0
	for _, d := range s.Packets.Devices {
		if d.Problem == "" {
			continue
		}
		text := fmt.Sprintf("device %s %s: %s", deviceName(d), d.Direction, d.Problem)
		if d.By == "" {
			s.Wrong = append(s.Wrong, text)
		} else {
			s.Degraded = append(s.Degraded, text)
		}
	}
	if !s.Packets.elsewhere {
		s.Degraded = append(s.Degraded, s.Packets.Problems...)
	}
	if !s.Daemon.Running {
		s.Degraded = append(s.Degraded, "no daemon is running: what is in effect serves, and follows no change")
	}
}

// exit returns an error with the exit code and the reasons, nil if all is well.
func (s *statusReport) exit() error {
	switch {
	case len(s.Wrong) > 0:
		return &exitError{exitFailure, "does not serve as it should: " + strings.Join(s.Wrong, "; ")}
	case len(s.Degraded) > 0:
		return &exitError{exitDegraded, "degraded: " + strings.Join(s.Degraded, "; ")}
	}
	return nil
}
