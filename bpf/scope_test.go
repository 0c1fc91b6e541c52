// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestScopeProblem: pods outside of the cgroup that the hooks act on are found, wherever the
// root of the reader's cgroup namespace is.
func TestScopeProblem(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		scope
		says string
	}{
		{"a root of its own namespace, with pods", scope{attached: "/", own: "/kubelet/kubepods/pod1/a",
			pods: []podProcess{{5, "/kubelet/kubepods/pod1/a"}, {6, "/kubelet/kubepods/pod2"}}}, ""},
		{"no pod is seen", scope{attached: "/system.slice", own: "/system.slice/shunt.service"}, ""},
		{"a slice without the pods", scope{attached: "/system.slice", own: "/system.slice/shunt.service",
			pods: []podProcess{{5, "/kubepods.slice/kubepods-pod1.slice"}, {6, "/system.slice/kubepods/x"}}}, "1 of the 2 processes"},
		{"a name that only begins alike", scope{attached: "/kube", pods: []podProcess{{5, "/kubepods/x"}}}, "process 5 in /kubepods/x"},
		{"the cgroup itself", scope{attached: "/kubepods", own: "/kubepods", pods: []podProcess{{5, "/kubepods"}}}, ""},
		{"the machine's hierarchy, seen from a private namespace", scope{attached: "/../../..", own: "/",
			pods: []podProcess{{5, "/"}, {6, "/../../podb/c"}, {7, "/../../../system.slice"}}}, ""},
		{"one level too deep in it", scope{attached: "/../..", own: "/", pods: []podProcess{{5, "/"}, {6, "/../../../kubepods/pod2/b"}}}, "1 of the 2"},
		{"a branch of it that may be the way back", scope{attached: "/../../podb", own: "/", pods: []podProcess{{5, "/"}, {6, "/../x"}}}, ""},
		{"a branch of it that is none", scope{attached: "/../../podb", own: "/", pods: []podProcess{{5, "/../../podc/d"}, {6, "/../../podb/c"}}}, "1 of the 2"},
		{"a container's own", scope{attached: "/", own: "/", childless: true}, "container"},
		{"a container's own, and pods are seen", scope{attached: "/", own: "/", childless: true, pods: []podProcess{{5, "/../podb"}}}, "1 of the 1"},
		{"a node's root, in which a process was started by hand", scope{attached: "/", own: "/", pods: []podProcess{{5, "/kubepods/x"}}}, ""},
	} {
		if got := test.problem(); (got == "") != (test.says == "") || !strings.Contains(got, test.says) {
			t.Errorf("%s: %q, want %q", test.name, got, test.says)
		}
	}
}

// The processes of pods are found by their cgroup's name.
func TestReadScope(t *testing.T) {
	bpffs(t)
	node, beside := cgroup(t), cgroup(t)
	named := fmt.Sprintf("pods-of-test-%d", os.Getpid()) // daemons of other tests look for kubepods
	sleepIn(t, node, named)
	if text, err := scopeProblem(node, named); text != "" || err != nil {
		t.Errorf("with the pods below: %q, %v", text, err)
	}
	if text, err := scopeProblem(beside, named); err != nil || !strings.Contains(text, "1 of the 1 processes") {
		t.Errorf("with the pods elsewhere: %q, %v", text, err)
	}
	sleepIn(t, beside, named)
	if text, err := scopeProblem(node, named); err != nil || !strings.Contains(text, "1 of the 2 processes") {
		t.Errorf("with one of two elsewhere: %q, %v", text, err)
	}
	root, err := FindCgroupRoot("")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := scopeProblem(root, named); text != "" || err != nil {
		t.Errorf("the root of all: %q, %v", text, err)
	}
	id, err := cgroupID(node)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := ScopeProblem(id); text != "" || err != nil {
		t.Errorf("by the cgroup's id: %q, %v", text, err)
	}
	if text, err := ScopeProblem(1 << 40); err != nil || !strings.Contains(text, "gone") {
		t.Errorf("by the id of no cgroup: %q, %v", text, err)
	}
}

// sleepIn starts a process in a new cgroup of that name below another one. It returns the
// cgroup's path. Both last as long as the test.
func sleepIn(t *testing.T, below, named string) (path string) {
	t.Helper()
	path = filepath.Join(below, named)
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	c := exec.Command("sleep", "600")
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if err := removeCgroup(path); err != nil {
			t.Error(err)
		}
	})
	return path
}
