// SPDX-License-Identifier: Apache-2.0

package coexist

import (
	"fmt"

	"shunt/e2e/rig"
)

// dummy makes a device of the node without packets of its own, and removes it with the scene.
// The kernel here may have no dummy devices: a bridge without ports does the same.
func (s *scene) dummy(name string) {
	s.Helper()
	s.run("", "ip", "link", "add", name, "type", "bridge")
	s.undo("ip", "link", "del", name)
	s.run("", "ip", "link", "set", name, "up")
}

// nodeLocalDNS does what NodeLocal DNSCache does: the cluster IP on a device of the node, a server
// there, and rules that keep its packets from connection tracking and translation.
func nodeLocalDNS(s *scene) {
	n := s.service(rig.WithNodePort(s.number*3 + s.index))
	s.dummy("nodelocaldns")
	cache := s.node.HostPod("cache-" + s.name)
	defer cache.Remove()
	for _, family := range families {
		vip := rig.VIP(n, family)
		s.run("", "ip", "addr", "add", fmt.Sprintf("%v/%d", vip.Addr(), vip.Addr().BitLen()), "dev", "nodelocaldns", "nodad")
		restore := map[int]string{4: "iptables-restore", 6: "ip6tables-restore"}[family]
		s.run(notrack(vip.Addr().String(), vip.Port(), "-A"), restore, "--noflush")
		s.Cleanup(func() { s.run(notrack(vip.Addr().String(), vip.Port(), "-D"), restore, "--noflush") })
		for _, network := range []string{"tcp", "udp"} {
			cache.ServeOn(network, vip)
		}
	}
	for _, family := range families {
		vip, at := rig.VIP(n, family), rig.At(of(rig.ClusterIPs(n), family), rig.NodePortOf(n))
		for _, network := range []string{"tcp", "udp"} {
			s.expect("pod "+network, s.becomes(s.client, network, vip, cache.Name()), cache.Name())
			s.expect("process "+network, s.becomes(s.host, network, vip, cache.Name()), cache.Name())
			if s.name == shunt { // kube-proxy takes every address of the node for node ports
				s.expect("node port at the cluster IP", s.becomes(s.client, network, at, "refused"), "refused")
			}
		}
	}
	if s.name == shunt {
		said := s.command("status")
		for _, family := range families {
			line := of(rig.ClusterIPs(n), family).String() + " a cluster IP that a device of this node has"
			s.expect("status", fmt.Sprint(shows(said, line)), "true")
		}
	}
	for _, family := range families { // the cache ends, and removes its device: CoreDNS answers again
		vip := rig.VIP(n, family)
		s.run("", "ip", "addr", "del", fmt.Sprintf("%v/%d", vip.Addr(), vip.Addr().BitLen()), "dev", "nodelocaldns")
	}
	if s.name == shunt { // kube-proxy's need the rules removed, too
		for _, family := range families {
			s.expect("pod, after the cache", s.becomes(s.client, "tcp", rig.VIP(n, family), s.web.Name()), s.web.Name())
		}
	}
}

// notrack returns rules for packets to and from an address and port that are not to be tracked.
func notrack(addr string, port uint16, do string) string {
	text := "*raw\n"
	for _, protocol := range []string{"tcp", "udp"} {
		text += fmt.Sprintf("%[1]s PREROUTING -d %[2]s -p %[3]s --dport %[4]d -j NOTRACK\n"+
			"%[1]s OUTPUT -d %[2]s -p %[3]s --dport %[4]d -j NOTRACK\n"+
			"%[1]s OUTPUT -s %[2]s -p %[3]s --sport %[4]d -j NOTRACK\n", do, addr, protocol, port)
	}
	return text + "COMMIT\n"
}

// ipvsLeftovers puts a cluster IP on the device of kube-proxy's IPVS mode, which is what it leaves
// when the node changes to another proxy.
func ipvsLeftovers(s *scene) {
	n := s.service(rig.WithNodePort(s.number*3 + s.index))
	s.dummy("kube-ipvs0")
	for _, family := range families {
		vip := rig.VIP(n, family)
		s.run("", "ip", "addr", "add", fmt.Sprintf("%v/%d", vip.Addr(), vip.Addr().BitLen()), "dev", "kube-ipvs0", "nodad")
	}
	for _, family := range families {
		for _, network := range []string{"tcp", "udp"} {
			s.expect("pod "+network, s.ask(s.client, network, rig.VIP(n, family)), s.web.Name())
			s.expect("process "+network, s.ask(s.host, network, rig.VIP(n, family)), s.web.Name())
			s.expect("outside "+network, s.ask(s.outside, network, rig.VIP(n, family)), s.web.Name())
		}
	}
}
