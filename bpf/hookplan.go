// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// linkView is the kernel's state of a link.
type linkView struct {
	id link.ID // 0: there is no link
	// cgroup is the id of the link's cgroup; 0 where the link was detached or its cgroup
	// removed.
	cgroup  uint64
	program ebpf.ProgramID
}

// hookView is the kernel's state of a hook.
type hookView struct {
	// held is the link that this process has open, pinned the one that is pinned under the
	// hook's name.
	held, pinned linkView
	// listed reports whether the wanted program is in the cgroup's list for this hook.
	listed bool
}

// hookWant is the state that a hook should have.
type hookWant struct {
	cgroup  uint64
	program ebpf.ProgramID
}

// hookPlan is the steps that repair a hook, in the order of execution.
type hookPlan struct {
	// take opens the pinned link of an earlier daemon and keeps it open.
	take bool
	// attach makes a new link, and detaches the one that is held.
	attach bool
	// update replaces the link's program.
	update bool
	// pin pins the link under the hook's name.
	pin bool
	// wrong is the problem that the plan repairs, or empty.
	wrong string
	// out reports whether the program is out of effect before the repair.
	out bool
}

// planHook decides how to repair a hook. It is a pure function.
func planHook(v hookView, want hookWant) hookPlan {
	var p hookPlan
	cur := v.held
	if cur.cgroup != want.cgroup && v.pinned.id != cur.id && v.pinned.cgroup == want.cgroup {
		p.take, cur = true, v.pinned
	}
	switch {
	case cur.id == 0:
		p.wrong = "it was not attached"
	case cur.cgroup == 0:
		p.wrong = "it was detached, or its cgroup was removed"
	case cur.cgroup != want.cgroup:
		p.wrong = fmt.Sprintf("it was attached to cgroup %d, and the node's is %d", cur.cgroup, want.cgroup)
	case cur.program == want.program && !v.listed && !p.take:
		p.wrong = fmt.Sprintf("the kernel does not list its program for cgroup %d", want.cgroup)
	}
	if p.wrong != "" {
		p.attach, p.pin, p.out = true, true, true
		return p
	}
	if cur.program != want.program {
		p.update, p.out = true, true
		p.wrong = fmt.Sprintf("its program was replaced by program %d", cur.program)
	}
	if v.pinned.id != cur.id {
		p.pin = true
		if !p.out && v.pinned.id == 0 {
			p.wrong = "the pin of its link was removed"
		} else if !p.out {
			p.wrong = "another link is pinned at its path"
		}
	}
	return p
}
