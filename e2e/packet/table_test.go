// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"shunt/bpf"
	"shunt/maps"
)

// packetCase is a row of the table. Its name says what it shows. Each step is a packet with
// its expected result and the one reason that must be counted. A step that fails ends the
// case.
type packetCase struct {
	name   string
	config config
	// proto and family limit the case to one protocol and one IP version; 0: both.
	proto  uint8
	family int
	// ethernet: the case applies only to devices with Ethernet headers.
	ethernet bool
	// routed: the case runs in a network namespace that has routes.
	routed bool
	steps  func(*play)
}

// config is how the programs of a case were loaded.
type config string

const (
	uplink    config = ""
	podDevice config = "pod device"
	twoPorts  config = "two source ports"
	fewErrors config = "few ICMP errors"
)

// seed of the choice of backends and ports, here and in the model.
const seed = 0x5eed

// smallSizes are enough for every case. Before 6.16, an LRU map of few entries can evict an
// entry that was used a moment ago, so that affinity has many.
var smallSizes = maps.Sizes{Services: 64, Slots: 256, Backends: 256, Affinity: 4096, Sources: 64, Flows: 64}

// options returns the programs' options. Timeouts are shorter than the defaults: a test
// must not age entries beyond the machine's start.
func options(ports uint32) bpf.PacketOptions {
	return bpf.PacketOptions{FlowSeed: seed, SNATPorts: bpf.SNATPorts{First: firstPort, Count: ports}, Timeouts: timeouts,
		UnreachableInterval: time.Nanosecond, ClusterCIDRs: []netip.Prefix{makePlan(false).cidr, makePlan(true).cidr}}
}

// errorInterval lets a CPU send two ICMP errors at once, and then one per interval.
const errorInterval = 500 * time.Millisecond

// timeouts are odd numbers of seconds: the model's clock moves in steps of two.
var timeouts = bpf.Timeouts{TCPNew: 7 * time.Second, TCPEstablished: 25 * time.Second, TCPCloseWait: 13 * time.Second,
	TCPClosed: 3 * time.Second, UDPNew: 5 * time.Second, UDPEstablished: 9 * time.Second}

// slack is how long before its timeout a test lets an entry grow old: a busy or emulated
// machine must finish the test before the timeout.
const slack = 2 * time.Second

// variant is a configuration in which the whole table is run.
type variant struct {
	name       string
	noEthernet bool
	noKernCtx  bool
	flags      uint32 // of BPF_PROG_TEST_RUN
}

// variants returns devices with and without Ethernet headers, a device's checksum over the
// packet, and checksums by the kernel's helpers only: in VMs, old kernels have nothing else.
func variants() []variant {
	all := []variant{{name: "ethernet"}, {name: "complete", flags: checkComplete}, {name: "ip", noEthernet: true}}
	if !testing.Short() {
		all = append(all, variant{name: "helpers", noKernCtx: true},
			variant{name: "helpers complete", noKernCtx: true, flags: checkComplete})
	}
	return all
}

// checkComplete (BPF_F_TEST_SKB_CHECKSUM_COMPLETE, Linux 6.17) sets the checksum that
// a device computes over the whole packet. The run fails if that is wrong afterwards.
const checkComplete = 4

// TestPackets runs the whole table in every variant. Some case must reach each reason of
// packets.
func TestPackets(t *testing.T) {
	bare, routed := newBare(t), newRouted(t)
	reached := map[string]bool{}
	for _, v := range variants() {
		t.Run(v.name, func(t *testing.T) {
			rigs := map[config]*rig{}
			for c, ports := range map[config]uint32{uplink: 1, podDevice: 1, twoPorts: 2, fewErrors: 1} {
				d := bpf.PacketDevice{NoEthernet: v.noEthernet, Pod: c == podDevice, NoKernCtx: v.noKernCtx}
				o := options(ports)
				if c == fewErrors {
					o.UnreachableInterval = errorInterval
				}
				rigs[c] = newRig(t, o, d, smallSizes)
				if rigs[c].flags = v.flags; !rigs[c].runs(bare) {
					t.Skip("the kernel does not compare a device's checksum after a run (before 6.17)")
				}
			}
			for _, pc := range slices.Concat(pathCases, flowCases, endCases, refusalCases, choiceCases, portCases, fragmentCases,
				headerCases, icmpCases, stateCases, directCases) {
				n := bare
				if pc.routed {
					n = routed
				}
				if !pc.ethernet || !v.noEthernet {
					pc.run(t, rigs[pc.config], n, reached)
				}
			}
		})
	}
	checkReached(t, reached)
}

// runs reports whether the kernel accepts the rig's flags.
func (r *rig) runs(n netns) bool {
	r.enter(r.t, n)
	p := makePlan(false)
	_, err := r.tryRun(egress, r.frame(egress, udp(p.client, p.other, "12345678").bytes()))
	return err == nil
}

func (pc packetCase) run(t *testing.T, r *rig, n netns, reached map[string]bool) {
	for _, v6 := range []bool{false, true} {
		for _, proto := range []uint8{protoTCP, protoUDP} {
			family := map[bool]int{false: 4, true: 6}[v6]
			if pc.proto != 0 && pc.proto != proto || pc.family != 0 && pc.family != family {
				continue
			}
			p := makePlan(v6)
			name := strings.Join([]string{pc.name, p.name, maps.ProtocolName(proto)}, "/")
			t.Run(name, func(t *testing.T) {
				r.enter(t, n)
				c := &play{TB: t, plan: p, rig: r, world: newWorld(), proto: proto, reached: reached}
				r.clear()
				pc.steps(c)
			})
		}
	}
}

// notPackets are the reasons of socket hooks only.
var notPackets = []string{"unrecorded", "reply_passed", "peer_restored", "peer_passed", "hook_check", "source_unknown"}

func checkReached(t *testing.T, reached map[string]bool) {
	t.Helper()
	all, err := maps.ReasonNames()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if !reached[name] && !slices.Contains(notPackets, name) {
			t.Errorf("no case reaches reason %s", name)
		}
		if reached[name] && slices.Contains(notPackets, name) {
			t.Errorf("reason %s is said to be of sockets only, and a packet ends by it", name)
		}
		delete(reached, name)
	}
	for name := range reached {
		t.Errorf("cases expect reason %q, which reason.h does not have", name)
	}
}

// load writes the case's world to the maps.
func (c *play) load() {
	c.Helper()
	c.rig.load(c.world)
}
