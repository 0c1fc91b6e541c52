// SPDX-License-Identifier: Apache-2.0

//go:build !node

package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"shunt/bench"
)

// benchFlags are the flags of `shunt bench`.
type benchFlags struct {
	bench.Options
	json, html, output string
	compare            bool
}

func newBenchCommand() *cobra.Command {
	var o benchFlags
	c := &cobra.Command{
		Use:   "bench [flags] | bench --compare A.json B.json",
		Short: "Measure it beside iptables and nftables, on this machine",
		Long: "Bench makes a node for each contender out of network namespaces and cgroups, programs the same services on all, and\n" +
			"measures connections, throughput, updates, loading and memory in interleaved rounds, from pods and from outside:\n" +
			"direct (no proxy, no rules), shunt, and rules of the structure that kube-proxy writes; with an API server shunt's\n" +
			"daemon and the real kube-proxy (`make bench` starts and builds those). It uses nothing of this machine's own\n" +
			"network and removes everything when it ends. It needs root, and a machine that does little else.",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case o.compare && len(args) != 2:
				return errors.New("--compare takes two files that --json wrote")
			case !o.compare && len(args) > 0:
				return fmt.Errorf("bench takes no arguments without --compare: %q", args)
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if o.compare {
				return compareReports(c.OutOrStdout(), &o, args[0], args[1])
			}
			defer surviveBrokenPipe()()
			ctx, stop := endOnHangup(c.Context())
			defer stop()
			return runBench(ctx, c.OutOrStdout(), c.ErrOrStderr(), &o)
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.IntSliceVar(&o.Services, "services", []int{10, 1000, 10_000}, "numbers of services to measure at, up to 100000")
	f.IntSliceVar(&o.Endpoints, "endpoints", []int{10}, "numbers of endpoints that a service has, each with every number of services, up to 100")
	f.IntVar(&o.Rounds, "rounds", 40, "rounds of connections for each number of services")
	f.IntVar(&o.Exchanges, "exchanges", 30, "exchanges of each kind, contender and destination in a round")
	f.DurationVar(&o.Burst, "burst", 100*time.Millisecond, "how long connections, packets and bytes are counted in a round, each")
	f.IntVar(&o.Updates, "updates", 20, "changes of an endpoint for each number of services and contender")
	f.IntVar(&o.Loads, "loads", 3, "how often everything is loaded for each number of services and contender")
	f.StringSliceVar(&o.Contenders, "contenders", nil, "who takes part; direct always does (default: "+strings.Join(bench.Defaults(false), ",")+"; with --kubeconfig: "+strings.Join(bench.Defaults(true), ",")+")")
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "kubeconfig `file` of an API server for the benchmark alone: the daemon and kube-proxy take the services from it, and changes are written to it")
	f.StringVar(&o.KubeProxy, "kube-proxy", "", "`path` of the real kube-proxy, which then takes part in its modes")
	f.StringVar(&o.json, "json", "", "write the whole report to this `file`")
	f.StringVar(&o.html, "html", "", "write a page with plots to this `file`")
	f.BoolVar(&o.KeepObjects, "keep-objects", false, "leave the services in the API server, which nothing needs any more: thousands take minutes to remove")
	f.BoolVar(&o.compare, "compare", false, "compare two reports that --json wrote, instead of measuring")
	addOutputFlag(c, &o.output, "json")
	return c
}

func runBench(ctx context.Context, stdout, stderr io.Writer, o *benchFlags) error {
	if err := o.Check(); err != nil {
		return usageError{err}
	}
	if err := bench.Preflight(o.Options, defaultBPFFSRoot); err != nil {
		return err
	}
	for _, file := range []string{o.json, o.html} {
		if err := writable(file); err != nil {
			return err
		}
	}
	bar := newProgressBar(stderr)
	o.Progress = bar.show
	o.Logf = func(format string, args ...any) {
		bar.clear()
		fmt.Fprintf(stderr, format+"\n", args...)
	}
	report, err := bench.Run(ctx, o.Options)
	bar.clear()
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted; nodes, pods, rules and maps were removed")
	}
	if err != nil {
		return err
	}
	if o.json != "" {
		if err := report.Write(o.json); err != nil {
			return err
		}
	}
	if o.html != "" {
		if err := report.WriteHTML(o.html); err != nil {
			return err
		}
	}
	return writeOutput(stdout, o.output, report, report.Table)
}

// writable returns an error if the file can't be written. It is called before the measurement,
// and does not change the file's contents.
func writable(file string) error {
	if file == "" {
		return nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("the report can't be written: %w", err)
	}
	return f.Close()
}

func compareReports(w io.Writer, o *benchFlags, oldFile, newFile string) error {
	before, err := bench.Read(oldFile)
	if err != nil {
		return err
	}
	after, err := bench.Read(newFile)
	if err != nil {
		return err
	}
	c := bench.Compare(before, after)
	return writeOutput(w, o.output, c, c.Table)
}
