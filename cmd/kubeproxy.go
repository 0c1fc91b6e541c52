// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"shunt/bpf"
	"shunt/kubeproxy"
)

// The effect of a kube-proxy beside shunt, and what an operator must do about it.
const (
	rulesMeaning = "its rules still translate what shunt leaves alone: stop kube-proxy and run 'shunt cleanup --kube-proxy' on this node"
	runsMeaning  = "it translates what shunt leaves alone, and writes its rules again: " +
		"stop it (delete its DaemonSet), then run 'shunt cleanup --kube-proxy' on this node"
)

// cleanupKubeProxy runs `shunt cleanup --kube-proxy`. It prints the report even after an error.
func cleanupKubeProxy(c *cobra.Command, output string, dryRun bool) error {
	if err := bpf.RequireRoot(); err != nil {
		return err
	}
	ctx, stop := endOnHangup(c.Context())
	defer stop()
	report, err := kubeproxy.Clean(ctx, kubeproxy.Options{DryRun: dryRun})
	return errors.Join(
		writeOutput(c.OutOrStdout(), output, report, func(w io.Writer) { kubeProxyTable(w, report) }),
		err,
	)
}

func kubeProxyTable(w io.Writer, r *kubeproxy.Report) {
	for _, f := range r.Found {
		verb := "removed"
		switch {
		case r.DryRun:
			verb = "would remove"
		case !f.Removed:
			verb = "NOT removed"
		}
		fmt.Fprintf(w, "%s %s\n", verb, f)
	}
	for _, k := range r.Kept {
		fmt.Fprintf(w, "kept %s\n", k)
	}
	for _, u := range r.Unseen {
		fmt.Fprintf(w, "could not look at %s: %s\n", u.What, u.Reason)
	}
	for _, s := range r.Running {
		fmt.Fprintf(w, "running: %s\n", s)
	}
	for _, h := range r.Held {
		fmt.Fprintf(w, "left %s, which keeps established connections translated; run this again when they have ended\n", h)
	}
	if len(r.Found) == 0 && len(r.Unseen) == 0 {
		fmt.Fprintln(w, "nothing of kube-proxy's to remove in this network namespace")
	}
}

// kubeProxyStatus is what `shunt status` reports about a kube-proxy beside shunt.
type kubeProxyStatus struct {
	// Rules is set if kube-proxy left something in this network namespace.
	Rules   bool                `json:"rules"`
	Found   []kubeproxy.Finding `json:"found"`
	Running []kubeproxy.Sign    `json:"running"`
	Unseen  []kubeproxy.Unseen  `json:"unseen"`
}

func readKubeProxy(ctx context.Context) (kubeProxyStatus, error) {
	r, err := kubeproxy.Look(ctx)
	if err != nil && !errors.Is(err, kubeproxy.ErrUnseen) { // ErrUnseen is in the report
		return kubeProxyStatus{}, fmt.Errorf("look for a kube-proxy: %w", err)
	}
	return kubeProxyStatus{Rules: len(r.Found) > 0, Found: r.Found, Running: r.Running, Unseen: r.Unseen}, nil
}

func (s *kubeProxyStatus) table(w io.Writer) {
	switch {
	case len(s.Running) > 0:
		fmt.Fprintf(w, "kube-proxy:\tRUNS beside shunt (%s): %s\n", s.Running[0], runsMeaning)
	case s.Rules:
		fmt.Fprintf(w, "kube-proxy:\tleft something here: %s\n", rulesMeaning)
	case len(s.Unseen) > 0:
		fmt.Fprintf(w, "kube-proxy:\tnot known whether it left rules\n")
	default:
		fmt.Fprintf(w, "kube-proxy:\tnothing of it here\n")
	}
	for _, f := range s.Found {
		fmt.Fprintf(w, "  %s\t%s\n", f.By, f)
	}
	for _, u := range s.Unseen {
		fmt.Fprintf(w, "  %s\tnot looked at: %s\n", u.What, u.Reason)
	}
}

// warnKubeProxy logs once the rules and processes of kube-proxy on this node. It must be called
// before the daemon's own servers bind their ports. A failure is only logged.
func (d *daemon) warnKubeProxy(ctx context.Context) {
	s, err := readKubeProxy(ctx)
	if err != nil {
		d.log.Warn("can't tell whether a kube-proxy is on this node", zap.Error(err))
		return
	}
	for _, sign := range s.Running {
		d.log.Warn("a kube-proxy runs beside shunt", zap.Stringer("found", sign), zap.String("meaning", runsMeaning))
	}
	for _, f := range s.Found {
		d.log.Warn("kube-proxy left something on this node", zap.Stringer("found", f), zap.String("meaning", rulesMeaning))
	}
	for _, u := range s.Unseen {
		d.log.Info("not known whether kube-proxy left rules", zap.String("where", u.What), zap.String("why", u.Reason))
	}
}
