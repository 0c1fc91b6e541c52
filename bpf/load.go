package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"shunt/maps"
)

// Programs are the loaded programs of the socket path, not attached yet.
type Programs struct {
	objects sockPrograms
	// HasSetRetval: a refusal can say why (see Features).
	HasSetRetval bool
}

// hook is where one program goes and what its link's pin is called.
type hook struct {
	pin    string
	attach ebpf.AttachType
	prog   *ebpf.Program
}

func (p *Programs) hooks() []hook {
	return []hook{
		{"connect4", ebpf.AttachCGroupInet4Connect, p.objects.ShuntConnect4},
		{"connect6", ebpf.AttachCGroupInet6Connect, p.objects.ShuntConnect6},
		{"sendmsg4", ebpf.AttachCGroupUDP4Sendmsg, p.objects.ShuntSendmsg4},
		{"sendmsg6", ebpf.AttachCGroupUDP6Sendmsg, p.objects.ShuntSendmsg6},
		{"recvmsg4", ebpf.AttachCGroupUDP4Recvmsg, p.objects.ShuntRecvmsg4},
		{"recvmsg6", ebpf.AttachCGroupUDP6Recvmsg, p.objects.ShuntRecvmsg6},
		{"getpeername4", ebpf.AttachCgroupInet4GetPeername, p.objects.ShuntGetpeername4},
		{"getpeername6", ebpf.AttachCgroupInet6GetPeername, p.objects.ShuntGetpeername6},
	}
}

// linkDir is where links are pinned, below the daemon's directory.
const linkDir = "links"

// Load loads the programs with these maps. The network namespace of the calling
// process is the node's.
func Load(set *maps.Set) (*Programs, error) {
	cookie, err := NetnsCookie()
	if errors.Is(err, unix.ENOPROTOOPT) {
		cookie = 0 // see config.h
	} else if err != nil {
		return nil, err
	}
	p := &Programs{HasSetRetval: true}
	err = p.load(set, cookie)
	if err != nil {
		p.HasSetRetval = false
		if p.load(set, cookie) == nil {
			return p, nil
		}
		return nil, fmt.Errorf("load programs into the kernel: %w", Explain(err))
	}
	return p, nil
}

func (p *Programs) load(set *maps.Set, cookie uint64) error {
	spec, err := loadSock()
	if err != nil {
		return err
	}
	if err := spec.Variables[sockVarConfigNetnsCookie].Set(cookie); err != nil {
		return err
	}
	hasSetRetval := uint8(0)
	if p.HasSetRetval {
		hasSetRetval = 1
	}
	if err := spec.Variables[sockVarConfigHasSetRetval].Set(hasSetRetval); err != nil {
		return err
	}
	first, last, err := skippedPorts()
	if err != nil {
		return err
	}
	for name, port := range map[string]uint32{sockVarConfigEphemeralFirst: first, sockVarConfigEphemeralLast: last} {
		if err := spec.Variables[name].Set(port); err != nil {
			return err
		}
	}
	return spec.LoadAndAssign(&p.objects, &ebpf.CollectionOptions{MapReplacements: replacements(spec, set)})
}

// replacements gives the set's maps for those that a program's object declares,
// which take over their sizes.
func replacements(spec *ebpf.CollectionSpec, set *maps.Set) map[string]*ebpf.Map {
	replaced := map[string]*ebpf.Map{}
	for name, declared := range spec.Maps {
		if m := set.Map(name); m != nil {
			declared.MaxEntries = m.MaxEntries()
			replaced[name] = m
		}
	}
	return replaced
}

// Close closes the programs; links keep those that are attached.
func (p *Programs) Close() error { return p.objects.Close() }

// NetnsCookie is the kernel's cookie of the calling process's network namespace.
func NetnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a socket to ask for the network namespace's cookie: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("ask for the network namespace's cookie (SO_NETNS_COOKIE, Linux 5.14): %w", err)
	}
	return cookie, nil
}

// Attach puts the programs into effect for the cgroup and all below it, and pins
// the links below root. A link that an earlier daemon pinned for this cgroup is
// updated in place: there is no moment without a program.
func (p *Programs) Attach(root, cgroup string) error {
	dir := filepath.Join(root, linkDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory %s for pinned links: %w", dir, err)
	}
	id, err := cgroupID(cgroup)
	if err != nil {
		return err
	}
	for _, h := range p.hooks() {
		err := h.attachTo(filepath.Join(dir, h.pin), cgroup, id)
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w: another program is attached there or above that wants to be alone; `bpftool cgroup tree` shows it", err)
		}
		if err != nil {
			return fmt.Errorf("attach program %s to cgroup %s: %w", h.pin, cgroup, err)
		}
	}
	return nil
}

func (h hook) attachTo(pin, cgroup string, id uint64) error {
	old, err := link.LoadPinnedLink(pin, nil)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open the pinned link of an earlier daemon: %w", err)
	}
	if old != nil {
		defer old.Close()
		if linkCgroup(old) == id {
			return old.Update(h.prog)
		}
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: h.attach, Program: h.prog})
	if err != nil {
		return err
	}
	defer l.Close()
	if old != nil { // another cgroup's, or of one that was removed: the new one is in effect now
		if err := detach(old); err != nil {
			return err
		}
		if err := old.Unpin(); err != nil {
			return err
		}
	}
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pin the link: %w", err)
	}
	return nil
}

// detach takes a link out of effect at once: when its last pin and file are gone,
// the kernel does so too, but some time later. A link of a cgroup that was removed
// is out of effect already.
func detach(l link.Link) error {
	if linkCgroup(l) == 0 {
		return nil
	}
	return l.Detach()
}

// linkCgroup is the id of the cgroup that a link is attached to; 0 where that
// can't be told or the cgroup is gone.
func linkCgroup(l link.Link) uint64 {
	info, err := l.Info()
	if err != nil {
		return 0
	}
	cg := info.Cgroup()
	if cg == nil {
		return 0
	}
	return cg.CgroupId
}

// cgroupID is the id of a cgroup v2 directory: its inode number.
func cgroupID(dir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, fmt.Errorf("look at cgroup %s: %w", dir, err)
	}
	return st.Ino, nil
}

// Attachment is one hook as it is now.
type Attachment struct {
	Hook     string `json:"hook"`
	Attached bool   `json:"attached"`
	// Cgroup is the id (inode number) of the cgroup it is attached to.
	Cgroup  uint64 `json:"cgroup,omitempty"`
	Program uint32 `json:"program,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// Attachments reads the pinned links below root.
func Attachments(root string) []Attachment {
	var all []Attachment
	for _, h := range (&Programs{}).hooks() {
		a := Attachment{Hook: h.pin}
		l, err := link.LoadPinnedLink(filepath.Join(root, linkDir, h.pin), nil)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			a.Problem = "not attached: no link is pinned"
		case err != nil:
			a.Problem = err.Error()
		default:
			a.read(l)
			l.Close()
		}
		all = append(all, a)
	}
	return all
}

func (a *Attachment) read(l link.Link) {
	info, err := l.Info()
	if err != nil {
		a.Problem = err.Error()
		return
	}
	a.Cgroup, a.Program = linkCgroup(l), uint32(info.Program)
	if a.Attached = a.Cgroup != 0; !a.Attached {
		a.Problem = "the cgroup that it was attached to is gone"
	}
}

// Detach takes the programs out of effect, and removes the links below root; of the
// packet path's filters, those of this network namespace.
func Detach(root string) error {
	if err := detachPackets(root); err != nil {
		return err
	}
	for _, h := range (&Programs{}).hooks() {
		l, err := link.LoadPinnedLink(filepath.Join(root, linkDir, h.pin), nil)
		if err != nil {
			continue // not there, or nothing that could be in effect
		}
		if err := errors.Join(detach(l), l.Close()); err != nil {
			return fmt.Errorf("take program %s out of effect: %w", h.pin, err)
		}
	}
	if err := os.RemoveAll(filepath.Join(root, linkDir)); err != nil {
		return fmt.Errorf("remove pinned links: %w", err)
	}
	return nil
}
