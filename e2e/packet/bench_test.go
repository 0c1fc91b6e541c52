// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"shunt/bpf"
	"shunt/maps"
)

// BenchmarkPacket prints the time that a packet costs in the programs. ns-in-kernel/op is
// from the kernel's statistics, ns/op includes the system call. "nothing", a program that
// only returns, shows the cost of the statistics themselves.
func BenchmarkPacket(b *testing.B) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Skipf("the kernel does not tell how long programs run: %v", err)
	}
	defer stats.Close()
	b.Run("nothing", benchmarkNothing)
	n := newBare(b)
	sizes := smallSizes
	sizes.Flows = maps.DefaultSizes().Flows
	for _, v6 := range []bool{false, true} {
		// Its own maps: after the other family's run, entries are no longer in a row in memory.
		r := newRig(b, options(4096), bpf.PacketDevice{}, sizes)
		p := makePlan(v6)
		c := &bench{plan: p, rig: r, w: newWorld()}
		p.serve(c.w, protoTCP, 1, p.remote)
		for _, row := range []struct {
			name string
			hook hook
			run  func(*testing.B)
		}{
			{"ingress/first", ingress, c.firstIn},
			{"egress/first", egress, c.firstOut},
			{"ingress/established", ingress, c.repeat(ingress, func() pkt { return tcp(p.client, p.external, ack) })},
			{"egress/established", egress, c.repeat(egress, func() pkt { return tcp(p.client, p.remote, ack) })},
			{"ingress/reply", ingress, c.repeat(ingress, func() pkt { return tcp(p.remote, c.wire, ack) })},
			{"egress/reply", egress, c.repeat(egress, func() pkt { return tcp(p.remote, p.client, ack) })},
			{"ingress/nobody's", ingress, c.repeat(ingress, func() pkt { return tcp(p.client, p.other, ack) })},
			{"ingress/direct TCP", ingress, c.repeat(ingress, func() pkt { return tcp(at(p.client, 40077), p.remote, ack) })},
			{"ingress/direct UDP", ingress, c.repeat(ingress, func() pkt { return udp(at(p.client, 40077), p.remote, "question") })},
			{"ingress/direct SYN", ingress, c.repeat(ingress, func() pkt { return tcp(at(p.client, 40077), p.remote, syn) })},
			{"egress/nobody's", egress, c.repeat(egress, func() pkt { return tcp(p.other, p.client, ack) })},
		} {
			b.Run(p.name+"/"+row.name, func(b *testing.B) {
				r.enter(b, n)
				c.begin()
				before := c.stats(b, row.hook)
				b.ResetTimer()
				row.run(b)
				b.StopTimer()
				after := c.stats(b, row.hook)
				b.ReportMetric(float64(after.Runtime-before.Runtime)/float64(after.RunCount-before.RunCount), "ns-in-kernel/op")
			})
		}
	}
}

func benchmarkNothing(b *testing.B) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	frame := make([]byte, 64)
	for b.Loop() {
		if _, err := p.Run(&ebpf.RunOptions{Data: frame}); err != nil {
			b.Fatal(err)
		}
	}
	s, err := p.Stats()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(s.Runtime)/float64(s.RunCount), "ns-in-kernel/op")
}

// bench is a service with one backend on another node, and one open flow to it.
type bench struct {
	plan
	rig  *rig
	w    *world
	wire netip.AddrPort // the flow's SNAT address and port
}

func (c *bench) begin() {
	c.rig.clear()
	c.rig.load(c.w)
	c.run(ingress, tcp(c.client, c.external, syn))
	out := c.run(egress, tcp(c.client, c.remote, syn))
	v, _ := readPacket(out[ethLen:], 0)
	c.wire = netip.AddrPortFrom(v.src.ip(), v.src.port)
	c.run(ingress, tcp(c.remote, c.wire, syn|ack))
	c.run(egress, tcp(c.remote, c.client, syn|ack))
	c.run(ingress, tcp(c.client, c.external, ack))
	for key, f := range c.rig.flows(fresh) {
		c.rig.t.Fatalf("the flow's entry %v is not confirmed: %+v", key, f)
	}
}

func (c *bench) run(h hook, p pkt) []byte { return c.rig.run(h, c.rig.frame(h, p.bytes())).data }

func (c *bench) stats(b *testing.B, h hook) *ebpf.ProgramStats {
	p := c.rig.programs.Ingress
	if h == egress {
		p = c.rig.programs.Egress
	}
	s, err := p.Stats()
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func (c *bench) repeat(h hook, p func() pkt) func(*testing.B) {
	return func(b *testing.B) {
		frame := c.rig.frame(h, p().bytes())
		for b.Loop() {
			c.rig.run(h, frame)
		}
	}
}

// stranger returns the n-th client of which no packet was seen before.
func (c *bench) stranger(n int) netip.AddrPort {
	a := c.client.Addr().AsSlice()
	a[len(a)-2], a[len(a)-1] = byte(n>>16), byte(n>>8)
	addr, _ := netip.AddrFromSlice(a)
	return netip.AddrPortFrom(addr, uint16(1024+n&255))
}

func (c *bench) firstIn(b *testing.B) {
	for n := 0; b.Loop(); n++ {
		c.run(ingress, tcp(c.stranger(n), c.external, syn))
	}
}

// firstOut makes flows that take one SNAT port each. When all ports are taken it clears the
// flows, which the kernel's figure does not include.
func (c *bench) firstOut(b *testing.B) {
	for n := 0; b.Loop(); n++ {
		if n%2048 == 2047 {
			c.rig.clear()
		}
		c.run(ingress, tcp(c.stranger(n), c.external, syn))
		c.run(egress, tcp(c.stranger(n), c.remote, syn))
	}
}
