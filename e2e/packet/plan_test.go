// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"fmt"
	"net/netip"

	"shunt/maps"
)

// plan is the address plan of the table. Every address begins with 8.0, or has 86dd as its
// third group: for a frame without an Ethernet header, BPF_PROG_TEST_RUN takes the protocol
// from the bytes at the offset of the EtherType, which belong to the source address.
type plan struct {
	name string
	v6   bool

	client, other netip.AddrPort // outside clients
	pod           netip.AddrPort // a client that is a pod of another node, in the cluster CIDR
	node          netip.AddrPort // a node address; its port is a node port
	// wire is the SNAT address, in map devices.
	wire netip.Addr

	clusterIP, loadBalancer, external netip.AddrPort
	local, remote, host               netip.AddrPort // backends: a pod here, one elsewhere, this node
	cidr                              netip.Prefix
}

func makePlan(v6 bool) plan {
	at := func(net, host, port int) netip.AddrPort {
		if v6 {
			return netip.MustParseAddrPort(fmt.Sprintf("[2001:db8:86dd:%x::%x]:%d", net, host, port))
		}
		return netip.MustParseAddrPort(fmt.Sprintf("8.0.%d.%d:%d", net, host, port))
	}
	p := plan{name: "IPv4", v6: v6, client: at(1, 7, 40000), other: at(1, 8, 40001), pod: at(4, 99, 40002),
		node: at(5, 1, 30080), wire: at(5, 2, 0).Addr(), clusterIP: at(2, 10, 80), loadBalancer: at(2, 20, 80),
		external: at(2, 30, 80), local: at(3, 10, 8080), remote: at(4, 10, 8080), host: at(5, 1, 8080)}
	p.cidr = netip.PrefixFrom(at(4, 0, 0).Addr(), 24)
	if v6 {
		p.name, p.cidr = "IPv6", netip.PrefixFrom(at(4, 0, 0).Addr(), 64)
	}
	return p
}

// loopback is the interface index of the only device in an empty network namespace.
const loopback = 1

// any returns the unspecified address of the plan's family.
func (p plan) any() netip.Addr {
	if p.v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// kinds returns the kinds of frontends with their addresses.
func (p plan) kinds() map[maps.FrontendKind]netip.AddrPort {
	return map[maps.FrontendKind]netip.AddrPort{maps.ClusterIP: p.clusterIP, maps.NodePort: p.node,
		maps.LoadBalancerIP: p.loadBalancer, maps.ExternalIP: p.external}
}

// serve adds a service port with all kinds of frontends and these backends to the world.
// Backends with this plan's local or host address are on this node.
func (p plan) serve(w *world, proto uint8, id uint32, backends ...netip.AddrPort) {
	w.nodeAddrs[p.node.Addr()] = false
	w.clusterIPs[p.clusterIP.Addr()] = true
	d := w.devices[loopback]
	if p.v6 {
		d[1] = p.wire
	} else {
		d[0] = p.wire
	}
	w.devices[loopback] = d
	all := map[uint32]endpoint{}
	for i, b := range backends {
		flags := maps.ClusterSet
		if b.Addr() == p.local.Addr() || b.Addr() == p.host.Addr() {
			flags |= maps.LocalSet | maps.OnNode
		}
		all[id*10+uint32(i)] = endpoint{addr: b, flags: flags}
	}
	for kind, addr := range p.kinds() {
		if kind == maps.NodePort {
			addr = netip.AddrPortFrom(p.any(), addr.Port())
		}
		w.add(frontend{addr: addr, proto: proto, kind: kind, service: id}, all)
	}
}

// change calls f for every frontend of a service.
func (w *world) change(service uint32, f func(*frontend)) {
	for k, v := range w.frontends {
		if v.service == service {
			f(&v)
			w.frontends[k] = v
		}
	}
}
