// SPDX-License-Identifier: Apache-2.0

// Package kubeproxy owns what a kube-proxy leaves on a node: it recognises rules,
// tables, devices and running kube-proxies, and removes what they left. It never
// touches anybody else's rules, and keeps those of kube-proxy's that somebody else's
// lean on. Start reading at Clean; names.go says what is kube-proxy's, plan.go what
// of it can go.
package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Report is what was found in the network namespace of the calling thread, and what
// was done about it.
type Report struct {
	DryRun bool `json:"dryRun"`
	// Found can be removed; Kept is kube-proxy's, too, but others use it.
	Found []Finding `json:"found"`
	Kept  []Kept    `json:"kept"`
	// Unseen could not be looked at, or not be removed for want of a tool.
	Unseen []Unseen `json:"unseen"`
	// Running are the signs of a kube-proxy that runs now.
	Running []Sign `json:"running"`
	// Held is ours: what keeps translating connections that kube-proxy had set up.
	Held []string `json:"held"`
}

// Finding is one thing of kube-proxy's.
type Finding struct {
	// By: iptables-nft, iptables-legacy, nftables or ipvs.
	By     string `json:"by"`
	Family Family `json:"family,omitempty"`
	// Table has so many Chains of kube-proxy's, and Jumps to them from built-in
	// chains, as iptables-save spells rules.
	Table  string   `json:"table,omitempty"`
	Chains int      `json:"chains,omitempty"`
	Jumps  []string `json:"jumps,omitempty"`
	// Name of what is no table: a device, an ipset, a virtual server.
	Name    string `json:"name,omitempty"`
	Removed bool   `json:"removed"`
}

// Kept is what of kube-proxy's stays, and the reason.
type Kept struct {
	By     string `json:"by"`
	Family Family `json:"family,omitempty"`
	Table  string `json:"table,omitempty"`
	// Names of the chains, or of an ipset or a virtual server.
	Names  []string `json:"names"`
	Reason string   `json:"reason"`
}

// Unseen is what could not be looked at.
type Unseen struct {
	What   string `json:"what"`
	Reason string `json:"reason"`
}

// Options of Clean.
type Options struct {
	// DryRun looks, and changes nothing.
	DryRun bool
}

// ErrRunning means that a kube-proxy runs, so nothing was removed.
var ErrRunning = errors.New("a kube-proxy runs in this network namespace and would write its rules again: " +
	"stop it first (in a cluster: delete its DaemonSet, or keep it off this node)")

// ErrUnseen means that what is left of kube-proxy, if anything, is not known or could
// not be removed.
var ErrUnseen = errors.New("not everything could be looked at or removed")

// Look finds what Clean would remove.
func Look(ctx context.Context) (*Report, error) { return Clean(ctx, Options{DryRun: true}) }

// Clean removes what a kube-proxy left in the network namespace of the calling
// thread: rules of all its modes, for both families, in both variants of iptables.
// Rules of one iptables table, and nftables tables of one family, go in one
// transaction. Established connections live on: their translation is conntrack's,
// but for those of IPVS. With nothing to remove it does nothing.
//
// The report says what was done, also beside an error: ErrRunning, ErrUnseen, or
// what a tool or the kernel said.
func Clean(ctx context.Context, options Options) (*Report, error) {
	c := &cleaner{report: Report{Found: []Finding{}, Kept: []Kept{}, Unseen: []Unseen{}, Held: []string{}}}
	c.look(ctx)
	c.report.DryRun, c.report.Running = options.DryRun, Running(ctx)
	switch {
	case options.DryRun:
		return c.done(nil)
	case len(c.report.Running) > 0:
		return c.done(fmt.Errorf("%w; found %s", ErrRunning, c.report.Running[0]))
	}
	err := c.remove(ctx)
	return c.done(errors.Join(err, ctx.Err()))
}

// step removes one finding.
type step struct {
	finding int // index in report.Found
	run     func(ctx context.Context) error
}

type cleaner struct {
	report Report
	steps  []step // in the order in which they can be done
}

// look finds everything, without a change. The order is that of the removal: what
// is referred to goes after what refers to it.
func (c *cleaner) look(ctx context.Context) {
	nft, err := readNFT()
	if err != nil {
		c.unseen("nftables, and the rules of iptables-nft", err)
	}
	c.lookIPTables(ctx, nft)
	c.lookNFTables(nft)
	c.lookIPVS()
}

// found notes a thing and how to remove it; nil: there is no way.
func (c *cleaner) found(f Finding, run func(ctx context.Context) error) {
	c.report.Found = append(c.report.Found, f)
	if run != nil {
		c.steps = append(c.steps, step{len(c.report.Found) - 1, run})
	}
}

func (c *cleaner) unseen(what string, why error) {
	c.report.Unseen = append(c.report.Unseen, Unseen{what, why.Error()})
}

// remove takes the steps. Before the first one it makes sure that the kernel goes
// on translating, and afterwards it takes back what was not needed for that.
func (c *cleaner) remove(ctx context.Context) error {
	var errs []error
	h := holder{}
	if len(c.steps) > 0 {
		if err := h.hold(ctx); err != nil {
			return fmt.Errorf("keep established connections alive: %w; nothing was removed", err)
		}
	}
	for _, s := range c.steps {
		if err := s.run(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		c.report.Found[s.finding].Removed = true
	}
	held, err := h.release(ctx)
	c.report.Held = append(c.report.Held, held...)
	errs = append(errs, err)
	if len(c.steps) > 0 && errors.Join(errs...) == nil {
		errs = append(errs, c.verify(ctx))
	}
	return errors.Join(errs...)
}

// verify looks again: a kube-proxy that could not be seen may write while we remove.
func (c *cleaner) verify(ctx context.Context) error {
	again := &cleaner{}
	again.look(ctx)
	for _, s := range again.steps {
		return fmt.Errorf("%s is there again after it was removed: does a kube-proxy run that can't be seen from here?",
			again.report.Found[s.finding])
	}
	return nil
}

func (c *cleaner) done(err error) (*Report, error) {
	if len(c.report.Unseen) > 0 {
		err = errors.Join(err, fmt.Errorf("%w: %s: %s", ErrUnseen, c.report.Unseen[0].What, c.report.Unseen[0].Reason))
	}
	return &c.report, err
}

// String says what it is, in a few words.
func (f Finding) String() string {
	if f.Name != "" {
		return f.By + ": " + f.Name
	}
	text := fmt.Sprintf("%s %s table %s: %d chains", f.By, f.Family, f.Table, f.Chains)
	if len(f.Jumps) > 0 {
		text += fmt.Sprintf(", %d jumps to them", len(f.Jumps))
	}
	return text
}

// String says what it is, and why it stays.
func (k Kept) String() string {
	where := k.By
	if k.Table != "" {
		where += fmt.Sprintf(" %s table %s", k.Family, k.Table)
	}
	return fmt.Sprintf("%s: %s: %s", where, strings.Join(k.Names, ", "), k.Reason)
}
