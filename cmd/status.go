// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"shunt/bpf"
	"shunt/maps"
)

// statusReport is what `shunt status -o json` prints. It is read from the pins, so it is
// available without a daemon too.
type statusReport struct {
	BPFFSRoot string `json:"bpffsRoot"`
	Kernel    string `json:"kernel"`
	// Wrong lists the faults that affect traffic (exit code 1). Degraded lists what is
	// missing while Services are served (exit code 3).
	Wrong    []string `json:"wrong"`
	Degraded []string `json:"degraded"`
	// InEffect is set if every hook of the socket path is attached, for this node's pods.
	InEffect    bool             `json:"inEffect"`
	Daemon      daemonStatus     `json:"daemon"`
	APIServer   watchReport      `json:"apiServer"`
	Attachments []bpf.Attachment `json:"attachments"`
	// Scope is the reason why the hooks don't act on this node's pods; empty if none was
	// found.
	Scope   string       `json:"scope,omitempty"`
	Packets packetStatus `json:"packets"`
	// ServiceCIDRs are the ranges in which addresses that no service has are refused.
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`
	// Problems are the problems of Services.
	Problems  problemsStatus    `json:"problems"`
	Maps      []mapStatus       `json:"maps"`
	Reasons   map[string]uint64 `json:"reasons"`
	Features  []featureStatus   `json:"features"`
	KubeProxy kubeProxyStatus   `json:"kubeProxy"`
}

type daemonStatus struct {
	Running bool   `json:"running"`
	PID     uint32 `json:"pid,omitempty"`
	ABI     uint32 `json:"abi"`
	// Started is when the daemon started, Synced when the maps last contained every known
	// object; nil if never.
	Started *time.Time `json:"started,omitempty"`
	Synced  *time.Time `json:"synced,omitempty"`
	// Pending is the number of changes that were not in the maps after the last reconcile.
	Pending uint32 `json:"pending"`
}

type mapStatus struct {
	Map  string `json:"map"`
	Used uint32 `json:"used"`
	Size uint32 `json:"size"`
	Flag string `json:"flag"`
}

type featureStatus struct {
	Feature string `json:"feature"`
	Has     bool   `json:"has"`
	// Lost describes what does not work without the feature; empty if the kernel has it.
	Lost string `json:"lost,omitempty"`
}

func newStatusCommand() *cobra.Command {
	var root, output string
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what works on this node, what doesn't, and why",
		Long: "Status reads the pinned maps and links: it works with the daemon dead.\n\n" +
			"The exit code is 0 when all is well, 1 when something does not serve as it should, such as a hook that is\n" +
			"not in effect, or when there is nothing to read, and 3 when all serves and something is missing, such as\n" +
			"the daemon. Services that are not served as their objects ask are listed and do not change it: it speaks\n" +
			"of the node. A script finds them under problems in the output of -o json.",
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := readStatus(c.Context(), root)
			if err != nil {
				return err
			}
			return errors.Join(writeOutput(c.OutOrStdout(), output, s, s.table), s.exit())
		},
	}
	addOutputFlag(c, &output, "json")
	addBPFFSRootFlag(c, &root)
	return c
}

// openPins opens the pinned maps, for commands that only read.
func openPins(root string) (*maps.Set, *maps.Kernel, error) {
	root, err := bpffsRoot(root)
	if err != nil {
		return nil, nil, err
	}
	if err := bpf.RequireRoot(); err != nil {
		return nil, nil, err
	}
	if err := maps.CheckABI(root); errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("no maps are pinned below %s: no daemon has run here with this --bpffs-root", root)
	} else if err != nil {
		return nil, nil, err
	}
	set, err := maps.Load(root)
	if err != nil {
		return nil, nil, err
	}
	kernel, err := maps.NewKernel(set)
	if err != nil {
		return nil, nil, errors.Join(err, set.Close())
	}
	return set, kernel, nil
}

func readStatus(ctx context.Context, root string) (*statusReport, error) {
	set, kernel, err := openPins(root)
	if err != nil {
		return nil, err
	}
	defer func() { _ = errors.Join(kernel.Close(), set.Close()) }() // only read
	s := &statusReport{BPFFSRoot: root, Kernel: kernelRelease(), Attachments: bpf.Attachments(root, set)}
	if s.Scope, err = readScope(s.Attachments); err != nil {
		return nil, err
	}
	s.Daemon = readDaemon(root, kernel.Meta())
	s.APIServer = readWatches(root)
	if s.Packets, err = readPackets(root, kernel, s.Daemon); err != nil {
		return nil, err
	}
	dump, err := kernel.Dump()
	if err != nil {
		return nil, err
	}
	if err := s.Packets.setOwn(dump.Allocated); err != nil {
		return nil, err
	}
	s.ServiceCIDRs = dump.ServiceCIDRs
	s.Problems = readProblems(kernel)
	fill, err := kernel.Fill(dump)
	if err != nil {
		return nil, err
	}
	for _, f := range fill {
		s.Maps = append(s.Maps, mapStatus{Map: f.Map, Used: f.Used, Size: f.Size, Flag: f.Flag})
	}
	if s.Reasons, err = kernel.Reasons(); err != nil {
		return nil, err
	}
	s.Features = readFeatures()
	s.KubeProxy, err = readKubeProxy(ctx)
	s.judge()
	return s, err
}

// allAttached reports whether every hook of the socket path is in effect.
func allAttached(all []bpf.Attachment) bool {
	return !slices.ContainsFunc(all, func(a bpf.Attachment) bool { return !a.Attached })
}

func readDaemon(root string, meta maps.Meta) daemonStatus {
	d := daemonStatus{ABI: meta.Abi, PID: meta.Pid, Pending: meta.Pending,
		Started: unixTime(meta.Started), Synced: unixTime(meta.Synced)}
	d.Running = bpf.IsLocked(root)
	return d
}

func unixTime(ns int64) *time.Time {
	if ns == 0 {
		return nil
	}
	t := time.Unix(0, ns).UTC()
	return &t
}

func readFeatures() []featureStatus {
	var all []featureStatus
	for _, f := range bpf.Features() {
		fs := featureStatus{Feature: f.Name, Has: f.Err == nil}
		switch {
		case fs.Has:
		case f.Needed:
			fs.Lost = "everything: shunt can't run on this kernel"
		default:
			fs.Lost = f.Without
		}
		all = append(all, fs)
	}
	return all
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func (s *statusReport) table(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	defer t.Flush()
	state := "not running"
	if s.Daemon.Running {
		state = fmt.Sprintf("running, pid %d", s.Daemon.PID)
	}
	fmt.Fprintf(t, "Daemon:\t%s, map ABI %d\n", state, s.Daemon.ABI)
	fmt.Fprintf(t, "Started:\t%s\n", timeText(s.Daemon.Started))
	fmt.Fprintf(t, "Synced:\t%s, %d changes pending\n", timeText(s.Daemon.Synced), s.Daemon.Pending)
	s.APIServer.table(t, s.Daemon.Running)
	fmt.Fprintf(t, "Kernel:\t%s\n", s.Kernel)
	effect := "in effect: new connections are translated"
	if !s.InEffect {
		effect = "NOT in effect"
	}
	fmt.Fprintf(t, "Socket path:\t%s\n", effect)
	for _, a := range s.Attachments {
		if a.Attached {
			fmt.Fprintf(t, "  %s\tattached to cgroup %d\n", a.Hook, a.Cgroup)
		} else {
			fmt.Fprintf(t, "  %s\t%s\n", a.Hook, a.Problem)
		}
	}
	if s.Scope != "" {
		fmt.Fprintf(t, "  WRONG\t%s\n", s.Scope)
	}
	s.Packets.table(t)
	ranges := "none known"
	if len(s.ServiceCIDRs) > 0 {
		ranges = strings.Trim(fmt.Sprint(s.ServiceCIDRs), "[]")
	}
	fmt.Fprintf(t, "Service CIDRs:\t%s\n", ranges)
	s.Problems.table(t)
	s.KubeProxy.table(t)
	fmt.Fprintln(t, "Maps:")
	for _, m := range s.Maps {
		fmt.Fprintf(t, "  %s\t%d of %d (%.1f %%)", m.Map, m.Used, m.Size, 100*float64(m.Used)/float64(m.Size))
		if m.Flag != "" {
			fmt.Fprintf(t, ", %s", m.Flag)
		}
		fmt.Fprintln(t)
	}
	fmt.Fprintln(t, "Kernel features:")
	for _, f := range s.Features {
		text := "yes"
		if !f.Has {
			text = "no: " + f.Lost
		}
		fmt.Fprintf(t, "  %s\t%s\n", f.Feature, text)
	}
}

func timeText(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return fmt.Sprintf("%s (%s ago)", t.Format(time.RFC3339), time.Since(*t).Round(time.Second))
}
