// SPDX-License-Identifier: Apache-2.0

//go:build !node

package cmd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"shunt/bench"
	"shunt/bench/benchtest"
)

// TestBench runs a small benchmark with all parts, and checks the numbers of the report.
// With an API server it runs in e2e/withapi.
func TestBench(t *testing.T) {
	needRoot(t)
	o := bench.Options{Services: []int{5, 9}, Endpoints: []int{3}, Rounds: 7, Exchanges: 5, Burst: 30 * time.Millisecond, Updates: 2, Loads: 2,
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
	benchtest.Check(t, r, bench.Defaults(false))
}

// TestBenchCommand checks files, output, and the comparison of a report with itself.
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
	out, said := run(exitOK, "bench", "--services", "5", "--endpoints", "2", "--rounds", "2", "--exchanges", "3", "--burst", "5ms",
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
	run(exitUsage, "bench", "--kube-proxy", "/bin/true")
	run(exitFailure, "bench", "--compare", file, filepath.Join(dir, "none.json"))
	_, said = run(exitFailure, "bench", "--services", "100000", "--endpoints", "10", "--rounds", "1", "--compare=false", "--contenders", "shunt",
		"--json", filepath.Join(dir, "no", "such", "directory.json"))
	if !strings.Contains(said, "directory") {
		t.Errorf("a file that can't be written is noticed late: %q", said)
	}
	_, said = run(exitFailure, "bench", "--kubeconfig", file, "--kube-proxy", filepath.Join(dir, "kube-proxy"), "--compare=false")
	if !strings.Contains(said, "not there") {
		t.Errorf("a kube-proxy that is not there: %q", said)
	}
}

// TestBenchInterrupted: a benchmark that is interrupted removes everything.
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
