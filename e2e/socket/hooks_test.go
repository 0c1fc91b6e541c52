// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"shunt/e2e/rig"
)

func effect(hook string) string  { return fmt.Sprintf("shunt_in_effect{hook=%q}", hook) }
func repairs(hook string) string { return fmt.Sprintf("shunt_hook_repairs_total{hook=%q}", hook) }

// wantEffect checks that the metric reports every hook as in effect, except those in out.
func wantEffect(d *rig.Daemon, out ...string) {
	d.T.Helper()
	m := d.Metrics()
	for _, hook := range []string{"connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6",
		"ingress", "egress", "cgroup", "pins"} {
		v, there := m[effect(hook)]
		if want := !containsText(out, hook); !there || (v == 1) != want {
			d.T.Errorf("%s is %v (there is one: %v), want in effect: %v", effect(hook), v, there, want)
		}
	}
}

func containsText(all []string, one string) bool {
	for _, s := range all {
		if s == one {
			return true
		}
	}
	return false
}

// TestHooksRepaired: another program removes hooks and pins while the daemon is stopped.
// status reports it, and the daemon repairs them as soon as it runs, which is logged and
// counted.
func TestHooksRepaired(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...))
	wantEffect(c.d)
	links := filepath.Join(c.d.Root, "links")
	remove := func(pin string) error { return os.Remove(filepath.Join(links, pin)) }
	for _, test := range []struct {
		name, hook string
		spoil      func() error
		passes     bool // connections work meanwhile
	}{
		{"a hook's pin is removed", "pins", func() error { return remove("connect4") }, true},
		{"a hook is detached", "connect4", func() error { rig.DetachLink(t, filepath.Join(links, "connect4")); return nil }, false},
		{"a hook is detached and its pin removed", "connect4", func() error { rig.DetachLink(t, filepath.Join(links, "connect4")); return remove("connect4") }, false},
		{"all links are removed", "pins", func() error { return os.RemoveAll(links) }, true},
		{"the directory is renamed", "pins", func() error { return os.Rename(c.d.Root, c.d.Root+"-away") }, true},
		{"the directory is removed", "pins", func() error { return os.RemoveAll(c.d.Root) }, true},
		{"a device's program is removed", "ingress", func() error { return removeIngress(t, c) }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := c.d.Metrics()[repairs(test.hook)]
			c.d.Log.Reset()
			if err := c.d.Cmd.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			err := test.spoil()
			_, stderr, code := runInPod(t, c.d.Pod, rig.Self, "status", "--bpffs-root", c.d.Root)
			a := ways[0].ask(c.client, rig.VIP(1, 4))
			if cont := c.d.Cmd.Signal(syscall.SIGCONT); err != nil || cont != nil {
				t.Fatal(err, cont)
			}
			if code != 1 {
				t.Errorf("status: exit code %d, %s", code, stderr)
			}
			if (a.Err == nil) != test.passes {
				t.Errorf("meanwhile a connection ended by %v", a.Err)
			}
			rig.Eventually(t, "it is counted as repaired", func() bool { return c.d.Metrics()[repairs(test.hook)] > before })
			rig.Eventually(t, "all is in effect", func() bool {
				_, _, code := runInPod(t, c.d.Pod, rig.Self, "status", "--bpffs-root", c.d.Root)
				return code == 0
			})
			wantEffect(c.d)
			for _, w := range ways {
				w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[0])
			}
			if line := c.d.Log.String(); !strings.Contains(line, "was put right") && !strings.Contains(line, "in effect again") {
				t.Errorf("the log says\n%s", line)
			}
		})
	}
	// Everything outlives the daemon.
	c.d.Kill()
	for _, w := range ways {
		w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[0])
	}
}

// removeIngress removes the link of the packet path's program of one device, or the qdisc of its
// filter.
func removeIngress(t *testing.T, c *cluster) error {
	if rig.Lacks("TCX") {
		_, stderr, code := runInPod(t, c.d.Pod, "tc", "qdisc", "del", "dev", "eth0", "clsact")
		if code != 0 {
			return fmt.Errorf("remove the qdisc: exit code %d: %s", code, stderr)
		}
		return nil
	}
	pins, err := filepath.Glob(filepath.Join(c.d.Root, "links", "tcx_ingress_*"))
	if err != nil || len(pins) == 0 {
		return fmt.Errorf("no TCX link is pinned: %w", err)
	}
	return os.Remove(pins[0])
}

// TestHooksOfGoneCgroup: without its cgroup no hook is in effect, which the metric, the
// warnings of /healthz, the log and status report. A new cgroup with that name is served.
func TestHooksOfGoneCgroup(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	dir := filepath.Join(c.n1.Cgroup(), "pods")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c.d = rig.StartDaemon(t, c.n1, c.m.Path, "--cgroup-root", dir)
	wantEffect(c.d)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	socket := []string{"connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6"}
	rig.Eventually(t, "the metric says so", func() bool { return c.d.Metrics()[effect("connect4")] == 0 })
	wantEffect(c.d, append(socket, "cgroup")...)
	rig.Eventually(t, "the probe warns of it", func() bool {
		h, err := c.d.Healthz()
		return err == nil && strings.Contains(strings.Join(h.Warnings, "\n"), "cgroup is not in effect")
	})
	if s := statusOf(c.d, 1); s.InEffect || len(s.Wrong) != 8 {
		t.Errorf("status: in effect: %v, wrong: %v", s.InEffect, s.Wrong)
	}
	if said := c.d.Log.Find("not in effect as it should be, trying again"); said == nil || !strings.Contains(fmt.Sprint(said["problem"]), dir) {
		t.Errorf("the log says %v", said)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "it is repaired", func() bool { return c.d.Metrics()[repairs("connect4")] > 0 })
	wantEffect(c.d)
	statusOf(c.d, 0)
	if err := c.d.Cmd.Stop(rig.Patience); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
}

// TestPinsUnmounted: without the bpf file system, hooks stay in effect but would end with
// the daemon. That is reported, and repaired when the file system is mounted again.
func TestPinsUnmounted(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...))
	where := filepath.Dir(c.d.Root)
	if err := unix.Unmount(where, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "the metric says so", func() bool { return c.d.Metrics()[effect("pins")] == 0 })
	if said := c.d.Metrics()[effect("connect4")]; said != 1 {
		t.Errorf("connect4 is said to be in effect: %v", said)
	}
	if _, stderr, code := runInPod(t, c.d.Pod, rig.Self, "status", "--bpffs-root", c.d.Root); code != 1 {
		t.Errorf("status: exit code %d, %s", code, stderr)
	}
	ways[0].wantServers(t, c.client, rig.VIP(1, 4), c.web[0])
	if err := unix.Mount("bpf", where, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "it is repaired", func() bool { return c.d.Metrics()[repairs("pins")] > 0 })
	rig.Eventually(t, "devices' links are pinned again, too", func() bool {
		_, _, code := runInPod(t, c.d.Pod, rig.Self, "status", "--bpffs-root", c.d.Root)
		return code == 0
	})
	wantEffect(c.d)
	c.d.Kill()
	c.d.Start()
	if n := writesAfterStart(t, c.d); n != 0 {
		t.Errorf("the next daemon writes %v entries, though all was pinned again", n)
	}
	ways[0].wantServers(t, c.client, rig.VIP(1, 4), c.web[0])
}

// TestPrivateCgroupNamespace: a daemon in its own cgroup namespace, whose root is its own
// cgroup, reports that it serves no pods.
func TestPrivateCgroupNamespace(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	mount := filepath.Join(c.Dir(), "cgroup")
	if err := os.Mkdir(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	c.d = rig.NewDaemon(t, c.n1, c.m.Path)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	inside := []string{"--mount", "--cgroup", "--", "sh", "-c", `mount -t cgroup2 none "$0" && exec "$@"`, mount}
	c.d.Cmd = c.d.Pod.Command(t.Context(), "unshare", append(inside, append([]string{self}, append(c.d.Args, "--cgroup-root", mount)...)...)...)
	c.d.Cmd.Stderr, c.d.Cmd.Stdout = c.d.Log, c.d.Log
	if err := c.d.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.d.WaitHealthy()
	wantEffect(c.d, "cgroup")
	h, err := c.d.Healthz()
	if err != nil || h.Code != http.StatusOK || !strings.Contains(strings.Join(h.Warnings, "\n"), "--cgroup-root") {
		t.Errorf("healthz: %+v, %v", h, err)
	}
	if said := c.d.Log.Find("not in effect as it should be, trying again"); said == nil || said["hook"] != "cgroup" {
		t.Errorf("the log says %v", said)
	}
	_, stderr, code := runInPod(t, c.d.Pod, "nsenter", "--target", fmt.Sprint(c.d.Cmd.PID()), "--mount", "--cgroup", "--",
		self, "status", "--bpffs-root", c.d.Root)
	if code != 1 || !strings.Contains(stderr, "container") {
		t.Errorf("status: exit code %d, %s", code, stderr)
	}
}
