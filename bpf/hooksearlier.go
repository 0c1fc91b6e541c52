// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"maps"
	"slices"
	"strings"
)

// Earlier is what an earlier daemon left, over which Hooks keeps watch until Start: that
// may have to wait as long as an outage of the API server lasts.
type Earlier struct {
	// InEffect: its hooks were in effect when this daemon began. Else there is nothing to
	// watch.
	InEffect bool
	// Adopted: Programs work with its maps, which are filled. Else what is out of effect
	// can't be put right before Start.
	Adopted bool
	// Lasts is told after each look whether they still are.
	Lasts func(bool)
}

// watchEarlier looks at the earlier daemon's hooks. Where one is out of effect, the
// programs of this one take their place, if they work with the same maps, and are looked
// after by passes from then on.
func (h *Hooks) watchEarlier(ctx context.Context) {
	if !h.opts.Earlier.InEffect {
		return
	}
	ok, own := h.lookEarlier()
	if own || !ok && h.opts.Earlier.Adopted {
		h.pass(ctx)
		if !own { // report does not count as lost what an earlier daemon had
			h.opts.Lost()
		}
		ok, _ = h.lookEarlier()
	}
	if ctx.Err() == nil {
		h.opts.Earlier.Lasts(ok)
	}
}

// lookEarlier publishes what is wrong, and reports whether all pinned links are in effect.
// own: a pass has put this daemon's programs into effect, and knows more.
func (h *Hooks) lookEarlier() (ok, own bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	problems := pinnedProblems(h.opts.Root)
	ok = strings.Join(slices.Collect(maps.Values(problems)), "") == ""
	if h.first {
		maps.Copy(problems, h.packets())
		h.report(&hooksPass{h: h, problems: problems})
	}
	return ok, !h.first
}

// pinnedProblems returns what is wrong with the pinned links, by hook.
func pinnedProblems(root string) map[string]string {
	problems := map[string]string{}
	for _, a := range Attachments(root, nil) {
		problems[a.Hook] = a.Problem
	}
	return problems
}
