// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// parentEnv makes this test binary a parent that starts a child, prints its pid and
// its work directory, and waits to be killed.
const parentEnv = "SHUNT_KUBE_TEST_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(parentEnv) != "" {
		os.Exit(runParent())
	}
	os.Exit(m.Run())
}

func runParent() int {
	dir, err := newWorkDir()
	if err != nil {
		println(err.Error())
		return 1
	}
	child, err := startProcess(dir.path, "child", "sleep", "300")
	if err != nil {
		println(err.Error())
		return 1
	}
	_, _ = os.Stdout.WriteString(strconv.Itoa(child.pid) + " " + dir.path + "\n")
	<-child.done
	return 0
}

func TestChildDiesWithAKilledParent(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir()) // the sweep below must see only this test's directory
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), parentEnv+"=1")
	parent.Stderr = os.Stderr
	output, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = parent.Process.Kill() }()
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatalf("read the child's pid: %v", err)
	}
	words := strings.Fields(line)
	pid, err := strconv.Atoi(words[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("the child %d does not run: %v", pid, err)
	}

	// A directory whose owner lives is left alone, an abandoned one is removed.
	removeAbandoned()
	if _, err := os.Stat(words[1]); err != nil {
		t.Fatalf("the directory of a living owner: %v", err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	eventually(t, "end of the child", func() error {
		if ended(pid) {
			return nil
		}
		return errors.New("it runs")
	})
	removeAbandoned()
	if _, err := os.Stat(words[1]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the abandoned directory %s: %v, want it gone", words[1], err)
	}
}

// ended reports whether an orphan has ended: it is gone, or a zombie that the machine's
// first process has not reaped yet.
func ended(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return true
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(state, "Z")
}

func TestTerminateKillsWhatDoesNotListen(t *testing.T) {
	t.Parallel()
	p, err := startProcess(t.TempDir(), "deaf", "sh", "-c", `trap "" TERM; echo ready; while :; do sleep 0.1; done`)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	eventually(t, "its trap", func() error {
		if tail(p.log) == "ready\n" {
			return nil
		}
		return errors.New("not set yet")
	})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := p.terminate(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("terminate: %v, want it to have been killed", err)
	}
	if p.alive() {
		t.Error("it is alive")
	}
	if err := p.failure(); !strings.Contains(err.Error(), "ready") {
		t.Errorf("its failure does not quote its log: %v", err)
	}
}

func TestStartProcessOfAMissingProgram(t *testing.T) {
	t.Parallel()
	if _, err := startProcess(t.TempDir(), "none", "/nonexistent/program"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("start a missing program: %v", err)
	}
}
