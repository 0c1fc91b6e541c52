// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	stdmaps "maps"
	"slices"
	"strings"
)

// Earlier describes the hooks that an earlier daemon left. Hooks watches them until Start,
// which may wait as long as an outage of the API server lasts.
type Earlier struct {
	// InEffect: they were in effect when this daemon began. If not, there is nothing to watch.
	InEffect bool
	// Adopted: Programs work with the earlier daemon's maps, which have its entries. If not, a
	// hook that goes out of effect can't be repaired before Start.
	Adopted bool
	// Lasts is called after each scan with whether they are still in effect.
	Lasts func(bool)
}

// watchEarlier scans the earlier daemon's hooks. If one is out of effect and the maps were
// adopted, this daemon attaches its own programs; from then on it scans these.
func (h *Hooks) watchEarlier(ctx context.Context) {
	if !h.opts.Earlier.InEffect {
		return
	}
	ok, own := h.lookEarlier()
	if own || !ok && h.opts.Earlier.Adopted {
		h.pass(ctx)
		if !own { // report does not call Lost at the first scan
			h.opts.Lost()
		}
		ok, _ = h.lookEarlier()
	}
	if ctx.Err() == nil {
		h.opts.Earlier.Lasts(ok)
	}
}

// lookEarlier stores the problems, and reports whether all pinned links are in effect. own:
// this daemon has attached its own programs, so that its scans store the problems.
func (h *Hooks) lookEarlier() (ok, own bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	problems := pinnedProblems(h.opts.Root)
	ok = strings.Join(slices.Collect(stdmaps.Values(problems)), "") == ""
	if h.first {
		stdmaps.Copy(problems, h.packets())
		h.report(&hooksScan{h: h, problems: problems})
	}
	return ok, !h.first
}

// pinnedProblems returns the problems of the pinned links, by hook.
func pinnedProblems(root string) map[string]string {
	problems := map[string]string{}
	for _, a := range Attachments(root, nil) {
		problems[a.Hook] = a.Problem
	}
	return problems
}
