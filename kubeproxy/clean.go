// SPDX-License-Identifier: Apache-2.0

// Package kubeproxy finds and removes what a kube-proxy leaves on a node: rules, tables,
// IPVS virtual servers, devices and ipsets. It also finds running kube-proxies. It never
// changes rules of other programs, and retains the rules of kube-proxy that other programs
// use. Start reading at Clean. names.go contains kube-proxy's names, plan.go decides what is
// removed.
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
	// Found lists what can be removed. Kept lists what is retained because other programs
	// use it.
	Found []Finding `json:"found"`
	Kept  []Kept    `json:"kept"`
	// Unseen lists what could not be read, or can't be removed since a tool is missing.
	Unseen []Unseen `json:"unseen"`
	// Running are the signs of a kube-proxy that runs now.
	Running []Sign `json:"running"`
	// Held are shunt's own rules that make the kernel continue to translate kube-proxy's
	// established connections.
	Held []string `json:"held"`
}

// Finding is one thing that kube-proxy left.
type Finding struct {
	// By is the mechanism: iptables-nft, iptables-legacy, nftables or ipvs.
	By     string `json:"by"`
	Family Family `json:"family,omitempty"`
	// Table is the name of a table, Chains the number of kube-proxy's chains in the table.
	// Jumps are the rules of built-in chains that jump to these chains, in the format of
	// iptables-save.
	Table  string   `json:"table,omitempty"`
	Chains int      `json:"chains,omitempty"`
	Jumps  []string `json:"jumps,omitempty"`
	// Name is set for a finding that is not a table: a device, an ipset, a virtual server.
	Name    string `json:"name,omitempty"`
	Removed bool   `json:"removed"`
}

// Kept lists what is retained in one table or mechanism, and why.
type Kept struct {
	By     string `json:"by"`
	Family Family `json:"family,omitempty"`
	Table  string `json:"table,omitempty"`
	// Names are the names of chains or of virtual servers.
	Names  []string `json:"names"`
	Reason string   `json:"reason"`
}

// Unseen is something that could not be read or removed.
type Unseen struct {
	What   string `json:"what"`
	Reason string `json:"reason"`
}

// Options are the options of Clean.
type Options struct {
	// DryRun makes Clean report without changing anything.
	DryRun bool
}

// ErrRunning means that a kube-proxy runs, so nothing was removed.
var ErrRunning = errors.New("a kube-proxy runs in this network namespace and would write its rules again: " +
	"stop it first (in a cluster: delete its DaemonSet, or keep it off this node)")

// ErrUnseen means that something could not be read or removed: there may be more that
// kube-proxy left.
var ErrUnseen = errors.New("not everything could be looked at or removed")

// Look returns the report of Clean without removing anything.
func Look(ctx context.Context) (*Report, error) { return Clean(ctx, Options{DryRun: true}) }

// Clean removes what a kube-proxy left in the network namespace of the calling thread:
// rules of all its modes, for both families, in both variants of iptables. The rules of
// one iptables table are removed in one transaction, and so is an nftables table.
// Established connections of iptables and nftables mode survive, since conntrack translates
// them; those of IPVS mode break. If nothing is left to remove, Clean only removes a holder
// that is no longer needed.
//
// The error wraps ErrRunning, ErrUnseen, or the error of a tool or of the kernel. The report
// is valid with an error too.
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
	steps  []step // in the order of the removal
}

// look finds everything and changes nothing. The findings are in the order of removal: an
// object that refers to another is removed before the other.
func (c *cleaner) look(ctx context.Context) {
	nft, err := readNFT()
	if err != nil {
		c.unseen("nftables, and the rules of iptables-nft", err)
	}
	c.lookIPTables(ctx, nft)
	c.lookNFTables(nft)
	c.lookIPVS()
}

// found adds a finding and the function run that removes it. A nil run means that the finding
// can't be removed.
func (c *cleaner) found(f Finding, run func(ctx context.Context) error) {
	c.report.Found = append(c.report.Found, f)
	if run != nil {
		c.steps = append(c.steps, step{len(c.report.Found) - 1, run})
	}
}

func (c *cleaner) unseen(what string, why error) {
	c.report.Unseen = append(c.report.Unseen, Unseen{what, why.Error()})
}

// remove runs the steps. Before the first one it makes holders, so that the kernel
// continues to translate established connections. Afterwards it removes the holders that
// are not needed.
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

// verify returns an error if there are findings again: a kube-proxy that Running does not find
// may write its rules during the removal.
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

// String returns a short description.
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

// String returns what is kept, and why.
func (k Kept) String() string {
	where := k.By
	if k.Table != "" {
		where += fmt.Sprintf(" %s table %s", k.Family, k.Table)
	}
	return fmt.Sprintf("%s: %s: %s", where, strings.Join(k.Names, ", "), k.Reason)
}
