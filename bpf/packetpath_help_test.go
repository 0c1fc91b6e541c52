// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"shunt/maps"
)

// patience is the longest wait for something that happens asynchronously.
const patience = 30 * time.Second

// newNetns moves the test's thread into a network namespace of its own until the test ends.
func newNetns(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	runtime.LockOSThread()
	home, err := os.Open(hostNetns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer home.Close()
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Errorf("leave the network namespace: %v", err) // the thread stays locked, and ends with the test
			return
		}
		runtime.UnlockOSThread()
	})
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

// goHere runs fn on a thread of its own in the test's network namespace. The returned function
// waits until it ends.
func goHere(t *testing.T, fn func()) (wait func()) {
	t.Helper()
	here, err := os.Open(hostNetns)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer here.Close()
		runtime.LockOSThread()
		home, err := os.Open(hostNetns)
		if err != nil {
			t.Error(err)
			return
		}
		defer home.Close()
		if err := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		fn()
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err == nil {
			runtime.UnlockOSThread()
		}
	}()
	return func() { <-done }
}

// node is a network namespace with a directory of pins.
type node struct {
	*testing.T
	root string
	set  *maps.Set
	maps *maps.Kernel
	// noTCX: clsact is used even if the kernel has TCX.
	noTCX bool
	// real: the real programs are loaded also in short tests.
	real bool
	log  *observer.ObservedLogs
}

func newNode(t *testing.T, noTCX bool) *node {
	t.Helper()
	newNetns(t)
	n := &node{T: t, root: filepath.Join(bpffs(t), "shunt"), noTCX: noTCX}
	n.set, n.maps = openMaps(t, n.root)
	return n
}

// byBothWays runs a test with TCX, where the kernel has it, and with clsact.
func byBothWays(t *testing.T, test func(n *node)) {
	t.Helper()
	for _, noTCX := range []bool{false, true} {
		t.Run(map[bool]string{false: "TCX", true: "clsact"}[noTCX], func(t *testing.T) {
			if err := haveTCX(); !noTCX && err != nil {
				t.Skipf("this kernel has no TCX: %v", err)
			}
			test(newNode(t, noTCX))
		})
	}
}

func (n *node) by() string { return map[bool]string{false: "TCX", true: "clsact"}[n.noTCX] }

// path returns a packet path with changed options.
func (n *node) path(change ...func(*PacketPathOptions)) *PacketPath {
	n.Helper()
	core, logs := observer.New(zap.InfoLevel)
	n.log = logs
	opts := PacketPathOptions{Root: n.root, Set: n.set, Maps: n.maps, Log: zap.New(core), noTCX: n.noTCX,
		Programs: PacketOptions{SNATPorts: SNATPorts{First: 61000, Count: 4536}}}
	if testing.Short() && !n.real {
		opts.Programs.edit = onlyCount
	}
	for _, c := range change {
		c(&opts)
	}
	p, err := NewPacketPath(opts)
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() {
		if err := p.Close(); err != nil {
			n.Error(err)
		}
	})
	return p
}

// onlyCount replaces the programs by ones that count a reason and pass every packet. Short
// tests of attaching use them: an emulated Linux 5.10 verifies the real ones for half a minute
// each time. TestPacketVariants and TestAttachDevices load the real ones on every kernel.
func onlyCount(spec *ebpf.CollectionSpec) {
	for _, p := range spec.Programs {
		p.Instructions = asm.Instructions{
			asm.StoreImm(asm.RFP, -4, 2, asm.Word), // REASON_NO_FRONTEND,
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, 0).WithReference("counters"),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "pass"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, -1).WithSymbol("pass"),
			asm.Return(),
		}
	}
}

// must fails the test on an error.
func (n *node) must(err error) {
	n.Helper()
	if err != nil {
		n.Fatal(err)
	}
}

// add adds a device with addresses, sets it up, and returns its index.
func (n *node) add(l netlink.Link, addrs ...string) int {
	n.Helper()
	if err := netlink.LinkAdd(l); err != nil {
		n.Fatalf("make %s %s: %v", l.Type(), l.Attrs().Name, err)
	}
	made, err := netlink.LinkByName(l.Attrs().Name)
	n.must(err)
	n.must(netlink.LinkSetUp(made))
	for _, a := range addrs {
		n.must(netlink.AddrAdd(made, addrOf(n.T, a)))
	}
	return made.Attrs().Index
}

func addrOf(t *testing.T, a string) *netlink.Addr {
	t.Helper()
	p := netip.MustParsePrefix(a)
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return addr
}

// veth adds a veth pair. The peer is called name-peer.
func (n *node) veth(name string, addrs ...string) (index, peer int) {
	n.Helper()
	index = n.add(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-peer"}, addrs...)
	other, err := netlink.LinkByName(name + "-peer")
	n.must(err)
	n.must(netlink.LinkSetUp(other))
	return index, other.Attrs().Index
}

func (n *node) remove(index int) {
	n.Helper()
	n.must(netlink.LinkDel(linkOf(index)))
}

// attached returns the attachments in effect, as "name direction why by", sorted. It fails the
// test if one has a problem.
func (n *node) attached() []string {
	n.Helper()
	devices, err := readDevices()
	n.must(err)
	ways := waysBelow(n.root, false)
	found, err := listAll(ways)
	n.must(err)
	all := []string{}
	for _, w := range ways {
		for _, a := range found[w] {
			name := fmt.Sprintf("(%d)", a.index)
			if d := deviceOf(devices, a.index); d != nil {
				name = d.name
			}
			state := ""
			if !a.inEffect {
				state = " not in effect"
			}
			all = append(all, fmt.Sprintf("%s %s %s %s%s", name, a.dir, a.why, w, state))
		}
	}
	slices.Sort(all)
	return all
}

// want checks that exactly these are attached: pairs of a device's name and why.
func (n *node) want(pairs ...string) {
	n.Helper()
	if got, want := n.attached(), n.wanted(pairs); !slices.Equal(got, want) {
		n.Fatalf("attached: %q\nwant: %q\nlog: %v", got, want, n.logged())
	}
}

func (n *node) wanted(pairs []string) []string {
	want := []string{}
	for i := 0; i < len(pairs); i += 2 {
		for dir := range direction(directions) {
			want = append(want, fmt.Sprintf("%s %s %s %s", pairs[i], dir, pairs[i+1], n.by()))
		}
	}
	slices.Sort(want)
	return want
}

func (n *node) logged() (lines []string) {
	for _, e := range n.log.All() {
		lines = append(lines, fmt.Sprint(e.Message, e.ContextMap()))
	}
	return lines
}

// eventually waits until ok returns true.
func (n *node) eventually(what string, ok func() bool) {
	n.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.Fatalf("not within %v: %s; attached: %q, log: %v", patience, what, n.attached(), n.logged())
		}
	}
}

// runs returns how often programs have run.
func (n *node) runs() (sum uint64) {
	n.Helper()
	reasons, err := n.maps.Reasons()
	n.must(err)
	for _, count := range reasons {
		sum += count
	}
	return sum
}

// frame is an Ethernet frame with a UDP packet from 192.0.2.2 to 192.0.2.3, an address that no
// host has.
var frame = []byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x08\x00" +
	"\x45\x00\x00\x1c\x00\x00\x00\x00\x40\x11\xf6\xcd\xc0\x00\x02\x02\xc0\x00\x02\x03" +
	"\x03\xe8\x03\xe9\x00\x08\x00\x00")

// wantRun sends a packet out of a device and checks that a program has run.
func (n *node) wantRun(index int, packet []byte) {
	n.Helper()
	before := n.runs()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	n.must(err)
	defer unix.Close(fd)
	n.must(unix.Sendto(fd, packet, 0, &unix.SockaddrLinklayer{Ifindex: index, Protocol: 0x0008 /* IPv4, network order */}))
	n.eventually("a packet goes through a program", func() bool { return n.runs() > before })
}

// run runs the packet path until the returned function is called.
func (n *node) run(p *PacketPath) (stop func()) {
	n.Helper()
	ctx, cancel := context.WithCancel(n.Context())
	wait := goHere(n.T, func() {
		if err := p.Run(ctx); err != nil {
			n.Error(err)
		}
	})
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			wait()
		}
	}
	n.Cleanup(stop)
	return stop
}

// foreign loads a program that passes everything.
func (n *node) foreign() *ebpf.Program {
	n.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "foreign", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	n.must(err)
	n.Cleanup(func() { _ = p.Close() })
	return p
}

// sourceAddrsOf returns the addresses of a device's entry in map devices as text, "" where there is
// no entry.
func (n *node) sourceAddrsOf(index int) string {
	n.Helper()
	all, err := n.maps.Devices()
	n.must(err)
	d, ok := all[uint32(index)]
	if !ok {
		return ""
	}
	v4, v6 := d.Addrs()
	return strings.ReplaceAll(fmt.Sprint(v4, " ", v6), "invalid IP", "-")
}

// awayNetns returns another network namespace, which ends when the file descriptor is closed.
func (n *node) awayNetns() (fd int) {
	n.Helper()
	goHere(n.T, func() {
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			fd, err = unix.Open(hostNetns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			n.Error(err)
		}
	})()
	return fd
}
