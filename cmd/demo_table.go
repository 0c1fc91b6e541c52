// SPDX-License-Identifier: Apache-2.0

//go:build !node

package cmd

import (
	"fmt"
	"io"
	stdmaps "maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// table writes the results as a table.
func (r *demoReport) table(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FROM\tASKED\tADDRESS\tPROTO\tANSWERED BY\tSERVICE\tDIRECT\tRATIO\t")
	requests := 0
	for _, res := range r.Results {
		requests += res.Requests
		service, direct, ratio := "-", "-", "-"
		if res.Service > 0 {
			service = fmt.Sprintf("%.0f µs", res.Service)
		}
		if res.Direct > 0 {
			direct, ratio = fmt.Sprintf("%.0f µs", res.Direct), fmt.Sprintf("%.2f", res.Ratio)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n",
			res.From, res.Frontend, res.Address, res.Protocol, res.answeredBy(), service, direct, ratio)
	}
	_ = t.Flush() // errors of the output are ignored, here as below
	right := 0
	for _, res := range r.Results {
		if res.OK {
			right++
			continue
		}
		fmt.Fprintf(w, "\nWRONG: %s, %s, %s %s: expected %s: %s\n",
			res.From, res.Frontend, res.Address, res.Protocol, res.Expected, res.Problem)
	}
	fmt.Fprintf(w, "\n%d of %d as expected, %d requests to services, %.1f s.\n", right, len(r.Results), requests, r.Elapsed)
}

// answeredBy returns the cell with the names of the pods that answered.
func (res demoResult) answeredBy() string {
	switch {
	case !res.OK:
		return "WRONG, see below"
	case res.Expected == expectRefused:
		return "nothing: connection refused"
	}
	var parts []string
	for _, name := range slices.Sorted(stdmaps.Keys(res.Answers)) {
		parts = append(parts, fmt.Sprintf("%s ×%d", name, res.Answers[name]))
	}
	return strings.Join(parts, ", ")
}
