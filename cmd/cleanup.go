package cmd

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

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
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Detach the programs and remove the maps of a stopped daemon",
		Long: "Cleanup takes out of effect and removes what `shunt run` left in place when it ended. Connections that\n" +
			"are established go on: nothing translates them any more.",
		RunE: func(c *cobra.Command, _ []string) error {
			res, err := cleanup(root)
			if err != nil {
				return err
			}
			return writeOutput(c.OutOrStdout(), output, res, func(w io.Writer) {
				if res.Removed {
					fmt.Fprintf(w, "removed links and maps below %s\n", root)
				} else {
					fmt.Fprintf(w, "nothing to remove below %s\n", root)
				}
			})
		},
	}
	addOutputFlag(c, &output, "json")
	addBPFFSRootFlag(c, &root)
	return c
}

func addBPFFSRootFlag(c *cobra.Command, root *string) {
	c.Flags().StringVar(root, "bpffs-root", defaultBPFFSRoot, "`directory` of the daemon's maps and links")
}

// cleanup detaches before it removes: no program runs without its maps.
func cleanup(root string) (cleanupResult, error) {
	res := cleanupResult{BPFFSRoot: root}
	if _, err := os.Stat(root); errors.Is(err, os.ErrNotExist) {
		return res, nil
	}
	if err := bpf.RequireRoot(); err != nil {
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
	if err := os.Remove(root); err != nil && !errors.Is(err, os.ErrNotExist) {
		return res, fmt.Errorf("remove directory %s: %w", root, err)
	}
	return res, nil
}
