package bench

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
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
	for _, n := range r.Setup.Services {
		fmt.Fprintf(w, "\n%d services of %d endpoints\n", n, r.Setup.Endpoints)
		r.connectionTable(w, n)
		r.controlTable(w, n)
	}
	fmt.Fprintln(w, "\nNot measured:")
	for _, x := range r.NotMeasured {
		fmt.Fprintf(w, "  %s: %s\n", x.What, x.Why)
	}
	if e := r.errors(); e > 0 {
		fmt.Fprintf(w, "\n%d exchanges were NOT ANSWERED; the JSON says which\n", e)
	}
}

// errors counts what was not answered.
func (r *Report) errors() int {
	n := 0
	for _, s := range r.Series {
		if s.Measure != ConnectTCP { // the same exchanges as ExchangeTCP
			n += s.Result.Errors
		}
	}
	return n
}

// Rows of the tables of connections, in their order.
func (r *Report) rows(n int) []Key {
	var rows []Key
	for _, name := range r.took() {
		for _, path := range []Path{PathFirst, PathLast, PathPod} {
			if r.Find(Key{n, name, path, ExchangeTCP}) != nil {
				rows = append(rows, Key{Services: n, Contender: name, Path: path})
			}
		}
	}
	return rows
}

func (r *Report) connectionTable(w io.Writer, n int) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "  \t\tconnect p50\tp99\tto direct\texchange p50\tp99\tto direct\tUDP p50\tto direct\tconn/s\tCPU/conn")
	for _, row := range r.rows(n) {
		of := func(m Measure) Result {
			row.Measure = m
			if s := r.Find(row); s != nil {
				return s.Result
			}
			return Result{}
		}
		c, x, u := of(ConnectTCP), of(ExchangeTCP), of(ExchangeUDP)
		fmt.Fprintf(tw, "  %s\t%s\t%s µs\t%s µs\t%s\t%s µs\t%s µs\t%s\t%s µs\t%s\t%s\t%s µs\n",
			row.Contender, row.Path.words(), number(c.P50), number(c.P99), c.Ratio,
			number(x.P50), number(x.P99), x.Ratio, number(u.P50), u.Ratio,
			number(of(RateTCP).Rounds.Value), number(of(CPUTCP).Rounds.Value))
	}
	tw.Flush()
}

func (r *Report) controlTable(w io.Writer, n int) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "  \tupdate p50\t95% between\tp99\tload\tmemory: kernel\tprocess")
	for _, name := range r.took() {
		k := Key{Services: n, Contender: name}
		of := func(m Measure) *Series { k.Measure = m; return r.Find(k) }
		u := of(Update)
		if u == nil {
			continue
		}
		iv := u.Result.Rounds
		fmt.Fprintf(tw, "  %s\t%s ms\t%s–%s\t%s ms\t%s ms\t%s\t%s\n", name, number(u.Result.P50), number(iv.Low), number(iv.High),
			number(u.Result.P99), number(value(of(Load))), mebibytes(of(KernelMem)), mebibytes(of(ProcessMem)))
	}
	tw.Flush()
}

var pathWords = map[Path]string{PathPod: "pod itself", PathFirst: "first service", PathLast: "last service",
	PathNear: "routed, pod here", PathNearFirst: "first node port, pod here", PathNearLast: "last node port, pod here",
	PathFar: "routed, pod elsewhere", PathFarFirst: "first node port, pod elsewhere", PathFarLast: "last node port, pod elsewhere"}

// words for a reader.
func (p Path) words() string { return pathWords[p] }

// String gives "1.02 (1.00–1.04)", empty for nil.
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

// number gives three digits that count, and thousands apart.
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
