// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// podCgroup is part of the name of the cgroup that a kubelet makes for all pods, with either of
// its cgroup drivers and below any --cgroup-root.
const podCgroup = "kubepods"

// scope has the cgroup that the hooks are attached to, and the cgroups of processes. Paths have
// the form of /proc/PID/cgroup: they are relative to the root of the reader's cgroup namespace,
// and the path of a cgroup outside of it begins with "/..".
type scope struct {
	attached string
	// own is this process's cgroup.
	own string
	// childless reports whether attached has no cgroup below it.
	childless bool
	pods      []podProcess
}

// podProcess is a process of a pod, with its cgroup's path.
type podProcess struct {
	pid    int
	cgroup string
}

// problem returns why the hooks don't act on this node's pods; empty if there is no sign of
// that. It is a pure function, as are summary and outside.
func (s scope) problem() string {
	text := s.summary()
	if outside := s.outside(); len(outside) > 0 {
		text += fmt.Sprintf("; process %d in %s is one", outside[0].pid, outside[0].cgroup)
	}
	return text
}

// summary returns the text of problem without the name of a pod's process, for readers that may
// only know the node's state.
func (s scope) summary() string {
	if outside := len(s.outside()); outside > 0 {
		return fmt.Sprintf("%d of the %d processes of pods here are not below the cgroup %s that the hooks act on: "+
			"start shunt with the node's own cgroup root (--cgroup-root)", outside, len(s.pods), s.attached)
	}
	if s.childless && s.own == s.attached {
		return "the hooks act on this process's own cgroup, which has none below it: this is a container with a cgroup " +
			"namespace of its own, and not the node's root; mount the node's cgroup file system and name it (--cgroup-root)"
	}
	return ""
}

// outside returns the processes of pods that the hooks don't act on.
func (s scope) outside() (all []podProcess) {
	for _, p := range s.pods {
		if !isBelow(p.cgroup, s.attached) {
			all = append(all, p)
		}
	}
	return all
}

// isBelow reports whether path is, or may be, root or below it. A path does not have the names of
// cgroups above the cgroup namespace's root, but "/.." for each. If root's path has more of these
// than path has, and then descends again, path may be below root.
func isBelow(path, root string) bool {
	up, rest := ups(path)
	rootUp, rootRest := ups(root)
	if rootRest == "" || up < rootUp { // root is above path, or may be
		return up <= rootUp
	}
	return up == rootUp && (rest == rootRest || strings.HasPrefix(rest, rootRest+"/"))
}

// ups returns the number of leading ".." of a cgroup's path, and the rest.
func ups(path string) (n int, rest string) {
	rest = strings.Trim(path, "/")
	for rest == ".." || strings.HasPrefix(rest, "../") {
		n++
		rest = strings.TrimPrefix(strings.TrimPrefix(rest, ".."), "/")
	}
	return n, rest
}

// scopeProblem returns the problem of a cgroup directory's scope.
func scopeProblem(cgroup, named string) (string, error) {
	s, err := scopeOf(cgroup, named)
	return s.problem(), err
}

// scopeOf reads the scope of a cgroup directory. named is part of the names of pods' cgroups. The
// root of the whole hierarchy contains every process: for it, scopeOf returns the zero value and
// does not list processes.
func scopeOf(cgroup, named string) (s scope, err error) {
	if _, err := os.Stat(filepath.Join(cgroup, "cgroup.type")); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(cgroup, "cgroup.procs")); err == nil {
			return s, nil
		}
	}
	if s, err = readScope(cgroup); err != nil {
		return scope{}, err
	}
	if s.pods, err = readPods("/proc", named); err != nil {
		return scope{}, err
	}
	return s, nil
}

func readScope(cgroup string) (s scope, err error) {
	if s.attached, err = cgroupPath(cgroup); err != nil {
		return s, err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return s, fmt.Errorf("read the cgroup of this process: %w", err)
	}
	s.own, _ = parseCgroups(own, podCgroup)
	stat, err := os.ReadFile(filepath.Join(cgroup, "cgroup.stat"))
	if err != nil {
		return s, fmt.Errorf("look below cgroup %s: %w", cgroup, err)
	}
	s.childless = bytes.Contains(append([]byte("\n"), stat...), []byte("\nnr_descendants 0\n"))
	return s, nil
}

// cgroupPath returns a cgroup directory's path in the form of /proc/PID/cgroup: the root of the
// mount, which may be any cgroup, and the path below.
func cgroupPath(dir string) (string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return "", fmt.Errorf("open the cgroup: %w", err)
	}
	defer f.Close()
	fd := strconv.Itoa(int(f.Fd()))
	info, err := os.ReadFile("/proc/self/fdinfo/" + fd)
	if err != nil {
		return "", fmt.Errorf("look for the mount of cgroup %s: %w", dir, err)
	}
	full, err := os.Readlink("/proc/self/fd/" + fd)
	if err != nil {
		return "", fmt.Errorf("look for the path of cgroup %s: %w", dir, err)
	}
	_, id, _ := strings.Cut(string(info), "mnt_id:")
	id, _, _ = strings.Cut(strings.TrimSpace(id), "\n")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("look for the mount of cgroup %s: %w", dir, err)
	}
	for line := range strings.Lines(string(mounts)) {
		// id, parent, device, root, mount point
		if f := strings.Fields(line); len(f) > 4 && f[0] == id {
			// Not filepath.Join, which would drop a leading "/..".
			path := strings.TrimRight(unescape(f[3]), "/") + strings.TrimPrefix(full, strings.TrimRight(unescape(f[4]), "/"))
			return "/" + strings.Trim(path, "/"), nil
		}
	}
	return "", fmt.Errorf("no mount of cgroup %s is in /proc/self/mountinfo", dir)
}

// unescape replaces the octal escapes that the kernel writes to tables of mounts.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// readPods returns the processes that have a pod's cgroup in any hierarchy.
func readPods(proc, named string) ([]podProcess, error) {
	dir, err := os.Open(proc)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pods []podProcess
	text := make([]byte, 4096)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		n, err := readInto(filepath.Join(proc, name, "cgroup"), text)
		if err != nil {
			continue // the process has ended
		}
		if path, isPod := parseCgroups(text[:n], named); isPod {
			pods = append(pods, podProcess{pid, path})
		}
	}
	return pods, nil
}

// readInto reads a small file by three system calls: os.ReadFile makes more.
func readInto(path string, to []byte) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.Read(fd, to)
}

// parseCgroups parses the lines of /proc/PID/cgroup. It returns the path in the cgroup v2
// hierarchy, and whether a path in any hierarchy is a pod's.
func parseCgroups(text []byte, named string) (path string, isPod bool) {
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		isPod = isPod || strings.Contains(f[2], named)
		if f[0] == "0" {
			path = strings.TrimSuffix(f[2], " (deleted)")
		}
	}
	return path, isPod
}

// ScopeProblem returns why hooks attached to the cgroup with that id (inode number) don't act
// on this node's pods, as far as this process can see; empty if there is no sign of that.
func ScopeProblem(id uint64) (string, error) {
	roots, err := cgroupMounts()
	if err != nil {
		return "", err
	}
	for _, root := range roots { // one mount may show more of the hierarchy than another
		if text, err := scopeProblemBelow(root, id); text != "" || err != nil {
			return text, err
		}
	}
	return "", nil
}

func scopeProblemBelow(root string, id uint64) (string, error) {
	at, err := unix.Open(root, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open cgroup root %s: %w", root, err)
	}
	defer unix.Close(at)
	fd, err := unix.OpenByHandleAt(at, unix.NewFileHandle(fileIDKernfs, binary.NativeEndian.AppendUint64(nil, id)),
		unix.O_DIRECTORY|unix.O_CLOEXEC)
	if errors.Is(err, unix.ESTALE) {
		return fmt.Sprintf("the cgroup %d that the hooks are attached to is gone", id), nil
	}
	if err != nil {
		return "", fmt.Errorf("open the cgroup of id %d: %w", id, err)
	}
	defer unix.Close(fd)
	return scopeProblem(fmt.Sprintf("/proc/self/fd/%d", fd), podCgroup)
}

// fileIDKernfs is FILEID_KERNFS of the kernel's enum fid_type: a file handle of eight bytes, which are
// the cgroup's id.
const fileIDKernfs = 0xfe
