// SPDX-License-Identifier: Apache-2.0

// Package cleanup_test tests `shunt cleanup --kube-proxy` on the rules of a real
// kube-proxy: in every mode of this kernel, beside other programs' rules and live
// connections. It has only tests. Start reading at kubeproxy_test.go.
package cleanup_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"shunt/bpf"
	"shunt/cmd"
	"shunt/kubeproxy"
	"shunt/lab"
)

const (
	// self is this executable, even if its file was replaced.
	self = "/proc/self/exe"
	// patience bounds every wait for an asynchronous event.
	patience = 30 * time.Second
)

// TestMain lets the test binary be shunt itself, and the agent of a lab's pod.
func TestMain(m *testing.M) {
	bpf.MaybeProbe()
	lab.MaybeAgent()
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		os.Exit(cmd.Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// place is where commands run: a node's network namespace, with a PATH.
type place struct {
	t    *testing.T
	pod  *lab.Pod
	path string
}

// run runs a program to its end, and returns its output and exit code.
func (p *place) run(stdin, name string, args ...string) (stdout, stderr string, code int) {
	p.t.Helper()
	c := p.pod.Command(context.Background(), name, args...)
	c.Env = append(os.Environ(), "PATH="+p.path)
	c.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	c.Stdout, c.Stderr = &out, &errOut
	if err := c.Start(); err != nil {
		p.t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := c.Wait(); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		p.t.Fatalf("%s: %v", name, err)
	}
	return out.String(), errOut.String(), code
}

// must runs a program that must succeed, and returns its output.
func (p *place) must(stdin, name string, args ...string) string {
	p.t.Helper()
	stdout, stderr, code := p.run(stdin, name, args...)
	if code != 0 {
		p.t.Fatalf("%s %v: exit code %d\n%s", name, args, code, stderr)
	}
	return stdout
}

// cleanup runs `shunt cleanup --kube-proxy`, which must exit with the code.
func (p *place) cleanup(wantCode int, flags ...string) (kubeproxy.Report, string) {
	p.t.Helper()
	args := append([]string{"cleanup", "--kube-proxy", "-o", "json"}, flags...)
	stdout, stderr, code := p.run("", self, args...)
	var report kubeproxy.Report
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		p.t.Fatalf("read the report: %v\n%s%s", err, stdout, stderr)
	}
	if code != wantCode {
		p.t.Fatalf("%v: exit code %d, want %d\n%s%s", args, code, wantCode, stdout, stderr)
	}
	return report, stderr
}

// eventually waits until a condition holds, and fails the test if it never does.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
