// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"shunt/lab"
)

// slowQuantile follows the definition: the smallest value such that at least a part q of
// all values is not above it.
func slowQuantile(values []float64, q float64) float64 {
	best := math.Inf(1)
	for _, v := range values {
		n := 0
		for _, w := range values {
			if w <= v {
				n++
			}
		}
		if float64(n) >= q*float64(len(values)) && v < best {
			best = v
		}
	}
	return best
}

func TestQuantile(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for n := 1; n < 120; n++ {
		values := make([]float64, n)
		for i := range values {
			values[i] = float64(random.IntN(40)) // some are equal
		}
		sorted := slices.Sorted(slices.Values(values))
		for _, q := range quantilePoints {
			if got, want := quantile(sorted, q), slowQuantile(values, q); got != want {
				t.Errorf("%v of %v: %v, want %v", q, sorted, got, want)
			}
		}
	}
	if !math.IsNaN(quantile(nil, 0.5)) || !math.IsNaN(middle(nil)) {
		t.Error("there is no quantile of nothing")
	}
}

// TestMedianInterval computes the interval's level by Pascal's triangle.
func TestMedianInterval(t *testing.T) {
	for n := 1; n <= 40; n++ {
		values := make([]float64, n)
		for i := range values {
			values[i] = float64(i + 1)
		}
		iv := medianInterval(values)
		row := []float64{1} // of the triangle
		for range n {
			next := make([]float64, len(row)+1)
			for i, v := range row {
				next[i] += v
				next[i+1] += v
			}
			row = next
		}
		level := func(k int) float64 { // of the kth smallest and the kth largest
			below := 0.0
			for i := range k {
				below += row[i]
			}
			return 1 - 2*below/math.Pow(2, float64(n))
		}
		k := int(iv.Low)
		if iv.N != n || iv.Value != float64(n+1)/2 || int(iv.High) != n+1-k || math.Abs(iv.Level-max(0, level(k))) > 1e-9 {
			t.Errorf("n=%d: %+v, level of %d is %v", n, iv, k, level(k))
		}
		if n >= 6 && iv.Level < confidence {
			t.Errorf("n=%d: level %v", n, iv.Level)
		}
		if k+1 <= (n+1)/2 && level(k+1) >= confidence {
			t.Errorf("n=%d: the interval is wider than it needs to be", n)
		}
	}
	if iv := medianInterval([]float64{9, 1, 5, 200}); iv.Value != 7 || iv.Low != 1 || iv.High != 200 {
		t.Errorf("%+v: the median of 1, 5, 9, 200 is 7", iv)
	}
	if iv := medianInterval(nil); iv != (Interval{}) {
		t.Errorf("%+v of nothing", iv)
	}
}

func TestIntervalApart(t *testing.T) {
	a := Interval{Low: 1, High: 2}
	for _, test := range []struct {
		b    Interval
		want bool
	}{{Interval{Low: 2.1, High: 3}, true}, {Interval{Low: 2, High: 3}, false}, {Interval{Low: 0, High: 0.9}, true}, {Interval{Low: 0, High: 9}, false}} {
		if a.apart(test.b) != test.want || test.b.apart(a) != test.want {
			t.Errorf("%v and %v", a, test.b)
		}
	}
}

func TestConclude(t *testing.T) {
	r := &Report{}
	direct := r.series(Key{Size{10, 10}, nameDirect, PathPod, ExchangeTCP})
	other := r.series(Key{Size{10, 10}, nameShunt, PathLast, ExchangeTCP})
	direct.add([]float64{10, 20, 30}, 0)
	direct.add([]float64{40}, 0)
	direct.add(nil, 2) // no answer in this round
	other.add([]float64{30, 10, 50}, 1)
	other.add([]float64{60, 1000}, 0)
	other.add([]float64{7}, 0)
	lonely := r.series(Key{Size{10, 10}, nameShunt, PathNone, Update})
	lonely.add([]float64{3}, 0)
	r.conclude()
	o := other.Result
	if o.N != 6 || o.Errors != 1 || o.P50 != 30 || o.P99 != 1000 || math.Abs(o.Mean-1157.0/6) > 1e-9 {
		t.Errorf("%+v", o)
	}
	// Ratios by round: 30/20 and 60/40. The third round has no direct.
	if o.Ratio == nil || o.Ratio.N != 2 || o.Ratio.Value != 1.5 || o.Rounds.Value != 30 || o.Rounds.N != 3 {
		t.Errorf("ratio %+v, rounds %+v", o.Ratio, o.Rounds)
	}
	if direct.Result.Ratio != nil || direct.Result.Errors != 2 || direct.Result.N != 4 || lonely.Result.Ratio != nil {
		t.Errorf("%+v", direct.Result)
	}
	if r.errors() != 3 {
		t.Errorf("%d errors, want 3", r.errors())
	}
}

func TestFirstOf(t *testing.T) {
	const start = 1000
	old := lab.Record{Start: 900, Connected: 950, End: 990, Server: "old"}
	late := lab.Record{Start: 1100, Connected: 1150, End: 1190, Server: "old"}
	hit := lab.Record{Start: 1200, Connected: 1250, End: 1290, Server: "new"}
	again := lab.Record{Start: 1300, Connected: 1350, End: 1390, Server: "new"}
	if d, err := firstOf([]lab.Record{old, late, hit, again}, "new", start); err != nil || d != 250*time.Nanosecond {
		t.Errorf("%v, %v", d, err)
	}
	for name, records := range map[string][]lab.Record{
		"nobody asked before": {late, hit}, "never": {old, late},
		"before the change": {old, {Start: 960, Connected: 970, Server: "new"}, hit},
	} {
		if d, err := firstOf(records, "new", start); err == nil {
			t.Errorf("%s: %v, want an error", name, d)
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0.00", 1.234: "1.23", 9.996: "10.0", 12.34: "12.3", 99.96: "100", 1234567: "1,234,567",
		999.6: "1,000", -1234: "-1,234", math.NaN(): "-"} {
		if got := number(v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
}

func TestOptionsCheck(t *testing.T) {
	for _, o := range []Options{{Services: []int{2}}, {Services: []int{100_001}}, {Endpoints: []int{101}}, {Rounds: -1}, {Contenders: []string{"iptable"}},
		{Services: []int{100_000}, Endpoints: []int{11}}} {
		if err := o.Check(); err == nil {
			t.Errorf("%+v is not refused", o)
		}
	}
	o := Options{Services: []int{1000, 10, 10}, Contenders: []string{nameShunt}}
	if err := o.Check(); err != nil || !slices.Equal(o.Services, []int{10, 1000}) || !slices.Contains(o.Contenders, nameDirect) {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestProxyName(t *testing.T) {
	for line, want := range map[string]string{
		"/usr/local/bin/kube-proxy --config x": "kube-proxy", "shunt run --manifests x": "shunt run", "shunt bench": "", "shunt": "",
		"vim kube-proxy": "", "": "",
	} {
		if got := proxyName(strings.Split(line, " ")); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
