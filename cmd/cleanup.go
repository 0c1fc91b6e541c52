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
	// Removed: there was something to remove.
	Removed bool `json:"removed"`
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
			"outside to a service end.\n\n" +
			"With --kube-proxy it removes what a kube-proxy left in this network namespace instead, and nothing of\n" +
			"shunt's: rules of iptables (both variants), nftables and IPVS, for IPv4 and IPv6, also while shunt runs.\n" +
			"Other people's rules stay. Established connections go on, but for those of IPVS. A kube-proxy that still\n" +
			"runs has to be stopped first.",
		RunE: func(c *cobra.Command, _ []string) error {
			if dryRun && !kubeProxy {
				return usageErrorf("--dry-run is for --kube-proxy only")
			}
			if kubeProxy && c.Flags().Changed("bpffs-root") {
				return usageErrorf("--kube-proxy and --bpffs-root: nothing of shunt's is removed with --kube-proxy; run cleanup twice")
			}
			if kubeProxy {
				return cleanupKubeProxy(c, output, dryRun)
			}
			res, err := cleanup(root)
			if err != nil {
				return err
			}
			return writeOutput(c.OutOrStdout(), output, res, func(w io.Writer) {
				if res.Removed {
					fmt.Fprintf(w, "removed links and maps below %s, and filters of devices here\n", root)
				} else {
					fmt.Fprintf(w, "nothing to remove below %s\n", root)
				}
			})
		},
	}
	addOutputFlag(c, &output, "json")
	addBPFFSRootFlag(c, &root)
	c.Flags().BoolVar(&kubeProxy, "kube-proxy", false, "remove what a kube-proxy left on this node, and nothing else")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "with --kube-proxy: only say what would be removed")
	return c
}

func addBPFFSRootFlag(c *cobra.Command, root *string) {
	c.Flags().StringVar(root, "bpffs-root", defaultBPFFSRoot, "`directory` of the daemon's maps and links")
}

// cleanup detaches before it removes: no program runs without its maps.
func cleanup(root string) (cleanupResult, error) {
	root, err := bpffsRoot(root)
	res := cleanupResult{BPFFSRoot: root}
	if err != nil {
		return res, err
	}
	if err := bpf.RequireRoot(); err != nil {
		return res, err
	}
	if _, err := os.Stat(root); errors.Is(err, os.ErrNotExist) {
		// Filters on devices need no pins, and outlive a bpf file system.
		res.Removed, err = bpf.DetachFilters()
		return res, err
	}
	if err := bpf.RequireBPFFS(root, false); err != nil {
		return res, err
	}
	lock, err := bpf.TakeLock(root)
	if err != nil {
		return res, err
	}
	defer func() { _ = lock.Release() }() // the directory is gone, or nothing was done
	res.Removed = true
	if err := errors.Join(bpf.Detach(root), maps.Remove(root)); err != nil {
		return res, err
	}
	// It stays if it is a file system of its own, or holds what others have pinned.
	stays := []error{os.ErrNotExist, unix.EBUSY, unix.ENOTEMPTY}
	if err := os.Remove(root); err != nil && !slices.ContainsFunc(stays, func(e error) bool { return errors.Is(err, e) }) {
		return res, fmt.Errorf("remove directory %s: %w", root, err)
	}
	return res, nil
}
