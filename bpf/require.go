// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// RequireRoot returns an error that names a missing capability: CAP_SYS_ADMIN or CAP_NET_ADMIN.
func RequireRoot() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("read this process's capabilities: %w", err)
	}
	for _, c := range []struct {
		bit  int
		name string
	}{{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}} {
		if data[c.bit/32].Effective&(1<<(c.bit%32)) == 0 {
			return fmt.Errorf("%s is missing: run as root, in a pod with securityContext.privileged", c.name)
		}
	}
	return nil
}

// RequireBPF returns an error where the bpf system call does not exist or is not permitted at
// all.
func RequireBPF() error {
	const noCommand = 0xffff // no kernel has this command: EINVAL where bpf() is permitted
	switch _, _, errno := unix.Syscall(unix.SYS_BPF, noCommand, 0, 0); errno {
	case unix.ENOSYS:
		return fmt.Errorf("this kernel has no bpf system call: shunt needs one with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF (%w)", errno)
	case unix.EPERM:
		return fmt.Errorf("the bpf system call is not permitted: run without a seccomp filter of it, "+
			"in a pod with securityContext.privileged (%w)", errno)
	}
	return nil
}

// FindCgroupRoot returns the first mount point of cgroup v2, or checks that the directory asked
// for is on one and returns that.
func FindCgroupRoot(asked string) (string, error) {
	if asked != "" {
		if err := requireFS(asked, unix.CGROUP2_SUPER_MAGIC); err != nil {
			return "", fmt.Errorf("--cgroup-root %s: not a directory of a cgroup v2 hierarchy (%w); "+
				"`grep cgroup2 /proc/mounts` shows where there is one", asked, err)
		}
		if st, err := os.Stat(asked); err != nil || !st.IsDir() {
			return "", fmt.Errorf("--cgroup-root %s: not a directory", asked)
		}
		return asked, nil
	}
	roots, err := cgroupMounts()
	if err != nil {
		return "", err
	}
	if len(roots) > 0 {
		return roots[0], nil
	}
	return "", errors.New("no cgroup v2 hierarchy is mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified`, " +
		"or boot with systemd.unified_cgroup_hierarchy=1, or name a directory with --cgroup-root")
}

// cgroupMounts returns the mount points of cgroup v2, in the order of /proc/self/mounts.
func cgroupMounts() (roots []string, err error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, fmt.Errorf("look for a cgroup v2 mount: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// device, mount point, type
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			roots = append(roots, unescape(fields[1]))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("look for a cgroup v2 mount: %w", err)
	}
	return roots, nil
}

// RequireBPFFS creates the directory for pins if it is missing, and checks that it is on a bpf
// file system and closed to other users. With mount, it first mounts a bpf file system where
// there is none: at the directory's parent, or at the directory itself if that exists on sysfs
// (/sys/fs/bpf).
func RequireBPFFS(dir string, mount bool) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("--bpffs-root %q: give an absolute path", dir)
	}
	err := requireFS(existing(dir), unix.BPF_FS_MAGIC)
	parent := filepath.Dir(dir)
	if requireFS(dir, unix.SYSFS_MAGIC) == nil {
		parent = dir
	}
	if err != nil && mount {
		if err := os.MkdirAll(parent, 0o700); err != nil {
			return fmt.Errorf("make %s to mount a bpf file system on: %w", parent, err)
		}
		if err := unix.Mount("bpf", parent, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
			return fmt.Errorf("mount a bpf file system on %s: %w", parent, err)
		}
		err = requireFS(parent, unix.BPF_FS_MAGIC)
	}
	if err != nil {
		return fmt.Errorf("--bpffs-root %s: not on a bpf file system (%w): `mount -t bpf bpf %s`, or use --mount-bpffs",
			dir, err, parent)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory %s for pins: %w", dir, err)
	}
	return requireOwn(dir)
}

// CheckBPFFS returns an error if the directory is not on a bpf file system. It creates nothing.
func CheckBPFFS(dir string) error {
	if err := requireFS(dir, unix.BPF_FS_MAGIC); err != nil {
		return fmt.Errorf("--bpffs-root %s: not on a bpf file system: %w", dir, err)
	}
	return nil
}

// existing returns the path, or its nearest parent that exists.
func existing(path string) string {
	for {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) || path == "/" {
			return path
		}
		path = filepath.Dir(path)
	}
}

func requireFS(path string, magic int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	if int64(st.Type) != magic {
		return fmt.Errorf("%s has file system type %#x", path, st.Type)
	}
	return nil
}

// Feature is a feature of the kernel that shunt uses.
type Feature struct {
	Name string
	// Needed reports whether shunt requires the feature. If not, Without describes the loss
	// without it.
	Needed  bool
	Without string
	// Err is nil where the kernel has it.
	Err error
}

// Features checks the kernel for each feature, by trying it and never by the kernel's version.
func Features() []Feature {
	// Where the kernel counts programs as locked memory, a process that has made no maps, such as
	// shunt status, may not be allowed to load one. The feature checks would fail for that reason
	// instead of a missing feature. The error is ignored: without the privilege to lift the limit
	// there is no remedy.
	_ = rlimit.RemoveMemlock()
	lacks := func(err error) error { // any other error comes from a kernel that has the feature
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.ENOPROTOOPT) {
			return err
		}
		return nil
	}
	helper := func(f asm.BuiltinFunc) error { return lacks(features.HaveProgramHelper(ebpf.CGroupSockAddr, f)) }
	_, cookieErr := NetnsCookie()
	return []Feature{
		{Name: "cgroup sock_addr programs", Needed: true, Err: lacks(features.HaveProgramType(ebpf.CGroupSockAddr))},
		{Name: "socket storage", Needed: true, Err: lacks(features.HaveMapType(ebpf.SkStorage))},
		{Name: "socket storage in connect hooks", Needed: true, Err: helper(asm.FnSkStorageGet)},
		{Name: "network namespace cookies", Needed: true, Err: helper(asm.FnGetNetnsCookie)},
		{Name: "bounded loops", Needed: true, Err: lacks(features.HaveBoundedLoops())},
		{Name: "tc programs", Needed: true, Err: lacks(features.HaveProgramType(ebpf.SchedCLS))},
		{Name: "bpf_set_retval", Err: helper(asm.FnSetRetval),
			Without: "a refused connect() fails with EPERM instead of ECONNREFUSED"},
		{Name: "SO_NETNS_COOKIE", Err: lacks(cookieErr),
			Without: "127.0.0.1:nodePort works only where the node's network namespace is the machine's first, and load-balancer IPs " +
				"with source ranges refuse pods and processes of this node"},
		{Name: "iterators over socket storage", Err: haveIter("bpf_sk_storage_map"),
			Without: "sockets that are connected to a removed endpoint are not ended"},
		{Name: "iterators over maps", Err: haveIter("bpf_map_elem"),
			Without: "more time is spent on looking for connections from outside that have ended"},
		{Name: "checksum state in tc programs", Err: haveKernCtx(),
			Without: "more time is spent on every packet that is changed"},
		{Name: "TCX", Err: haveTCX(),
			Without: "programs are attached to devices by filters of a clsact qdisc: they go when another program removes that qdisc"},
	}
}

// haveIter loads a minimal iterator over one kind of object. sweep.c and expire.c are such
// iterators.
func haveIter(over string) error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: over,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}, License: "Dual BSD/GPL",
	})
	if err != nil {
		return err
	}
	return p.Close()
}

// haveKernCtx loads a minimal program that reads how far a packet's checksum is computed
// (summed.h).
func haveKernCtx() error {
	var objects probePrograms
	spec, err := loadProbe()
	if err != nil {
		return err
	}
	if err := spec.LoadAndAssign(&objects, nil); err != nil {
		return err
	}
	return objects.Close()
}

// Explain returns an error that names the feature that the kernel lacks, if one is needed and
// missing; else it returns err.
func Explain(err error) error {
	for _, f := range Features() {
		if f.Needed && f.Err != nil {
			return fmt.Errorf("this kernel has no %s: shunt needs Linux 5.10 or newer with CONFIG_BPF_SYSCALL, "+
				"CONFIG_CGROUP_BPF and CONFIG_NET_CLS_BPF (%w)", f.Name, f.Err)
		}
	}
	return err
}
