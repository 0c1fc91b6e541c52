// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"shunt/maps"
)

// version and revision say which source this binary was made of. The linker sets both
// (hack/version.sh ldflags).
var (
	version  = "devel"
	revision = ""
)

type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	// ABI is the version of the maps' layout. A daemon can adopt the maps of another
	// daemon with the same ABI.
	ABI uint32 `json:"abi"`
	Go  string `json:"go"`
}

func readVersion() (versionInfo, error) {
	v := versionInfo{Version: version, Revision: revision, Go: runtime.Version()}
	if v.Revision == "" {
		v.Revision = builtFrom()
	}
	abi, err := maps.ABI()
	v.ABI = abi
	return v, err
}

// builtFrom returns the revision that `go build` recorded, or "".
func builtFrom() string {
	info, _ := debug.ReadBuildInfo()
	if info == nil {
		return ""
	}
	var revision, suffix string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			suffix = "-dirty"
		}
	}
	if revision == "" {
		return ""
	}
	return revision + suffix
}

func newVersionCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary",
		RunE: func(c *cobra.Command, _ []string) error {
			return printVersion(c.OutOrStdout(), output)
		},
	}
	addOutputFlag(c, &output, "json")
	return c
}

func printVersion(w io.Writer, output string) error {
	v, err := readVersion()
	if err != nil {
		return err
	}
	return writeOutput(w, output, v, func(w io.Writer) {
		from := ""
		if v.Revision != "" {
			from = "revision " + v.Revision + ", "
		}
		fmt.Fprintf(w, "shunt %s (%smap ABI %d, %s)\n", v.Version, from, v.ABI, v.Go)
	})
}

// addOutputFlag adds -o with the formats that a command has besides its table.
func addOutputFlag(c *cobra.Command, output *string, formats ...string) {
	usage := "output format, instead of a table: json"
	for _, f := range formats[1:] {
		usage += "|" + f
	}
	c.Flags().StringVarP(output, "output", "o", "", usage)
	c.PreRunE = func(*cobra.Command, []string) error {
		for _, f := range append(formats, "") {
			if *output == f {
				return nil
			}
		}
		return usageErrorf("-o %s: there is %v", *output, formats)
	}
}

// writeOutput writes v as JSON if output is json, else the table.
func writeOutput(w io.Writer, output string, v any, table func(io.Writer)) error {
	if output != "json" {
		table(w)
		return nil
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
