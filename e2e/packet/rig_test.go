// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"shunt/bpf"
	"shunt/lab"
	"shunt/maps"
	"shunt/maps/mapstest"
)

// hook is one of the two programs.
type hook uint8

const (
	ingress hook = iota
	egress
)

func (h hook) String() string {
	if h == ingress {
		return "ingress"
	}
	return "egress"
}

// Verdicts of tc programs (linux/pkt_cls.h).
const (
	unspec   = 0xffffffff // TC_ACT_UNSPEC, -1
	shot     = 2
	redirect = 7
)

const ethLen = 14

// macRouter is the MAC address of the host at the other end of the link.
var macRouter = [6]byte{2, 0, 0, 0, 0, 2}

// netns is a network namespace in which programs look up routes. No packet is sent in it.
type netns struct {
	file    *os.File
	ifindex uint32 // the device of the packets
	mac     [6]byte
	// addr4 and addr6 are the source addresses of the routes through that device.
	addr4, addr6 netip.Addr
}

// newBare makes a namespace without routes: source addresses come from map devices only.
func newBare(t testing.TB) netns {
	t.Helper()
	type made struct {
		file *os.File
		err  error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{nil, fmt.Errorf("make a network namespace: %w", err)}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		done <- made{f, err}
	}()
	m := <-done
	if errors.Is(m.err, unix.EPERM) {
		t.Skipf("needs root: %v", m.err)
	}
	if m.err != nil {
		t.Fatal(m.err)
	}
	t.Cleanup(func() { m.file.Close() })
	return netns{file: m.file, ifindex: 1} // loopback
}

// newRouted makes a namespace that has a device with addresses and routes.
func newRouted(t testing.TB) netns {
	t.Helper()
	node := lab.ForTest(t).Node("node")
	n := netns{addr4: node.Addr4(), addr6: node.Addr6()}
	err := node.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		n.ifindex = uint32(eth0.Index)
		copy(n.mac[:], eth0.HardwareAddr)
		n.file, err = os.Open(node.NetnsPath())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.file.Close() })
	return n
}

// enter moves the test's goroutine, and the rig's runs, into the namespace. Its thread is
// never unlocked and ends with the goroutine.
func (r *rig) enter(t testing.TB, n netns) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatalf("enter a network namespace: %v", err)
	}
	r.t, r.netns = t, n
}

// rig is a set of maps with the programs that use them.
type rig struct {
	t        testing.TB
	netns    netns
	sizes    maps.Sizes
	device   bpf.PacketDevice
	set      *maps.Set
	kernel   *maps.Kernel
	programs *bpf.PacketPrograms
	loaded   *world // the content of the maps
	nextSlot uint32
	context  [256]byte // a struct __sk_buff
	flags    uint32    // of BPF_PROG_TEST_RUN
	out      []byte
}

// minUptime is how long the machine must be up, so that no test makes an entry older than
// the machine: more than twice the longest timeout here.
const minUptime = time.Minute

// newRig makes maps and loads the programs. The test's end closes them. The caller must enter
// a network namespace before it runs the programs. newRig waits until the machine has been up
// for minUptime: a wait inside a test would count as the flows' age.
func newRig(t testing.TB, opts bpf.PacketOptions, d bpf.PacketDevice, sizes maps.Sizes) *rig {
	t.Helper()
	set, _, err := maps.Open(mapstest.BPFFS(t), sizes)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, sizes: sizes, device: d, set: set, loaded: newWorld(), out: make([]byte, 4096)}
	time.Sleep(minUptime - time.Duration(r.now()))
	t.Cleanup(func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
	})
	if r.kernel, err = maps.NewKernel(set); err != nil {
		t.Fatal(err)
	}
	if r.programs, err = bpf.LoadPacketPrograms(set, opts, d); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) close() error {
	var errs []error
	if r.programs != nil {
		errs = append(errs, r.programs.Close())
	}
	if r.kernel != nil {
		errs = append(errs, r.kernel.Close())
	}
	return errors.Join(append(errs, r.set.Close())...)
}

// Offsets in struct __sk_buff (linux/bpf.h).
const (
	skbIfindex = 40
	skbSize    = 192
)

// result is the result of a run. data is valid until the next run.
type result struct {
	verdict uint32
	data    []byte
}

// run runs a frame through a program, on the namespace's device.
func (r *rig) run(h hook, frame []byte) result {
	r.t.Helper()
	res, err := r.tryRun(h, frame)
	if err != nil {
		r.t.Fatalf("run %s on %d bytes %x: %v", h, len(frame), frame, err)
	}
	return res
}

func (r *rig) tryRun(h hook, frame []byte) (result, error) {
	binary.NativeEndian.PutUint32(r.context[skbIfindex:], r.netns.ifindex)
	opts := ebpf.RunOptions{Data: frame, DataOut: r.out, Context: r.context[:skbSize], Repeat: 1, Flags: r.flags}
	program := r.programs.Ingress
	if h == egress {
		program = r.programs.Egress
	}
	verdict, err := program.Run(&opts)
	return result{verdict, opts.DataOut}, err
}

// frame puts an Ethernet header before a packet if the device has them. An arriving packet
// is addressed to the device.
func (r *rig) frame(h hook, packet []byte) []byte {
	if r.device.NoEthernet {
		return packet
	}
	f := make([]byte, ethLen, ethLen+len(packet))
	dst, src := r.netns.mac, macRouter
	if h == egress {
		dst, src = src, dst
	}
	copy(f[0:], dst[:])
	copy(f[6:], src[:])
	kind := uint16(unix.ETH_P_IP)
	if len(packet) > 0 && packet[0]>>4 == 6 {
		kind = unix.ETH_P_IPV6
	}
	binary.BigEndian.PutUint16(f[12:], kind)
	return append(f, packet...)
}

// counts reads all counters.
func (r *rig) counts() map[string]uint64 {
	r.t.Helper()
	c, err := r.kernel.Reasons()
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// since returns the differences that are not zero.
func since(before, after map[string]uint64) map[string]uint64 {
	diff := map[string]uint64{}
	for k, n := range after {
		if n != before[k] {
			diff[k] = n - before[k]
		}
	}
	return diff
}

// accepts reports whether BPF_PROG_TEST_RUN takes a packet of this size: it requires an
// Ethernet header, and behind it (or instead of it) the fixed part of the IP header.
func (r *rig) accepts(packet []byte) bool {
	least := 20
	if len(packet) > 0 && packet[0]>>4 == 6 {
		least = 40
	}
	if r.device.NoEthernet {
		least += ethLen
	}
	return len(packet) >= least
}

// now returns the clock that programs read, in ns.
func (r *rig) now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		r.t.Fatal(err)
	}
	return ts.Nano()
}
