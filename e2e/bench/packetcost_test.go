// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"net/netip"
	"testing"

	"go.uber.org/zap"

	"shunt/bpf"
	"shunt/lab"
	"shunt/lb"
	"shunt/maps"
)

const (
	frontendPort = 80
	podPort      = 8080
)

// BenchmarkPacketCost prints the time of a run of each packet program by the kernel's
// statistics, with 10,000 services loaded: for packets of established flows through a node
// port, to a backend of this node and of another one, and for first packets (ingress, a new
// flow for each datagram). The statistics cost some 20 ns a run.
func BenchmarkPacketCost(b *testing.B) {
	l := lab.ForTest(b)
	node, far := l.Node("n1"), l.Node("n2")
	near, remote, client := node.Pod("near"), far.Pod("remote"), l.Client("client")
	ports := map[*lab.Pod]uint16{near: 30000, remote: 30001}
	var addrs []netip.Addr
	check(b, node.Do(func() (err error) { addrs, err = bpf.Addrs(); return err }))
	p := startProxy(b, node, maps.DefaultSizes(), func(s lb.Sink) {
		s.(*lb.Store).SetNodeAddrs(addrs)
		fillServices(s, 10_000, 10)
		for pod, port := range ports {
			pod.Serve("tcp4", podPort)
			pod.Serve("udp4", podPort)
			setNodePort(s, pod, port)
		}
	})
	var packets *bpf.PacketPath
	check(b, node.Do(func() (err error) {
		packets, err = bpf.NewPacketPath(bpf.PacketPathOptions{Root: p.root, Set: p.set, Maps: p.kernel, Log: zap.NewNop(),
			Programs: bpf.PacketOptions{SNATPorts: bpf.SNATPorts{First: 61_000, Count: 4000}, FlowSeed: 1}})
		if err == nil {
			packets.Start()
		}
		return err
	}))
	b.Cleanup(func() { check(b, packets.Close()) })
	stats, err := bpf.EnableRunStats()
	check(b, err)
	defer stats.Close()
	for _, c := range []struct {
		name, network, direction string
		to                       *lab.Pod
		keep                     bool
	}{
		{"established-near-in", "tcp4", "ingress", near, true},
		{"established-near-out", "tcp4", "egress", near, true},
		{"established-far-in", "tcp4", "ingress", remote, true},
		{"established-far-out", "tcp4", "egress", remote, true},
		{"first-near-in", "udp4", "ingress", near, false},
	} {
		before, err := packets.RunStats()
		check(b, err)
		s, err := client.Hammer(b.Context(), c.network, netip.AddrPortFrom(node.Addr4(), ports[c.to]),
			lab.HammerOptions{Count: max(b.N, 2000), Keep: c.keep})
		check(b, err)
		after, err := packets.RunStats()
		check(b, err)
		d, was := after[c.direction], before[c.direction]
		if s.Answered < 2000 || s.Servers[c.to.Name()] != s.Answered || d.Runs-was.Runs < uint64(s.Answered) {
			b.Fatalf("%s: %d of %d answered, %d runs: %s", c.name, s.Answered, s.Done, d.Runs-was.Runs, s.FirstError)
		}
		b.ReportMetric(float64(d.Time-was.Time)/float64(d.Runs-was.Runs), c.name+"-ns/run")
	}
	b.ReportMetric(0, "ns/op")
}

func setNodePort(s lb.Sink, pod *lab.Pod, port uint16) {
	name := lb.ServiceName{Namespace: "bench", Name: pod.Name()}
	svc := &lb.Service{Name: name, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(port >> 8), byte(port)})}}
	slice := &lb.EndpointSlice{Service: name, Name: lb.SliceName{Namespace: "bench", Name: pod.Name() + "-0"},
		Endpoints: []lb.Endpoint{{Addr: pod.Addr4(), Ready: true, Serving: true, Node: pod.Node().Name()}}}
	for _, protocol := range []lb.Protocol{lb.TCP, lb.UDP} {
		svc.Ports = append(svc.Ports, lb.ServicePort{Name: protocol.String(), Protocol: protocol, Port: frontendPort, NodePort: port})
		slice.Ports = append(slice.Ports, lb.EndpointPort{Name: protocol.String(), Protocol: protocol, Port: podPort})
	}
	s.SetService(svc)
	s.SetSlice(slice)
}
