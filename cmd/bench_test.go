package cmd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"shunt/e2e/bench"
)

// TestBench runs all of it, small, and counts again what the report says.
func TestBench(t *testing.T) {
	needRoot(t)
	o := bench.Options{Services: []int{5, 12}, Endpoints: 3, Rounds: 7, Exchanges: 5, Burst: 30 * time.Millisecond, Updates: 2, Loads: 2,
		Logf: t.Logf}
	part := 0.0
	o.Progress = func(p float64, what string) {
		if p < part || p > 1 || what == "" {
			t.Errorf("progress %v after %v: %q", p, part, what)
		}
		part = p
	}
	r, err := bench.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if part != 1 {
		t.Errorf("progress ended at %v", part)
	}
	if labs := demoLabs(t, os.Getpid()); len(labs) > 0 {
		t.Errorf("left: %v", labs)
	}
	for _, s := range r.Series {
		recount(t, s, r.Find(bench.Key{Services: s.Services, Contender: "direct", Path: bench.PathPod, Measure: s.Measure}))
	}
	for _, c := range r.Contenders {
		if c.Missing != "" {
			t.Logf("%s: %s", c.Name, c.Missing)
			continue
		}
		for _, n := range o.Services {
			allMeasured(t, r, c.Name, n, &o)
		}
	}
	if names := len(r.Contenders); names != len(bench.Names) {
		t.Errorf("%d contenders in the report, want %d: none is left out in silence", names, len(bench.Names))
	}
}

// allMeasured says what a contender has to have at n services.
func allMeasured(t *testing.T, r *bench.Report, name string, n int, o *bench.Options) {
	t.Helper()
	want := map[bench.Key]int{} // values in all
	paths := []bench.Path{bench.PathPod}
	if name != "direct" {
		paths = append(paths, bench.PathFirst, bench.PathLast)
		want[bench.Key{Services: n, Contender: name, Measure: bench.Update}] = o.Updates
		want[bench.Key{Services: n, Contender: name, Measure: bench.Load}] = o.Loads
		want[bench.Key{Services: n, Contender: name, Measure: bench.KernelMem}] = o.Loads
	}
	if name == "shunt" {
		want[bench.Key{Services: n, Contender: name, Measure: bench.ProcessMem}] = o.Loads
	}
	for _, p := range paths {
		for _, m := range []bench.Measure{bench.ConnectTCP, bench.ExchangeTCP, bench.ExchangeUDP} {
			want[bench.Key{Services: n, Contender: name, Path: p, Measure: m}] = o.Rounds * o.Exchanges
		}
		want[bench.Key{Services: n, Contender: name, Path: p, Measure: bench.RateTCP}] = o.Rounds
		// A busy machine may leave a short burst without a connection.
		if s := r.Find(bench.Key{Services: n, Contender: name, Path: p, Measure: bench.CPUTCP}); s == nil || s.Result.N == 0 {
			t.Errorf("no CPU time of %s, path %s", name, p)
		}
	}
	for k, count := range want {
		s := r.Find(k)
		if s == nil {
			t.Errorf("nothing of %+v", k)
		} else if s.Result.N != count || s.Result.Errors != 0 || s.Unit == "" {
			t.Errorf("%+v: %d values, %d errors, unit %q; want %d values", k, s.Result.N, s.Result.Errors, s.Unit, count)
		}
	}
}

// recount works a series' numbers out of its samples another way.
func recount(t *testing.T, s, direct *bench.Series) {
	t.Helper()
	var all, medians, ratios []float64
	values := s.Values()
	if len(values) != len(s.Rounds) {
		t.Fatalf("%+v: %d rounds of values, %d of sums", s.Key, len(values), len(s.Rounds))
	}
	rank := func(v []float64, part float64) float64 { // by nearest rank
		v = slices.Clone(v)
		slices.Sort(v)
		for i, x := range v {
			if float64(i+1)/float64(len(v)) >= part-1e-12 {
				return x
			}
		}
		return math.NaN()
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
	if res.P50 != rank(all, 0.5) || res.P90 != rank(all, 0.9) || res.P99 != rank(all, 0.99) {
		t.Errorf("%+v: %+v of %v", s.Key, res, all)
	}
	interval := func(iv bench.Interval, v []float64) {
		slices.Sort(v)
		n := len(v)
		if want := (v[(n-1)/2] + v[n/2]) / 2; math.Abs(iv.Value-want) > 1e-9*math.Abs(want) || iv.N != n {
			t.Errorf("%+v: median %v of %v, want %v", s.Key, iv.Value, v, want)
		}
		// Of up to eight values all are needed for 95 of 100: 1 - 2/2^n, and of
		// seven the second smallest and largest hold the median 7 times in 8.
		if n <= 8 && (iv.Low != v[0] || iv.High != v[n-1] || math.Abs(iv.Level-(1-2/math.Pow(2, float64(n)))) > 1e-9) {
			t.Errorf("%+v: interval %+v of %v", s.Key, iv, v)
		}
	}
	interval(res.Rounds, medians)
	if (res.Ratio == nil) != (len(ratios) == 0) {
		t.Errorf("%+v: ratio %v, %d rounds to compare", s.Key, res.Ratio, len(ratios))
	} else if res.Ratio != nil {
		interval(*res.Ratio, ratios)
	}
}

// TestBenchCommand: files, output, and a comparison of a report with itself.
func TestBenchCommand(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	file, html := filepath.Join(dir, "r.json"), filepath.Join(dir, "r.html")
	run := func(want int, args ...string) (string, string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if code := execute(t.Context(), args, &stdout, &stderr); code != want {
			t.Fatalf("%v: exit code %d, want %d\n%s%s", args, code, want, &stdout, &stderr)
		}
		return stdout.String(), stderr.String()
	}
	out, said := run(exitOK, "bench", "--services", "4", "--endpoints", "2", "--rounds", "2", "--exchanges", "3", "--burst", "5ms",
		"--updates", "1", "--loads", "1", "--contenders", "shunt", "--json", file, "--html", html, "-o", "json")
	var fromStdout bench.Report
	if err := json.Unmarshal([]byte(out), &fromStdout); err != nil || said != "" {
		t.Fatalf("%v; standard error, which is no terminal: %q", err, said)
	}
	fromFile, err := bench.Read(file)
	if err != nil || len(fromFile.Series) != len(fromStdout.Series) || len(fromFile.Contenders) != 2 {
		t.Errorf("%v, %+v", err, fromFile)
	}
	if page, err := os.ReadFile(html); err != nil || !bytes.Contains(page, []byte("</svg>")) {
		t.Errorf("%v, %d bytes of a page", err, len(page))
	}
	out, _ = run(exitOK, "bench", "--compare", file, file)
	if want := fmt.Sprintf("0 of %d beyond noise", len(fromFile.Series)); !strings.Contains(out, want) {
		t.Errorf("no %q in\n%s", want, out)
	}
	run(exitUsage, "bench", "--compare", file)
	run(exitUsage, "bench", file)
	run(exitUsage, "bench", "--services", "1")
	run(exitUsage, "bench", "--contenders", "pf")
	run(exitFailure, "bench", "--compare", file, filepath.Join(dir, "none.json"))
	_, said = run(exitFailure, "bench", "--services", "100000", "--endpoints", "10", "--rounds", "1", "--compare=false", "--contenders", "shunt",
		"--json", filepath.Join(dir, "no", "such", "directory.json"))
	if !strings.Contains(said, "directory") {
		t.Errorf("a file that can't be written is noticed late: %q", said)
	}
}

// TestBenchInterrupted: everything is removed in the midst of it.
func TestBenchInterrupted(t *testing.T) {
	needRoot(t)
	cmd := exec.Command("/proc/self/exe", "bench", "--services", "10", "--rounds", "1000")
	var said bytes.Buffer
	cmd.Stderr, cmd.Stdout = &said, io.Discard
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dir string
	deadline := time.Now().Add(30 * time.Second)
	for ; dir == "" && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, d := range demoLabs(t, cmd.Process.Pid) {
			if spaces, _ := filepath.Glob("/run/netns/shunt-" + filepath.Base(d) + "-nftables-client"); len(spaces) > 0 {
				dir = d
			}
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	if dir == "" {
		t.Fatalf("no node of nftables within 30s: %v, %s", err, &said)
	}
	if err == nil || !strings.Contains(said.String(), "interrupted; ") {
		t.Errorf("%v; it said %q", err, &said)
	}
	names, _ := filepath.Glob("/run/netns/shunt-" + filepath.Base(dir) + "-*")
	mounts, mountsErr := os.ReadFile("/proc/self/mounts")
	if _, statErr := os.Stat(dir); !os.IsNotExist(statErr) || len(names) > 0 || mountsErr != nil || strings.Contains(string(mounts), filepath.Base(dir)) {
		t.Errorf("left: %v (%v), namespaces %v, mounts %v", dir, statErr, names, mountsErr)
	}
}
