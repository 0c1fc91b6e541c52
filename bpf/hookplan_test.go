// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"strings"
	"testing"
)

// TestPlanHook: the plan for a hook depends only on the kernel's state of it.
func TestPlanHook(t *testing.T) {
	t.Parallel()
	want := hookWant{cgroup: 7, program: 70}
	ours := linkView{id: 1, cgroup: 7, program: 70}
	for _, test := range []struct {
		name string
		view hookView
		plan hookPlan
		says string
	}{
		{"as it should be", hookView{held: ours, pinned: ours, listed: true}, hookPlan{}, ""},
		{"nothing there, as at a first start", hookView{}, hookPlan{attach: true, pin: true, out: true}, "not attached"},
		{"an earlier daemon's link, and its program", hookView{pinned: linkView{id: 2, cgroup: 7, program: 60}},
			hookPlan{take: true, update: true, out: true}, "program 60"},
		{"an earlier daemon's link, with this program", hookView{pinned: linkView{id: 2, cgroup: 7, program: 70}, listed: true}, hookPlan{take: true}, ""},
		{"an earlier daemon's link, of another cgroup", hookView{pinned: linkView{id: 2, cgroup: 6, program: 60}},
			hookPlan{attach: true, pin: true, out: true}, "not attached"},
		{"an earlier daemon's link, of a cgroup that is gone", hookView{pinned: linkView{id: 2, program: 60}},
			hookPlan{attach: true, pin: true, out: true}, "not attached"},
		{"the pin removed", hookView{held: ours, listed: true}, hookPlan{pin: true}, "the pin of its link was removed"},
		{"another link pinned instead", hookView{held: ours, pinned: linkView{id: 9, cgroup: 7, program: 90}, listed: true}, hookPlan{pin: true}, "another link"},
		{"detached", hookView{held: linkView{id: 1, program: 70}, pinned: linkView{id: 1, program: 70}},
			hookPlan{attach: true, pin: true, out: true}, "detached"},
		{"detached and unpinned", hookView{held: linkView{id: 1, program: 70}}, hookPlan{attach: true, pin: true, out: true}, "detached"},
		{"program replaced", hookView{held: linkView{id: 1, cgroup: 7, program: 71}, pinned: linkView{id: 1, cgroup: 7, program: 71}},
			hookPlan{update: true, out: true}, "program 71"},
		{"program replaced and unpinned", hookView{held: linkView{id: 1, cgroup: 7, program: 71}},
			hookPlan{update: true, pin: true, out: true}, "program 71"},
		{"the node's cgroup is another one now", hookView{held: linkView{id: 1, cgroup: 6, program: 70}, pinned: linkView{id: 1, cgroup: 6, program: 70}},
			hookPlan{attach: true, pin: true, out: true}, "cgroup 6"},
		{"the link says so, and the kernel does not", hookView{held: ours, pinned: ours}, hookPlan{attach: true, pin: true, out: true}, "does not list"},
	} {
		got := planHook(test.view, want)
		says := got.wrong
		got.wrong = ""
		if got != test.plan || !strings.Contains(says, test.says) || (says == "") != (test.says == "") {
			t.Errorf("%s: %+v %q, want %+v %q", test.name, got, says, test.plan, test.says)
		}
	}
}
