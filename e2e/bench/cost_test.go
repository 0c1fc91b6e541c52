// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"net/netip"
	"testing"

	"shunt/bpf"
	"shunt/lab"
	"shunt/lb"
	"shunt/maps"
)

// BenchmarkHookCost prints the time of a run of each hook by the kernel's statistics, with
// 100,000 services loaded: through a service (connect, sendto), and on sockets that use no
// service. The latter also with known service CIDRs, so that an address without a frontend
// is looked up in them. The statistics cost some 20 ns a run.
func BenchmarkHookCost(b *testing.B) {
	l := lab.ForTest(b)
	node := l.Node("n1")
	server, client := node.Pod("server"), l.Node("n2").Pod("client")
	local := node.Pod("local")
	server.Serve("tcp", 8080)
	server.Serve("udp", 8080)
	backend := netip.AddrPortFrom(server.Addr4(), 8080)
	vip := netip.MustParseAddrPort("172.30.0.1:80")
	sizes := maps.DefaultSizes()
	sizes.Services, sizes.Slots, sizes.Backends = 1<<19, 1<<22, 1<<21
	p := startProxy(b, node, sizes, func(s lb.Sink) {
		fillServices(s, 100_000, 10)
		setMeasured(s, vip, backend)
	})
	check(b, p.programs.Attach(p.root, p.cgroup))
	stats, err := bpf.EnableRunStats()
	check(b, err)
	defer stats.Close()
	for _, c := range []struct {
		name, hook, network string
		from                *lab.Pod
		dst                 netip.AddrPort
		unconnected, cidrs  bool
	}{
		{"connect-service", "connect4", "tcp4", local, vip, false, false},
		{"connect-other", "connect4", "tcp4", local, backend, false, false},
		{"sendto-service", "sendmsg4", "udp4", local, vip, true, false},
		// The server's replies: sendto() to an address of no service.
		{"sendto-other", "sendmsg6", "udp4", client, backend, true, false},
		{"recvfrom-other", "recvmsg6", "udp4", client, backend, true, false},
		{"connect-other-cidrs", "connect4", "tcp4", local, backend, false, true},
		{"sendto-other-cidrs", "sendmsg6", "udp4", client, backend, true, true},
	} {
		if c.cidrs {
			for _, cidr := range []string{"172.30.0.0/16", "fd00:172:30::/108"} {
				check(b, p.kernel.SetServiceCIDR(netip.MustParsePrefix(cidr)))
			}
		}
		before, err := p.programs.RunStats()
		check(b, err)
		_, err = c.from.Hammer(b.Context(), c.network, c.dst, lab.HammerOptions{Count: max(b.N, 2000), Unconnected: c.unconnected})
		check(b, err)
		after, err := p.programs.RunStats()
		check(b, err)
		for _, hook := range []string{c.hook, "sendmsg4"} {
			d := after[hook]
			d.Runs -= before[hook].Runs
			d.Time -= before[hook].Time
			if d.Runs > 0 {
				b.ReportMetric(float64(d.Time)/float64(d.Runs), c.name+"-ns/run")
				break
			}
		}
	}
	b.ReportMetric(0, "ns/op")
}
