// SPDX-License-Identifier: Apache-2.0

//go:build !node

package cmd

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"shunt/lab"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces and eBPF need root: skipped")
	}
}

func TestDemo(t *testing.T) {
	needRoot(t)
	var stdout, stderr bytes.Buffer
	if code := execute(t.Context(), []string{"demo", "-o", "json"}, &stdout, &stderr); code != exitOK {
		t.Fatalf("exit code %d\n%s%s", code, &stderr, &stdout)
	}
	var report demoReport
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range report.Results {
		seen[fmt.Sprint(r.Protocol, r.Address.Addr().Is4(), r.Expected)] = true
		if !r.OK || r.Problem != "" {
			t.Errorf("%+v", r)
		}
		if refused := r.Expected == expectRefused; refused != (r.Refused == r.Requests) || refused == (r.Ratio > 0) {
			t.Errorf("%+v", r)
		}
	}
	for _, protocol := range []string{"TCP", "UDP"} {
		for _, v4 := range []bool{true, false} {
			for _, expect := range []demoExpect{expectAll, expectRefused} {
				if key := fmt.Sprint(protocol, v4, expect); !seen[key] {
					t.Errorf("nothing asked like %s", key)
				}
			}
		}
	}
}

// demoLabs returns the directories of the labs that a process owns.
func demoLabs(t *testing.T, pid int) (dirs []string) {
	t.Helper()
	files, err := filepath.Glob("/run/shunt-lab/*/owner")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		var owner struct{ PID int }
		data, err := os.ReadFile(file)
		if err == nil && json.Unmarshal(data, &owner) == nil && owner.PID == pid {
			dirs = append(dirs, filepath.Dir(file))
		}
	}
	return dirs
}

func TestDemoInterrupted(t *testing.T) {
	needRoot(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			if signal.Ignored(sig) && sig == syscall.SIGHUP {
				t.Skip("the tests run under nohup, and the demo would: skipped")
			}
			interruptDemo(t, sig)
		})
	}
}

func interruptDemo(t *testing.T, sig syscall.Signal) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "demo")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stderr)
	line, err := lines.ReadString('\n')
	if err != nil || !strings.Contains(line, "asking") {
		t.Fatalf("%q, %v", line, err)
	}
	labs := demoLabs(t, cmd.Process.Pid)
	if len(labs) != 1 {
		t.Fatalf("labs of the demo: %v, want one", labs)
	}
	if err := cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(lines)
	if err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != exitFailure || !strings.Contains(string(rest), "error: interrupted") {
		t.Errorf("%v; it said %q", err, rest)
	}
	nothingOfLab(t, labs[0])
}

// nothingOfLab checks that the lab of a directory was removed.
func nothingOfLab(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob("/run/netns/shunt-" + filepath.Base(dir) + "-*")
	if _, statErr := os.Stat(dir); err != nil || len(names) > 0 || !os.IsNotExist(statErr) {
		t.Errorf("left: %v %v, %v", dir, names, statErr)
	}
}

// TestDemoUnheard: the reader of the demo's output is gone, as in `shunt demo |& true`. The
// demo must not end because of that and leave its lab.
func TestDemoUnheard(t *testing.T) {
	needRoot(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "demo")
	cmd.Stdout, cmd.Stderr = write, write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = errors.Join(read.Close(), write.Close()) // the child has copies
	var dirs []string
	for deadline := time.Now().Add(time.Minute); len(dirs) == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		dirs = demoLabs(t, cmd.Process.Pid)
	}
	err = cmd.Wait()
	if len(dirs) != 1 {
		t.Fatalf("labs of the demo: %v, want one", dirs)
	}
	if err != nil {
		t.Errorf("the demo: %v", err)
	}
	nothingOfLab(t, dirs[0])
}

func TestDemoDaemonFails(t *testing.T) {
	c, err := newDemoCluster(lab.ForTest(t))
	if err != nil {
		t.Fatal(err)
	}
	c.executable = "/bin/sh" // it does not find a script with the name "run"
	start := time.Now()
	err = c.startDaemons(t.Context())
	if err == nil || !strings.Contains(err.Error(), "daemon of node n1 ended") || !strings.Contains(err.Error(), "run: ") {
		t.Errorf("%v; want that it ended, and what it said", err)
	}
	if took := time.Since(start); took > demoStartDeadline/2 {
		t.Errorf("it was noticed after %v", took)
	}
	if c.daemonsAlive() == nil {
		t.Error("a daemon that ended is said to live")
	}
}

// TestDemoSeesWrongAnswers asks without a daemon.
func TestDemoSeesWrongAnswers(t *testing.T) {
	c, err := newDemoCluster(lab.ForTest(t))
	if err != nil {
		t.Fatal(err)
	}
	report := &demoReport{OK: true}
	ask := func(q demoQuestion, problem string) {
		t.Helper()
		r, err := q.ask(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if r.OK || !strings.Contains(r.Problem, problem) {
			t.Errorf("%s: %+v, want a problem with %q", q.what, r, problem)
		}
		report.Results = append(report.Results, r)
	}
	for _, q := range c.questions() {
		if q.dst.Addr().IsLoopback() {
			ask(q, "connection refused")
		}
	}
	q := c.questions()[0]
	q.dst = netip.AddrPortFrom(c.web[0].Addr4(), demoTCPPort)
	ask(q, "answered by web-0")
	q.expect = expectRefused
	ask(q, `answered by "web-0"`)
	if len(report.Results) < 6 || report.err() == nil {
		t.Errorf("%d results, error %v", len(report.Results), report.err())
	}
	var out strings.Builder
	report.table(&out)
	if n := strings.Count(out.String(), "WRONG: "); n != len(report.Results) || !strings.Contains(out.String(), "0 of ") {
		t.Errorf("%s", &out)
	}
}

func TestDemoJudge(t *testing.T) {
	both := map[string]int{"web-0": 90, "web-1": 110}
	for _, test := range []struct {
		name    string
		expect  demoExpect
		summary lab.Summary
		ok      bool
	}{
		{"both", expectAll, lab.Summary{Done: demoRounds, Answered: demoRounds, Servers: both}, true},
		{"both instead of one", expectSame, lab.Summary{Done: demoRounds, Answered: demoRounds, Servers: both}, false},
		{"one", expectSame, lab.Summary{Done: demoRounds, Answered: demoRounds, Servers: map[string]int{"web-1": demoRounds}}, true},
		{"a stranger", expectSame, lab.Summary{Done: demoRounds, Answered: demoRounds, Servers: map[string]int{"db-0": demoRounds}}, false},
		{"a failure", expectAll, lab.Summary{Done: demoRounds, Answered: demoRounds - 1, Servers: both}, false},
		{"cut short", expectAll, lab.Summary{Done: 10, Answered: 10, Servers: both}, false},
	} {
		q := demoQuestion{expect: test.expect, servers: []string{"web-0", "web-1"}}
		if problem := q.judge(test.summary); (problem == "") != test.ok {
			t.Errorf("%s: %q", test.name, problem)
		}
	}
}

func TestDemoSameRounds(t *testing.T) {
	record := func(server string, took int64) lab.Record {
		return lab.Record{Start: 1000, End: 1000 + took, Server: server}
	}
	all := []lab.Summary{
		{Records: []lab.Record{record("a", 10), record("b", 40), record("b", 41)}},
		{Records: []lab.Record{record("a", 9), record("a", 900), record("a", 901)}},
		{Records: []lab.Record{record("b", 990), record("b", 38), record("b", 39)}},
	}
	if service, direct := sameRounds(all, []string{"a", "b"}); service != 40 || direct != 38 {
		t.Errorf("%d and %d, want 40 and 38", service, direct)
	}
}
