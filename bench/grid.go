// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// grid is a table, for the terminal and for the page.
type grid struct {
	Title string
	Head  []string
	Rows  [][]string
}

func (g *grid) write(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "%s\n", g.Title)
	for _, row := range append([][]string{g.Head}, g.Rows...) {
		fmt.Fprintf(tw, "  %s\n", strings.Join(row, "\t"))
	}
	tw.Flush()
}

// grids returns the tables of one size, without empty ones.
func (r *Report) grids(size Size) []grid {
	var all []grid
	for _, g := range []grid{r.connectionGrid(size), r.establishedGrid(size), r.controlGrid(size)} {
		if len(g.Rows) > 0 {
			all = append(all, g)
		}
	}
	return all
}

// allPaths is in the order of the tables.
var allPaths = []Path{PathPod, PathFirst, PathLast, PathNear, PathNearFirst, PathNearLast, PathFar, PathFarFirst, PathFarLast}

// pathRows returns a row for every contender and path with a measure. It orders them by
// path: rows to compare are next to each other.
func (r *Report) pathRows(size Size, m Measure, cells func(of func(Measure) *Series) []string) [][]string {
	var rows [][]string
	for _, path := range allPaths {
		for _, name := range r.took() {
			of := func(m Measure) *Series { return r.Find(Key{size, name, path, m}) }
			if of(m) != nil {
				rows = append(rows, append([]string{path.words(), name}, cells(of)...))
			}
		}
	}
	return rows
}

func (r *Report) connectionGrid(size Size) grid {
	g := grid{Title: "A connection each: µs at p50, p90, p99; in brackets 95% intervals", Head: []string{"to", "contender",
		"connect", "to direct", "TCP exchange", "to direct", "UDP exchange", "to direct", "conn/s", "to direct", "CPU µs"}}
	g.Rows = r.pathRows(size, ExchangeTCP, func(of func(Measure) *Series) []string {
		var cells []string
		for _, m := range []Measure{ConnectTCP, ExchangeTCP, ExchangeUDP} {
			cells = append(cells, percentiles(of(m)), ratio(of(m)))
		}
		return append(cells, number(value(of(RateTCP))), ratio(of(RateTCP)), number(value(of(CPUTCP))))
	})
	return g
}

func (r *Report) establishedGrid(size Size) grid {
	g := grid{Title: "Connections that are there: µs at p50, p90, p99; one stream; CPU of the whole machine", Head: []string{"to",
		"contender", "request, reply", "to direct", "Gbit/s", "to direct", "CPU µs a packet", "to direct"}}
	g.Rows = r.pathRows(size, EstablishedTCP, func(of func(Measure) *Series) []string {
		return []string{percentiles(of(EstablishedTCP)), ratio(of(EstablishedTCP)), number(value(of(Throughput))), ratio(of(Throughput)),
			number(value(of(CPUPacket))), ratio(of(CPUPacket))}
	})
	return g
}

func (r *Report) controlGrid(size Size) grid {
	g := grid{Title: "Changes, start and memory", Head: []string{"", "contender", "changed endpoint p50", "95% between", "p90", "p99",
		"start to all answering", "kernel memory", "process"}}
	for _, name := range r.took() {
		k := Key{Size: size, Contender: name}
		of := func(m Measure) *Series { k.Measure = m; return r.Find(k) }
		u := of(Update)
		if u == nil {
			continue
		}
		iv, res := u.Result.Rounds, u.Result
		g.Rows = append(g.Rows, []string{"", name, number(res.P50) + " ms", number(iv.Low) + "–" + number(iv.High),
			number(res.P90) + " ms", number(res.P99) + " ms", number(value(of(Load))) + " ms",
			mebibytes(of(KernelMem)), mebibytes(of(ProcessMem))})
	}
	return g
}

func percentiles(s *Series) string {
	if s == nil || s.Result.N == 0 {
		return "-"
	}
	return fmt.Sprintf("%s %s %s", number(s.Result.P50), number(s.Result.P90), number(s.Result.P99))
}

func ratio(s *Series) string {
	if s == nil {
		return "-"
	}
	return s.Result.Ratio.String()
}
