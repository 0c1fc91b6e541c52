// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
	"math"
	"strings"
)

// Table writes the report for a terminal.
func (r *Report) Table(w io.Writer) {
	m := r.Machine
	fmt.Fprintf(w, "Linux %s, %s, %d CPUs, %d MiB, load average at the start %s; %s, %.0f s\n",
		m.Kernel, m.CPU, m.CPUs, m.MemoryMiB, m.Load, r.Started.UTC().Format("2006-01-02 15:04 UTC"), r.Seconds)
	for _, c := range r.Contenders {
		if c.Missing != "" {
			fmt.Fprintf(w, "%s did not take part: %s\n", c.Name, c.Missing)
		}
	}
	for _, size := range r.Setup.Sizes() {
		fmt.Fprintf(w, "\n%v\n", size)
		for _, g := range r.grids(size) {
			g.write(w)
		}
	}
	fmt.Fprintln(w, "\nNot measured:")
	for _, x := range r.NotMeasured {
		fmt.Fprintf(w, "  %s: %s\n", x.What, x.Why)
	}
	if e := r.errors(); e > 0 {
		fmt.Fprintf(w, "\n%d exchanges were NOT ANSWERED; the JSON says which\n", e)
	}
}

// errors counts the exchanges without an answer.
func (r *Report) errors() int {
	n := 0
	for _, s := range r.Series {
		if s.Measure != ConnectTCP { // the same exchanges as ExchangeTCP
			n += s.Result.Errors
		}
	}
	return n
}

var pathWords = map[Path]string{PathPod: "pod itself", PathFirst: "first service", PathLast: "last service",
	PathNear: "routed, pod here", PathNearFirst: "first node port, pod here", PathNearLast: "last node port, pod here",
	PathFar: "routed, pod elsewhere", PathFarFirst: "first node port, pod elsewhere", PathFarLast: "last node port, pod elsewhere"}

// words returns the path's description.
func (p Path) words() string { return pathWords[p] }

// String returns for instance "1.02 (1.00–1.04)", and "-" for nil.
func (iv *Interval) String() string {
	if iv == nil {
		return "-"
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", iv.Value, iv.Low, iv.High)
}

func value(s *Series) float64 {
	if s == nil || s.Result.N == 0 {
		return math.NaN()
	}
	return s.Result.Rounds.Value
}

func mebibytes(s *Series) string {
	if s == nil {
		return "-"
	}
	return number(value(s)) + " MiB"
}

// number formats a value with three significant digits and thousands separators.
func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "-"
	case a < 9.995:
		return fmt.Sprintf("%.2f", v)
	case a < 99.95:
		return fmt.Sprintf("%.1f", v)
	}
	text := fmt.Sprintf("%.0f", v)
	sign := ""
	if strings.HasPrefix(text, "-") {
		sign, text = "-", text[1:]
	}
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return sign + text
}
