// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"fmt"
	"net/netip"
	"testing"

	"shunt/bpf"
	"shunt/lab"
	"shunt/lb"
	"shunt/maps"
)

const (
	// rounds is the least number of rounds. The machine may be slow for longer than one
	// round: the median ignores rounds in which it became slow or fast.
	rounds = 30
	// A round makes so many exchanges without hooks, and as many through the service. Each
	// is preceded by as many to warm up after attaching and detaching.
	perRound = 200
)

// BenchmarkConnect measures connect, request and reply from a pod to a pod of its node:
// directly while no hook is attached, and through a ClusterIP while hooks are. Both are
// measured in every round, in alternating order, so that other load on the machine affects
// both. The ratio is the median over rounds of the medians' ratio.
func BenchmarkConnect(b *testing.B) {
	for _, network := range []string{"tcp4", "tcp6", "udp4"} {
		for _, services := range []int{10, 100_000} {
			b.Run(fmt.Sprintf("%s/services=%d", network, services), func(b *testing.B) {
				benchmarkConnect(b, network, services)
			})
		}
	}
}

func benchmarkConnect(b *testing.B, network string, services int) {
	l := lab.ForTest(b)
	node := l.Node("n1")
	server, client := node.Pod("server"), node.Pod("client")
	backend := netip.AddrPortFrom(server.Addr4(), 8080)
	vip := netip.MustParseAddrPort("172.30.0.1:80")
	if network == "tcp6" {
		backend = netip.AddrPortFrom(server.Addr6(), 8080)
		vip = netip.MustParseAddrPort("[fd00:172::1]:80")
	}
	server.Serve("tcp", 8080)
	server.Serve("udp", 8080)
	sizes := maps.DefaultSizes()
	if services > 10_000 {
		sizes.Services, sizes.Slots, sizes.Backends = 1<<19, 1<<22, 1<<21
	}
	p := startProxy(b, node, sizes, func(s lb.Sink) {
		fillServices(s, services-1, 10)
		setMeasured(s, vip, backend)
	})
	ask := func(dst netip.AddrPort) float64 {
		var sum lab.Summary
		for range 2 { // the first warms up
			var err error
			sum, err = client.Hammer(b.Context(), network, dst, lab.HammerOptions{Count: perRound})
			check(b, err)
		}
		return float64(sum.Total.P50)
	}
	askDirect := func() float64 {
		check(b, bpf.Detach(p.root))
		return ask(backend)
	}
	askService := func() float64 {
		check(b, p.programs.Attach(p.root, p.cgroup))
		return ask(vip)
	}
	var direct, through, ratios []float64
	for i := range max(b.N, rounds) {
		var d, s float64
		if i%2 == 0 {
			d, s = askDirect(), askService()
		} else {
			s, d = askService(), askDirect()
		}
		direct, through, ratios = append(direct, d), append(through, s), append(ratios, s/d)
	}
	b.ReportMetric(0, "ns/op") // ns/op of a round means nothing
	b.ReportMetric(median(direct)/1e3, "direct-p50-µs")
	b.ReportMetric(median(through)/1e3, "service-p50-µs")
	b.ReportMetric(median(ratios), "ratio")
}

func setMeasured(s lb.Sink, vip, backend netip.AddrPort) {
	name := lb.ServiceName{Namespace: "bench", Name: "measured"}
	s.SetService(&lb.Service{Name: name, ClusterIPs: []netip.Addr{vip.Addr()}, Ports: []lb.ServicePort{
		{Name: "tcp", Protocol: lb.TCP, Port: vip.Port()}, {Name: "udp", Protocol: lb.UDP, Port: vip.Port()}}})
	s.SetSlice(&lb.EndpointSlice{
		Name: lb.SliceName{Namespace: "bench", Name: "measured-0"}, Service: name,
		Ports: []lb.EndpointPort{{Name: "tcp", Protocol: lb.TCP, Port: backend.Port()},
			{Name: "udp", Protocol: lb.UDP, Port: backend.Port()}},
		Endpoints: []lb.Endpoint{{Addr: backend.Addr(), Ready: true, Serving: true}},
	})
}
