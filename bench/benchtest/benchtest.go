// SPDX-License-Identifier: Apache-2.0

// Package benchtest checks the report of a benchmark that has just been run: that
// the report is complete, and that its numbers follow from its samples. It does not
// depend on how the report is made. Tests that run a benchmark call Check.
package benchtest

import (
	"math"
	"slices"
	"strings"
	"testing"

	"shunt/bench"
)

// Check fails the test if a part of the report is missing or wrong. contenders are
// the contenders of the run's options.
func Check(t *testing.T, r *bench.Report, contenders []string) {
	t.Helper()
	for _, s := range r.Series {
		recount(t, s, r.Find(bench.Key{Size: s.Size, Contender: "direct", Path: limit(s.Path), Measure: s.Measure}))
	}
	var names []string
	for _, c := range r.Contenders {
		names = append(names, c.Name)
		if c.Missing != "" {
			t.Logf("%s: %s", c.Name, c.Missing)
			continue
		}
		for _, n := range r.Setup.Sizes() {
			allMeasured(t, r, c.Name, n)
		}
	}
	if !slices.Equal(names, contenders) {
		t.Errorf("contenders %v in the report, want %v: none is left out in silence", names, contenders)
	}
}

// limit is the path of direct that a path is compared with.
func limit(p bench.Path) bench.Path {
	for _, kind := range []string{"near", "far"} {
		if strings.HasPrefix(string(p), kind+"-") {
			return bench.Path(kind + "-pod")
		}
	}
	return bench.PathPod
}

// paths returns the paths by which a contender is asked.
func paths(name string) []bench.Path {
	if name == "direct" {
		return []bench.Path{bench.PathPod, bench.PathNear, bench.PathFar}
	}
	return []bench.Path{bench.PathPod, bench.PathFirst, bench.PathLast,
		bench.PathNearFirst, bench.PathNearLast, bench.PathFarFirst, bench.PathFarLast}
}

// allMeasured fails the test if a series of a contender at a size is missing or incomplete.
func allMeasured(t *testing.T, r *bench.Report, name string, n bench.Size) {
	t.Helper()
	o := r.Setup
	want := map[bench.Key]int{} // values in all
	add := func(p bench.Path, m bench.Measure, count int) {
		want[bench.Key{Size: n, Contender: name, Path: p, Measure: m}] = count
	}
	if name != "direct" {
		add(bench.PathNone, bench.Update, o.Updates)
		add(bench.PathNone, bench.Load, o.Loads)
		add(bench.PathNone, bench.KernelMem, o.Loads)
	}
	if strings.HasPrefix(name, "shunt") || strings.HasPrefix(name, "kube-proxy") {
		add(bench.PathNone, bench.ProcessMem, o.Loads)
	}
	for _, p := range paths(name) {
		for _, m := range []bench.Measure{bench.ConnectTCP, bench.ExchangeTCP, bench.ExchangeUDP} {
			add(p, m, o.Rounds*o.Exchanges)
		}
		add(p, bench.RateTCP, o.Rounds)
		if strings.HasSuffix(string(p), "last") || name == "direct" {
			add(p, bench.EstablishedTCP, o.Rounds*o.Exchanges)
			add(p, bench.CPUPacket, o.Rounds)
			add(p, bench.Throughput, o.Rounds)
		}
		// A busy machine may leave a short burst without a connection.
		if s := r.Find(bench.Key{Size: n, Contender: name, Path: p, Measure: bench.CPUTCP}); s == nil || s.Result.N == 0 {
			t.Errorf("no CPU time of %s, path %s", name, p)
		}
	}
	for k, count := range want {
		s := r.Find(k)
		if s == nil {
			t.Errorf("nothing of %+v", k)
		} else if s.Result.N != count || s.Result.Errors != 0 || s.Unit == "" {
			t.Errorf("%+v: %d values, %d errors, unit %q; want %d values", k, s.Result.N, s.Result.Errors, s.Unit, count)
		} else if k.Measure != bench.KernelMem && k.Measure != bench.CPUPacket && s.Result.P50 <= 0 {
			t.Errorf("%+v: nothing takes %v", k, s.Result.P50)
		}
	}
}

// rank returns the smallest value such that at least the given part of all values is
// not above it (nearest rank).
func rank(v []float64, part float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	for i, x := range v {
		if float64(i+1)/float64(len(v)) >= part-1e-12 {
			return x
		}
	}
	return math.NaN()
}

// recount computes a series' numbers from its samples, independently of package bench.
func recount(t *testing.T, s, direct *bench.Series) {
	t.Helper()
	var all, medians, ratios []float64
	values := s.Values()
	if len(values) != len(s.Rounds) {
		t.Fatalf("%+v: %d rounds of values, %d of sums", s.Key, len(values), len(s.Rounds))
	}
	for i, round := range s.Rounds {
		all = append(all, values[i]...)
		if round.N != len(values[i]) || round.N > 0 && (round.P50 != rank(values[i], 0.5) || round.P99 != rank(values[i], 0.99)) {
			t.Errorf("%+v, round %d: %+v of %v", s.Key, i, round, values[i])
		}
		if round.N == 0 { // nobody was answered in a burst
			continue
		}
		medians = append(medians, rank(values[i], 0.5))
		if direct != nil && direct != s {
			if base := rank(direct.Values()[i], 0.5); base > 0 { // not NaN either
				ratios = append(ratios, rank(values[i], 0.5)/base)
			}
		}
	}
	res := s.Result
	if len(all) > 0 && (res.P50 != rank(all, 0.5) || res.P90 != rank(all, 0.9) || res.P99 != rank(all, 0.99)) {
		t.Errorf("%+v: %+v of %v", s.Key, res, all)
	}
	interval(t, s.Key, res.Rounds, medians)
	if (res.Ratio == nil) != (len(ratios) == 0) {
		t.Errorf("%+v: ratio %v, %d rounds to compare", s.Key, res.Ratio, len(ratios))
	} else if res.Ratio != nil {
		interval(t, s.Key, *res.Ratio, ratios)
	}
}

func interval(t *testing.T, k bench.Key, iv bench.Interval, v []float64) {
	t.Helper()
	slices.Sort(v)
	n := len(v)
	if n == 0 {
		return
	}
	if want := (v[(n-1)/2] + v[n/2]) / 2; math.Abs(iv.Value-want) > 1e-9*math.Abs(want) || iv.N != n {
		t.Errorf("%+v: median %v of %v, want %v", k, iv.Value, v, want)
	}
	// Of up to eight values all are needed for 95 of 100: 1 - 2/2^n, and of
	// seven the second smallest and largest hold the median 7 times in 8.
	if n <= 8 && (iv.Low != v[0] || iv.High != v[n-1] || math.Abs(iv.Level-(1-2/math.Pow(2, float64(n)))) > 1e-9) {
		t.Errorf("%+v: interval %+v of %v", k, iv, v)
	}
}
