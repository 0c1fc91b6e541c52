// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"shunt/bpf"
	"shunt/maps"
)

type cleanupResult struct {
	BPFFSRoot string `json:"bpffsRoot"`
	// Removed is set if something was removed.
	Removed bool `json:"removed"`
	DryRun  bool `json:"dryRun"`
	// Attached lists the programs that were attached, Pins the paths that were pinned, Kept
	// the paths in the directory that can't be recognised as shunt's.
	Attached []string `json:"attached"`
	Pins     []string `json:"pins"`
	Kept     []string `json:"kept"`
}

func newCleanupCommand() *cobra.Command {
	var root, output string
	var kubeProxy, dryRun bool
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Detach the programs and remove the maps of a stopped daemon, or what kube-proxy left",
		Long: "Cleanup takes out of effect and removes what `shunt run` left in place when it ended: of network devices,\n" +
			"what is attached by links below --bpffs-root or by filters in this network namespace. Connections of this\n" +
			"node's pods and processes go on, since nothing translates them once they are established; those from\n" +
			"outside to a service end. It removes what is shunt's by its kind and name, and keeps and lists the rest; it\n" +
			"fails where something of it is still attached. --dry-run only says what it would do, also while shunt runs.\n\n" +
			"With --kube-proxy it removes what a kube-proxy left in this network namespace instead, and nothing of\n" +
			"shunt's: rules of iptables (both variants), nftables and IPVS, for IPv4 and IPv6, also while shunt runs.\n" +
			"Other people's rules stay. Established connections go on, but for those of IPVS. A kube-proxy that still\n" +
			"runs has to be stopped first.",
		RunE: func(c *cobra.Command, _ []string) error {
			if kubeProxy && c.Flags().Changed("bpffs-root") {
				return usageErrorf("--kube-proxy and --bpffs-root: nothing of shunt's is removed with --kube-proxy; run cleanup twice")
			}
			if kubeProxy {
				return cleanupKubeProxy(c, output, dryRun)
			}
			res, err := cleanup(root, dryRun)
			if err != nil {
				return err
			}
			return writeOutput(c.OutOrStdout(), output, res, res.table)
		},
	}
	addOutputFlag(c, &output, "json")
	addBPFFSRootFlag(c, &root)
	c.Flags().BoolVar(&kubeProxy, "kube-proxy", false, "remove what a kube-proxy left on this node, and nothing else")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be removed")
	return c
}

func addBPFFSRootFlag(c *cobra.Command, root *string) {
	c.Flags().StringVar(root, "bpffs-root", defaultBPFFSRoot, "`directory` of the daemon's maps and links")
}

func (r *cleanupResult) table(w io.Writer) {
	if r.DryRun {
		for _, what := range r.Attached {
			fmt.Fprintf(w, "would detach %s\n", what)
		}
		for _, pin := range r.Pins {
			fmt.Fprintf(w, "would remove %s\n", pin)
		}
	}
	for _, path := range r.Kept {
		fmt.Fprintf(w, "kept %s, which nothing shows to be shunt's\n", path)
	}
	switch {
	case r.Removed:
		fmt.Fprintf(w, "removed links and maps below %s, and filters of devices here\n", r.BPFFSRoot)
	case len(r.Attached)+len(r.Pins) == 0:
		fmt.Fprintf(w, "nothing to remove below %s\n", r.BPFFSRoot)
	}
}

// survey sets Attached, Pins and Kept.
func (r *cleanupResult) survey() error {
	set, err := maps.FindLeft(r.BPFFSRoot)
	if err != nil {
		return err
	}
	left, err := bpf.FindLeft(r.BPFFSRoot)
	if err != nil {
		return err
	}
	r.Attached = append(r.Attached, left.Attached...)
	r.Pins = append(append(r.Pins, left.Pins...), set.Pins...)
	r.Kept = append(append(r.Kept, left.Foreign...), set.Foreign...)
	return nil
}

// cleanup detaches the programs before it removes the maps, so that no attached program is
// left without its pinned maps.
func cleanup(root string, dryRun bool) (*cleanupResult, error) {
	root, err := bpffsRoot(root)
	res := &cleanupResult{BPFFSRoot: root, DryRun: dryRun, Attached: []string{}, Pins: []string{}, Kept: []string{}}
	if err != nil {
		return res, err
	}
	if err := bpf.RequireRoot(); err != nil {
		return res, err
	}
	_, missing := os.Stat(root)
	gone := errors.Is(missing, os.ErrNotExist)
	if !gone {
		if err := bpf.CheckBPFFS(root); err != nil {
			return res, err
		}
		// Another user's directory may contain links to files that a daemon uses.
		if err := bpf.CheckOwn(root); err != nil {
			return res, err
		}
	}
	if err := res.survey(); err != nil || dryRun {
		return res, err
	}
	if gone { // filters on devices have no pins, and can remain without the bpf file system
		res.Removed = len(res.Attached) > 0
		return res, bpf.Detach(root)
	}
	lock, err := bpf.TakeLock(root)
	if err != nil {
		return res, err
	}
	defer func() { _ = lock.Release() }() // the directory is gone, or nothing was done
	if err := errors.Join(bpf.Detach(root), maps.Remove(root)); err != nil {
		return res, err
	}
	if res.Removed = len(res.Attached)+len(res.Pins) > 0; !res.Removed {
		return res, nil // the directory can't be recognised as shunt's
	}
	// The directory stays if it is a mount point, or contains pins of other programs.
	stays := []error{os.ErrNotExist, unix.EBUSY, unix.ENOTEMPTY}
	if err := os.Remove(root); err != nil && !slices.ContainsFunc(stays, func(e error) bool { return errors.Is(err, e) }) {
		return res, fmt.Errorf("remove directory %s: %w", root, err)
	}
	return res, nil
}
