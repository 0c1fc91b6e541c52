// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"shunt/e2e/rig"
	"shunt/lab"
)

// TestBadFlags: invalid flags are refused in one line that names the flag, with the exit
// code of a usage error, before anything is changed.
func TestBadFlags(t *testing.T) {
	t.Parallel()
	l := lab.ForTest(t)
	n := l.Node("n1")
	m := rig.NewManifests(t, l.Dir())
	m.Write()
	good := []string{"run", "--manifests", m.Path, "--cgroup-root", n.Cgroup(), "--bpffs-root", filepath.Join(n.BPFFS(), "shunt")}
	for _, test := range []struct {
		flags string
		says  string
	}{
		{"--nodeport-addresses=nonsense", `--nodeport-addresses "nonsense"`},
		{"--nodeport-addresses=10.0.0.1", `--nodeport-addresses "10.0.0.1"`},
		{"--nodeport-addresses=primary,10.0.0.1", `--nodeport-addresses "10.0.0.1"`},
		{"--nodeport-addresses=10.0.0.0/33", `--nodeport-addresses "10.0.0.0/33"`},
		{"--service-cidr=10.96.0.0", `--service-cidr "10.96.0.0"`},
		{"--services-map-size=0", "--services-map-size is 0"},
		{"--slots-map-size=15", "--slots-map-size is 15"},
		{"--backends-map-size=100000000", "--backends-map-size is 100000000"},
		{"--affinity-map-size=-1", "--affinity-map-size"},
		{"--backends-map-size=many", "--backends-map-size"},
		{"--metrics-bind-address=127.0.0.1:10256", "--healthz-bind-address 0.0.0.0:10256 and --metrics-bind-address 127.0.0.1:10256"},
		{"--node-name=no_node", `--node-name "no_node"`},
		{"--healthz-bind-address=here", `--healthz-bind-address "here"`},
		{"--probe-bind-address=127.0.0.1:10249", "--metrics-bind-address 127.0.0.1:10249 and --probe-bind-address 127.0.0.1:10249"},
		{"--metrics-bind-address=127.0.0.1:99999", `--metrics-bind-address "127.0.0.1:99999"`},
		{"--kubeconfig=/some/file", "--manifests and --kubeconfig"},
		{"--apiserver=10.0.0.1", "--manifests and --kubeconfig or --apiserver"},
		{"--bpffs-root=relative/path", `--bpffs-root "relative/path"`},
		{"--v=-1", "--v -1"},
		{"--config=/does/not/exist", "--config: open /does/not/exist"},
		{"--conntrack-min=-1", "--conntrack-min -1"},
		{"--proxy-mode=userspace", `--proxy-mode "userspace"`},
		{"--cleanup", "shunt cleanup"},
		{"--destroy-tcp-sockets=perhaps", "--destroy-tcp-sockets"},
		{"--no-such-flag", "unknown flag: --no-such-flag"},
		{"an-argument", `"an-argument"`},
	} {
		t.Run(test.flags, func(t *testing.T) {
			_, stderr, code := rig.Shunt(t, append(good[:len(good):len(good)], test.flags)...)
			checkRefusal(t, stderr, code, 2, test.says)
			nothingLeft(t, n)
		})
	}
	for _, args := range []string{"no-such-command", "run extra", "status extra", "cleanup extra", "version -o xml", "status -o yaml",
		"status --bpffs-root=", "services --bpffs-root=relative", "cleanup --bpffs-root=relative",
		"run --apiserver=ftp://192.0.2.1", "run --apiserver=192.0.2.1:65536"} {
		_, stderr, code := rig.Shunt(t, strings.Fields(args)...)
		checkRefusal(t, stderr, code, 2, "")
	}
}

// checkRefusal checks for one line with these texts.
func checkRefusal(t *testing.T, stderr string, code, want int, says ...string) {
	t.Helper()
	if code != want || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "error: ") {
		t.Errorf("exit code %d, want %d and one line; said:\n%s", code, want, stderr)
	}
	for _, s := range says {
		if !strings.Contains(stderr, s) {
			t.Errorf("it does not say %q:\n%s", s, stderr)
		}
	}
}

// nothingLeft checks that nothing is pinned, and so nothing is loaded or attached. The
// kernel itself puts two files at the top of every bpf file system.
func nothingLeft(t *testing.T, n *lab.Node) {
	t.Helper()
	err := filepath.WalkDir(n.BPFFS(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.HasSuffix(path, ".debug") {
			t.Errorf("%s was pinned", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestBadEnvironment: what the machine lacks is reported in one line, with a remedy.
func TestBadEnvironment(t *testing.T) {
	t.Parallel()
	l := lab.ForTest(t)
	n := l.Node("n1")
	m := rig.NewManifests(t, l.Dir())
	m.Write()
	root := filepath.Join(n.BPFFS(), "shunt")
	run := func(more ...string) *exec.Cmd {
		args := []string{"run", "--manifests", m.Path, "--cgroup-root", n.Cgroup(), "--bpffs-root", root}
		return exec.Command(rig.Self, append(args, more...)...)
	}
	nobody := func(c *exec.Cmd) *exec.Cmd {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		return c
	}
	for _, test := range []struct {
		name string
		cmd  *exec.Cmd
		says []string
	}{
		{"not root", nobody(run()), []string{"CAP_SYS_ADMIN is missing", "run as root"}},
		{"not root, status", nobody(exec.Command(rig.Self, "status", "--bpffs-root", root)), []string{"CAP_SYS_ADMIN is missing", "run as root"}},
		{"not root, cleanup", nobody(exec.Command(rig.Self, "cleanup", "--bpffs-root", n.BPFFS())), []string{"CAP_SYS_ADMIN is missing", "run as root"}},
		{"no cgroup v2", run("--cgroup-root", "/tmp"), []string{"--cgroup-root /tmp", "not a directory of a cgroup v2 hierarchy", "grep cgroup2 /proc/mounts"}},
		{"a file for a cgroup", run("--cgroup-root", n.Cgroup()+"/cgroup.procs"), []string{"--cgroup-root " + n.Cgroup() + "/cgroup.procs", "not a directory"}},
		{"no such cgroup", run("--cgroup-root", n.Cgroup()+"/nowhere"), []string{"--cgroup-root " + n.Cgroup() + "/nowhere", "no such file"}},
		{"no bpffs", run("--bpffs-root", l.Dir()+"/pins"), []string{"--bpffs-root " + l.Dir() + "/pins", "not on a bpf file system", "mount -t bpf bpf " + l.Dir(), "--mount-bpffs"}},
		{"no bpffs, cleanup", exec.Command(rig.Self, "cleanup", "--bpffs-root", l.Dir()), []string{"not on a bpf file system"}},
		{"no manifests", run("--manifests", "/no/such/file"), []string{"/no/such/file"}},
		{"no daemon has run, status", exec.Command(rig.Self, "status", "--bpffs-root", root+"-other"), []string{"no daemon has run here"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, stderr, code := rig.RunCommand(t, test.cmd)
			checkRefusal(t, stderr, code, 1, test.says...)
			nothingLeft(t, n)
			if entries, err := os.ReadDir(l.Dir()); err != nil || len(entries) != 1 {
				t.Errorf("left in a directory of no bpf file system: %v (%v)", entries, err)
			}
		})
	}
}

// TestNoBPF: a kernel without the bpf system call, and a container that may not use it. A
// seccomp filter simulates both.
func TestNoBPF(t *testing.T) {
	t.Parallel()
	l := lab.ForTest(t)
	n := l.Node("n1")
	m := rig.NewManifests(t, l.Dir())
	m.Write()
	for errno, says := range map[syscall.Errno]string{
		syscall.ENOSYS: "this kernel has no bpf system call", syscall.EPERM: "the bpf system call is not permitted"} {
		cmd := exec.Command(rig.Self, "run", "--manifests", m.Path, "--cgroup-root", n.Cgroup(), "--bpffs-root", filepath.Join(n.BPFFS(), "shunt"))
		var said bytes.Buffer
		cmd.Stderr = &said
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked: the filter applies to this thread and its children
			err := refuseBPF(errno)
			if err == nil {
				err = cmd.Run()
			}
			done <- err
		}()
		code := rig.ExitCodeOf(t, <-done)
		checkRefusal(t, said.String(), code, 1, says)
	}
}

// refuseBPF makes the bpf system call fail for the calling thread.
func refuseBPF(errno syscall.Errno) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the system call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_BPF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

// TestMountBPFFS: --mount-bpffs mounts a bpf file system if there is none.
func TestMountBPFFS(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	dir := filepath.Join(c.Dir(), "mounted")
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
	c.d = rig.NewDaemon(t, c.n1, c.m.Path, "--mount-bpffs", "--bpffs-root", filepath.Join(dir, "shunt"))
	c.d.Root = filepath.Join(dir, "shunt")
	c.d.Start()
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...))
	ways[0].wantServers(t, c.client, rig.VIP(1, 4), c.web[0])
	c.d.Stop()
	// The root of the file system can also be a directory for pins. It stays.
	for _, root := range []string{c.d.Root, dir} {
		c.d.Root = root
		c.d.Start("--bpffs-root", root+"/")
		c.m.Settle(c.d)
		c.d.Stop()
		if stdout, stderr, code := rig.Shunt(t, "cleanup", "--bpffs-root", root); code != 0 || !strings.HasPrefix(stdout, "removed") {
			t.Errorf("cleanup of %s: exit code %d\n%s%s", root, code, stdout, stderr)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".debug") { // files that some kernels create
			t.Errorf("%s is left", e.Name())
		}
	}
}

// TestMalformedManifests: what cannot be read is reported with file and position, its last
// valid content stays in effect, and everything else works.
func TestMalformedManifests(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	dir := filepath.Join(c.Dir(), "manifests")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c.m.Path = filepath.Join(dir, "all.yaml")
	c.m.Put(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...))
	c.m.Write()
	c.d = rig.StartDaemon(t, c.n1, dir)
	c.m.Settle(c.d)
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("bad.yaml", "kind: Service\napiVersion: v1\nmetadata: {name: broken}\nspec: {clusterIP: [not, an, address]}\n")
	write("worse.yaml", "{{{ this is no YAML\n")
	rig.Eventually(t, "both files are complained of", func() bool {
		log := c.d.Log.String()
		return strings.Contains(log, "bad.yaml") && strings.Contains(log, "worse.yaml")
	})
	c.apply(rig.SlicesOf("web", rig.Up(c.web[1])...), rig.Service("more", 2), rig.SlicesOf("more", rig.Up(c.web[2])...))
	for _, w := range ways {
		w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[1])
		w.wantServers(t, c.client, rig.VIP(2, w.family), c.web[2])
	}
	if h, err := c.d.Healthz(); err != nil || h.Code != 200 {
		t.Errorf("healthz: %d, %v", h.Code, err)
	}
	// The valid file becomes invalid: its last content stays in effect, also over a restart
	// of the daemon.
	write("all.yaml", "{{{ neither is this\n")
	rig.Eventually(t, "the file is complained of", func() bool { return strings.Contains(c.d.Log.String(), "all.yaml") })
	ways[0].wantServers(t, c.client, rig.VIP(1, 4), c.web[1])
	c.d.Kill()
	c.d.Launch()
	rig.Eventually(t, "it is said that nothing can be used", func() bool {
		return strings.Contains(c.d.Log.String(), "nothing in the manifests can be used")
	})
	for _, w := range ways {
		w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[1])
	}
	c.apply(rig.SlicesOf("web", rig.Up(c.web[2])...))
	c.d.WaitHealthy()
	ways[0].wantServers(t, c.client, rig.VIP(1, 4), c.web[2])
}
