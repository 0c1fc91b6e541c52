// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"shunt/maps"
)

// Programs are the loaded programs of the socket path, and their links once they are attached.
type Programs struct {
	objects sockPrograms
	// HasSetRetval reports whether the kernel has bpf_set_retval, so that a refused connect()
	// fails with ECONNREFUSED instead of EPERM (see Features).
	HasSetRetval bool
	// links are the attached links, by the names of their pins. They remain open, so that no
	// removal of a pin detaches a program while this process lives.
	links map[string]link.Link
}

// hook is one program, its attach type and the name of its link's pin.
type hook struct {
	pin    string
	attach ebpf.AttachType
	prog   *ebpf.Program
}

// hooks returns the hooks in the order of attaching: the hooks that show a translated socket the
// service's address come before those that translate. They are detached in the opposite order.
func (p *Programs) hooks() []hook {
	return []hook{
		{"getpeername4", ebpf.AttachCgroupInet4GetPeername, p.objects.ShuntGetpeername4},
		{"getpeername6", ebpf.AttachCgroupInet6GetPeername, p.objects.ShuntGetpeername6},
		{"recvmsg4", ebpf.AttachCGroupUDP4Recvmsg, p.objects.ShuntRecvmsg4},
		{"recvmsg6", ebpf.AttachCGroupUDP6Recvmsg, p.objects.ShuntRecvmsg6},
		{"connect4", ebpf.AttachCGroupInet4Connect, p.objects.ShuntConnect4},
		{"connect6", ebpf.AttachCGroupInet6Connect, p.objects.ShuntConnect6},
		{"sendmsg4", ebpf.AttachCGroupUDP4Sendmsg, p.objects.ShuntSendmsg4},
		{"sendmsg6", ebpf.AttachCGroupUDP6Sendmsg, p.objects.ShuntSendmsg6},
	}
}

// linkDir is the directory of pinned links, below the daemon's directory of pins.
const linkDir = "links"

// Load loads the programs with the maps of set. The calling process must be in the node's
// network namespace. Where the kernel has no bpf_set_retval it loads them without. The error
// names the needed feature that the kernel lacks, if that is the cause.
func Load(set *maps.Set) (*Programs, error) {
	cookie, err := NetnsCookie()
	if errors.Is(err, unix.ENOPROTOOPT) {
		cookie = 0 // see config.h
	} else if err != nil {
		return nil, err
	}
	p := &Programs{HasSetRetval: true, links: map[string]link.Link{}}
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

// replacements returns the maps of set that spec declares, by name, and sets their sizes in
// spec to those of the real maps.
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

// Close closes the programs and links. Programs whose links are pinned remain attached.
func (p *Programs) Close() error {
	errs := []error{p.objects.Close()}
	for _, l := range p.links {
		errs = append(errs, l.Close())
	}
	clear(p.links)
	return errors.Join(errs...)
}

// NetnsCookie returns the kernel's cookie of the calling thread's network namespace
// (SO_NETNS_COOKIE). Before Linux 5.14 it returns an error that wraps unix.ENOPROTOOPT.
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
