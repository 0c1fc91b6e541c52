// SPDX-License-Identifier: Apache-2.0

//go:build !node

package cmd

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"shunt/lab"
)

// demoManifests holds the demo's Services and EndpointSlices.
//
//go:embed demo.yaml
var demoManifests []byte

// demoDeadline bounds the whole demo, which usually takes a few seconds.
const demoDeadline = 2 * time.Minute

// demoReport is the result of the demo.
type demoReport struct {
	// OK is set if every answer was as expected.
	OK      bool         `json:"ok"`
	Results []demoResult `json:"results"`
	Elapsed float64      `json:"elapsedSeconds"`
}

func newDemoCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "demo",
		Short: "See it work: two nodes of pods on this machine, and real requests",
		Long: "Demo makes two nodes with pods out of network namespaces and cgroups, runs the daemon on each, asks\n" +
			"services over TCP and UDP and both IP families, and shows who answered and what it took beside a direct\n" +
			"connection to the same endpoint: medians of connect, request and reply, asked in turn. It uses nothing of\n" +
			"this machine's own network and removes everything when it ends. It needs root.",
		RunE: func(c *cobra.Command, _ []string) error {
			defer surviveBrokenPipe()()
			ctx, stop := endOnHangup(c.Context())
			defer stop()
			report, err := demo(ctx, func(format string, args ...any) {
				fmt.Fprintf(c.ErrOrStderr(), format+"\n", args...)
			})
			if err != nil {
				return err
			}
			if err := writeOutput(c.OutOrStdout(), output, report, func(w io.Writer) { report.table(w) }); err != nil {
				return err
			}
			return report.err()
		},
	}
	addOutputFlag(c, &output, "json")
	return c
}

// demo makes the lab, asks all questions and removes the lab.
func demo(ctx context.Context, say func(string, ...any)) (report *demoReport, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the demo makes network namespaces and loads eBPF programs, which needs root: sudo shunt demo")
	}
	start := time.Now()
	interrupted := ctx
	ctx, cancel := context.WithTimeout(ctx, demoDeadline)
	defer cancel()
	l, err := lab.New(ctx, lab.Options{Logf: say})
	if err != nil {
		return nil, fmt.Errorf("make nodes and pods: %w", err)
	}
	defer func() {
		err = errors.Join(err, l.Close())
		if interrupted.Err() != nil {
			err = errors.New("interrupted; nodes, pods and daemons were removed")
			report = nil
		}
	}()
	c, err := newDemoCluster(l)
	if err != nil {
		return nil, err
	}
	if err := c.startDaemons(ctx); err != nil {
		return nil, err
	}
	say("two nodes with pods are up, a daemon runs on each; asking")
	report = &demoReport{OK: true}
	for _, q := range c.questions() {
		r, err := q.ask(ctx)
		if err == nil {
			err = c.daemonsAlive()
		}
		if err != nil {
			return nil, err
		}
		report.OK = report.OK && r.OK
		report.Results = append(report.Results, r)
	}
	report.Elapsed = time.Since(start).Seconds()
	return report, nil
}

// err returns nil if every answer was as expected.
func (r *demoReport) err() error {
	wrong := 0
	for _, res := range r.Results {
		if !res.OK {
			wrong++
		}
	}
	if wrong == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d answers were not what was expected", wrong, len(r.Results))
}
