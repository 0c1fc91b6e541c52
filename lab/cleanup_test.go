// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"shunt/lab"
)

// victimEnv makes the test binary a process that owns a lab and waits to be ended.
const victimEnv = "SHUNT_LAB_TEST_VICTIM"

func maybeVictim() {
	mode, ok := os.LookupEnv(victimEnv)
	if !ok {
		return
	}
	l, err := lab.New(context.Background(), lab.Options{CloseOnSignal: true})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	populate(l)
	if err := l.Err(); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	if mode == "close" {
		if err := l.Close(); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(l.ID())
		os.Exit(0)
	}
	fmt.Println(l.ID(), strings.Join(processes(l.Cgroup()), " "))
	select {}
}

// populate makes one of everything that a lab can leave behind, also a process with a child
// that the lab does not know of.
func populate(l *lab.Lab) {
	n := l.Node("n1")
	pod := n.Pod("web-0")
	pod.Serve("tcp", 80)
	l.Client("outside").Serve("udp", 53)
	n.HostPod("kubelet").Serve("udp", 53)
	n.BPFFS()
	cmd := pod.Command(context.Background(), "/bin/sh", "-c", "sleep 1000 & echo ready; exec sleep 1001")
	ready := make(chanWriter, 1)
	cmd.Stdout = ready
	if err := cmd.Start(); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	<-ready
}

// chanWriter signals that something was written.
type chanWriter chan struct{}

func (c chanWriter) Write(p []byte) (int, error) {
	select {
	case c <- struct{}{}:
	default:
	}
	return len(p), nil
}

// processes returns the ids of the processes in a cgroup and below it.
func processes(cgroup string) (pids []string) {
	_ = filepath.WalkDir(cgroup, func(path string, _ os.DirEntry, err error) error {
		if err == nil && filepath.Base(path) == "cgroup.procs" {
			data, _ := os.ReadFile(path)
			pids = append(pids, strings.Fields(string(data))...)
		}
		return nil
	})
	return pids
}

// left returns what still exists of a lab.
func left(t *testing.T, id string, pids []string) (rest []string) {
	t.Helper()
	for _, pattern := range []string{"/run/netns/shunt-" + id + "-*", "/run/shunt-lab/" + id} {
		found, err := filepath.Glob(pattern)
		check(t, err)
		rest = append(rest, found...)
	}
	data, err := os.ReadFile("/proc/self/mounts")
	check(t, err)
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if strings.Contains(f[1], id) {
			rest = append(rest, "mount "+f[1])
		}
		if f[2] == "cgroup2" {
			found, err := filepath.Glob(filepath.Join(f[1], "shunt-lab-"+id))
			check(t, err)
			rest = append(rest, found...)
		}
	}
	for _, pid := range pids {
		// A zombie is dead: its parent has to reap it.
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err == nil && !strings.Contains(string(stat), ") Z ") {
			rest = append(rest, "process "+pid)
		}
	}
	return rest
}

func TestCloseLeavesNothing(t *testing.T) {
	l := lab.ForTest(t)
	populate(l)
	pids := processes(l.Cgroup())
	if len(pids) < 5 { // three agents, a command and its child
		t.Fatalf("processes %v, want five or more", pids)
	}
	if rest := left(t, l.ID(), pids); len(rest) < 5+4+2+1 {
		t.Fatalf("the search for what is left does not find what is there: %v", rest)
	}
	check(t, l.Close())
	if rest := left(t, l.ID(), pids); len(rest) > 0 {
		t.Errorf("left: %v", rest)
	}
	check(t, l.Close()) // a second time
	if cmd := exec.Command("ip", "netns", "list"); true {
		out, err := cmd.CombinedOutput()
		check(t, err)
		if strings.Contains(string(out), l.ID()) {
			t.Errorf("ip netns list: %s", out)
		}
	}
}

// victim starts a process with a lab, and returns the lab's id and processes.
func victim(t *testing.T, mode string) (cmd *exec.Cmd, id string, pids []string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces and cgroups need root: skipped")
	}
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victimEnv+"="+mode)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	check(t, err)
	words := strings.Fields(line)
	if len(words) == 0 || words[0] == "error" {
		t.Fatalf("the process with the lab said %q", line)
	}
	return cmd, words[0], words[1:]
}

func TestInterruptedLabCleansUp(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		cmd, id, pids := victim(t, "wait")
		if len(pids) < 5 {
			t.Errorf("processes %v, want five or more", pids)
		}
		check(t, cmd.Process.Signal(sig))
		err := cmd.Wait()
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if !status.Signaled() || status.Signal() != sig {
			t.Errorf("%v: it ended with %v, want by that signal", sig, err)
		}
		if rest := left(t, id, pids); len(rest) > 0 {
			t.Errorf("%v: left: %v", sig, rest)
		}
	}
}

func TestKilledLabIsSwept(t *testing.T) {
	alive, aliveID, alivePIDs := victim(t, "wait")
	cmd, id, pids := victim(t, "wait")
	check(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if rest := left(t, id, nil); len(rest) == 0 {
		t.Log("another lab's start has swept it already") // tests run beside each other
	}
	// Its direct children die with it (parent-death signal).
	deadline := time.Now().Add(5 * time.Second)
	for len(left(t, "no-such-lab", pids)) > 1 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if rest := left(t, "no-such-lab", pids); len(rest) > 1 {
		t.Errorf("agents survived their lab: %v", rest)
	}
	if _, err := lab.Sweep(); err != nil {
		t.Error(err)
	}
	for len(left(t, id, pids)) > 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond) // another process may be sweeping it
	}
	if rest := left(t, id, pids); len(rest) > 0 {
		t.Errorf("left after Sweep: %v", rest)
	}
	for _, pid := range alivePIDs {
		if n, err := strconv.Atoi(pid); err != nil || syscall.Kill(n, 0) != nil {
			t.Errorf("process %s of a living lab was swept", pid)
		}
	}
	if rest := left(t, aliveID, alivePIDs); len(rest) < len(alivePIDs) {
		t.Errorf("a living lab was swept: %v", rest)
	}
	check(t, alive.Process.Signal(syscall.SIGTERM))
	_ = alive.Wait()
}

// TestBesideEachOther lets several processes make and close labs at the same time.
func TestBesideEachOther(t *testing.T) {
	type end struct {
		cmd *exec.Cmd
		id  string
	}
	ends := make(chan end, 4)
	for range cap(ends) {
		go func() {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), victimEnv+"=close")
			out, err := cmd.Output()
			if err != nil {
				out = fmt.Appendf(out, "error %v", err)
			}
			ends <- end{cmd, strings.TrimSpace(string(out))}
		}()
	}
	var ids []string
	for range cap(ends) {
		e := <-ends
		if !e.cmd.ProcessState.Success() {
			t.Errorf("%s", e.id)
			continue
		}
		if slices.Contains(ids, e.id) {
			t.Errorf("two labs called %s", e.id)
		}
		ids = append(ids, e.id)
		if rest := left(t, e.id, nil); len(rest) > 0 {
			t.Errorf("left of %s: %v", e.id, rest)
		}
	}
}
