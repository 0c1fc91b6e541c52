// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"shunt/maps"
)

// asked is a claim, taken from the Service object.
type asked struct {
	svc      *Service
	rank     int
	port     int // in spec.ports
	kind     maps.FrontendKind
	key      maps.FrontendKey
	external bool
}

// askedBy returns what a Service claims, without the code under test.
func askedBy(svc *Service) []asked {
	var list []asked
	for _, family := range []Family{IPv4, IPv6} {
		ip := slices.IndexFunc(svc.ClusterIPs, func(a netip.Addr) bool { return FamilyOf(a) == family })
		if ip < 0 {
			continue
		}
		list = append(list, asked{svc, 0, len(svc.Ports), maps.UndefinedPort, maps.NewFrontendKey(svc.ClusterIPs[ip], 0, 0), false})
		for i, p := range svc.Ports {
			if p.Protocol == SCTP {
				continue
			}
			claim := func(rank int, kind maps.FrontendKind, a netip.Addr, port uint16) {
				if FamilyOf(a) == family {
					list = append(list, asked{svc, rank, i, kind, maps.NewFrontendKey(a, port, uint8(p.Protocol)), rank > 1})
				}
			}
			claim(0, maps.ClusterIP, svc.ClusterIPs[ip], p.Port)
			if p.NodePort != 0 {
				claim(1, maps.NodePort, netip.IPv4Unspecified(), p.NodePort)
				claim(1, maps.NodePort, netip.IPv6Unspecified(), p.NodePort)
			}
			for _, a := range svc.LoadBalancerIPs {
				claim(2, maps.LoadBalancerIP, a, p.Port)
			}
			for _, a := range svc.ExternalIPs {
				claim(3, maps.ExternalIP, a, p.Port)
			}
		}
	}
	return list
}

// modelOwners is a slow model of which claim gets each frontend: in the order of claims, each gets
// its frontend if that is free.
func modelOwners(st *Store) map[maps.FrontendKey]asked {
	var all []asked
	for _, svc := range st.services {
		all = append(all, askedBy(svc)...)
	}
	slices.SortFunc(all, func(a, b asked) int {
		switch {
		case a.rank != b.rank:
			return a.rank - b.rank
		case !a.svc.Created.Equal(b.svc.Created):
			return a.svc.Created.Compare(b.svc.Created)
		case a.svc != b.svc:
			return a.svc.Name.compare(b.svc.Name)
		}
		return a.port - b.port
	})
	onNode := NodePortAddresses{}.Choose(st.addrs, st.node, nil)
	has := map[maps.FrontendKey]asked{}
	for _, c := range all {
		at := c.key.AddrPort()
		if c.external {
			whole, isClusterIP := has[maps.NewFrontendKey(at.Addr(), 0, 0)]
			any := netip.IPv4Unspecified()
			if at.Addr().Is6() {
				any = netip.IPv6Unspecified()
			}
			_, isNodePort := has[maps.NewFrontendKey(any, at.Port(), c.key.Protocol)]
			_, isNodes := onNode[at.Addr()]
			inCIDR := slices.ContainsFunc(st.cidrs, func(p netip.Prefix) bool { return p.Contains(at.Addr()) })
			if inCIDR || isClusterIP && whole.svc != c.svc || isNodes && isNodePort {
				continue
			}
		}
		if _, taken := has[c.key]; !taken {
			has[c.key] = c
		}
	}
	return has
}

// checkOwners compares the maps with the model.
func (r *rig) checkOwners(what string) {
	r.t.Helper()
	d, want := r.dump(), modelOwners(r.store)
	for k, v := range d.Frontends {
		w, known := want[k]
		n := d.Names[v.Id]
		if !known || uint8(w.kind) != v.Kind || k.Port != 0 && (ServiceName{n.Namespace, n.Name} != w.svc.Name || n.Port != w.svc.Ports[w.port].Name) {
			r.t.Errorf("%s: %s is %s of %s, want %s of %v", what, k, maps.FrontendKind(v.Kind), n, w.kind, w.svc)
		}
	}
	for k, w := range want {
		if _, there := d.Frontends[k]; !there && !w.svc.NotServed {
			r.t.Errorf("%s: %s is missing, want %s of %s", what, k, w.kind, w.svc.Name)
		}
	}
}

// owner returns the service and the kind of a TCP frontend in the maps.
func (r *rig) owner(frontend string) string {
	d := r.dump()
	v, there := d.Frontends[fe(frontend, TCP)]
	if !there {
		return "none"
	}
	return fmt.Sprintf("%s %s", d.Names[v.Id].Name, maps.FrontendKind(v.Kind))
}

// TestRankBeatsAge checks that the rank decides, in any order of arrival, where an older service
// claims by a worse rank what a younger one claims by a better rank.
func TestRankBeatsAge(t *testing.T) {
	external := func(ip string) func(*Service) { return func(s *Service) { s.ExternalIPs = addrs(ip) } }
	balanced := func(ip string) func(*Service) { return func(s *Service) { s.LoadBalancerIPs = addrs(ip) } }
	for _, c := range []struct {
		what     string
		old, new *Service
		frontend string
		want     string
		loser    string // another frontend of the loser, which it keeps
	}{
		{"cluster IP over external IP", service("old", "10.96.0.1", "p:80/TCP").with(external("10.96.0.99")),
			service("new", "10.96.0.99", "p:80/TCP"), "10.96.0.99:80", "new ClusterIP", "10.96.0.1:80"},
		{"cluster IP over load-balancer IP", service("old", "10.96.0.1", "p:80/TCP").with(balanced("10.96.0.99")),
			service("new", "10.96.0.99", "p:80/TCP"), "10.96.0.99:80", "new ClusterIP", "10.96.0.1:80"},
		{"a port that the cluster IP's service has not", service("old", "10.96.0.1", "p:81/TCP").with(external("10.96.0.99")),
			service("new", "10.96.0.99", "p:80/TCP"), "10.96.0.99:81", "none", "10.96.0.1:81"},
		{"load-balancer IP over external IP", service("old", "10.96.0.1", "p:80/TCP").with(external("1.1.1.1")),
			service("new", "10.96.0.2", "p:80/TCP").with(balanced("1.1.1.1")), "1.1.1.1:80", "new LoadBalancerIP", "10.96.0.1:80"},
		{"node port over a load-balancer IP that is the node's", service("old", "10.96.0.1", "p:30080/TCP").with(balanced("192.168.0.1")),
			service("new", "10.96.0.2", "p:80/TCP:30080"), "192.168.0.1:30080", "none", "10.96.0.1:30080"},
		{"node port over an external IP that is the node's", service("old", "10.96.0.1", "p:30080/TCP").with(external("192.168.0.1")),
			service("new", "10.96.0.2", "p:80/TCP:30080"), "192.168.0.1:30080", "none", "10.96.0.1:30080"},
		{"no rank between two of a kind: age", service("old", "10.96.0.1", "p:80/TCP").with(external("1.1.1.1")),
			service("new", "10.96.0.2", "p:80/TCP").with(external("1.1.1.1")), "1.1.1.1:80", "old ExternalIP", "10.96.0.2:80"},
	} {
		for _, order := range []string{"old first", "new first", "together", "adopted"} {
			t.Run(c.what+", "+order, func(t *testing.T) {
				r := newGuardedRig(t)
				r.store.SetNodeAddrs(nodeAddrs)
				older := c.old.with(func(s *Service) { s.Created = time.Unix(1, 0) })
				newer := c.new.with(func(s *Service) { s.Created = time.Unix(2, 0) })
				first, second := older, newer
				if order == "new first" {
					first, second = newer, older
				}
				r.store.SetService(first)
				if order != "together" {
					r.mustStep()
				}
				r.store.SetService(second)
				if order == "adopted" {
					r.start()
				}
				r.mustStep()
				if got := r.owner(c.frontend); got != c.want {
					t.Errorf("%s is %s, want %s", c.frontend, got, c.want)
				}
				if got := r.owner(c.loser); got == "none" {
					t.Errorf("%s is missing: the loser has lost more than the one address", c.loser)
				}
				r.checkOwners("at last")
				r.store.DeleteService(svcName("new"))
				r.mustStep()
				if got := r.owner(c.frontend); got[:3] != "old" {
					t.Errorf("with the winner gone %s is %s", c.frontend, got)
				}
				r.checkOwners("with the winner gone")
			})
		}
	}
}

// TestExternalIPsInServiceCIDR checks that external addresses inside a service CIDR are not
// programmed, also when CIDRs are added and removed. Until the CIDRs are known, those in the maps
// count.
func TestExternalIPsInServiceCIDR(t *testing.T) {
	r := newGuardedRig(t)
	r.store.SetService(service("a", "10.96.0.1", "p:80/TCP").with(func(s *Service) {
		s.ExternalIPs, s.LoadBalancerIPs = addrs("10.96.0.99", "1.1.1.1"), addrs("10.97.0.99")
	}))
	check := func(what string, first, second bool) {
		t.Helper()
		r.mustStep()
		if got := r.owner("10.96.0.99:80") != "none"; got != first {
			t.Errorf("%s: 10.96.0.99 is programmed: %t", what, got)
		}
		if got := r.owner("10.97.0.99:80") != "none"; got != second {
			t.Errorf("%s: 10.97.0.99 is programmed: %t", what, got)
		}
		if r.owner("1.1.1.1:80") == "none" || r.owner("10.96.0.1:80") == "none" {
			t.Errorf("%s: an address outside of the CIDRs, or the cluster IP, is missing", what)
		}
	}
	check("no CIDRs are known", true, true)
	r.store.SetServiceCIDRs(prefixes("10.96.0.0/16"))
	check("one", false, true)
	r.store.SetServiceCIDRs(prefixes("10.96.0.0/16", "10.97.0.0/16"))
	check("two", false, false)

	known := r.store
	r.store = NewStore(r.clock.now) // a new daemon that does not know the CIDRs yet
	for _, svc := range known.services {
		r.store.SetService(svc)
	}
	r.start()
	r.store.SetSynced()
	check("those of the daemon before", false, false)
	r.store.SetServiceCIDRs(prefixes("10.97.0.0/16"))
	check("the other", true, false)
	r.store.SetServiceCIDRs(nil)
	check("none", true, true)
}

// TestNodeAddressComesAndGoes checks that a load-balancer IP that becomes an address of the node
// loses its port to a node port, and gets it back when the node loses the address.
func TestNodeAddressComesAndGoes(t *testing.T) {
	r := newGuardedRig(t)
	r.store.SetNodeAddrs(nodeAddrs)
	r.store.SetService(service("old", "10.96.0.1", "p:30080/TCP").with(func(s *Service) {
		s.LoadBalancerIPs, s.Created = addrs("1.1.1.1"), time.Unix(1, 0)
	}))
	r.store.SetService(service("new", "10.96.0.2", "p:80/TCP:30080").with(func(s *Service) { s.Created = time.Unix(2, 0) }))
	for _, on := range []bool{false, true, false} {
		all := slices.Clone(nodeAddrs)
		want := "old LoadBalancerIP"
		if on {
			all, want = append(all, addrs("1.1.1.1")...), "none"
		}
		r.store.SetNodeAddrs(all)
		r.mustStep()
		if got := r.owner("1.1.1.1:30080"); got != want {
			t.Errorf("on the node %t: 1.1.1.1:30080 is %s, want %s", on, got, want)
		}
		r.checkOwners("after that")
	}
}
