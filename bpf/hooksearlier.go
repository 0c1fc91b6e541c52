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
	// InEffect reports whether these hooks were in effect when this daemon began. If not, Hooks
	// does not watch them.
	InEffect bool
	// Adopted reports whether Programs use the earlier daemon's maps with its entries. If not, a
	// detached hook can't be repaired before Start.
	Adopted bool
	// Lasts is called after each scan, with true if these hooks are still in effect.
	Lasts func(bool)
}

// watchEarlier scans the earlier daemon's hooks. If one is out of effect and the maps were
// adopted, this daemon attaches its own programs. From then on watchEarlier scans these.
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

// lookEarlier stores the problems, and reports whether all pinned links are in effect. own
// reports whether this daemon has attached its own programs. In that case pass stores the
// problems instead.
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
