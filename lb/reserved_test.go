// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"shunt/maps"
)

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// reservedWorld sets a node that reaches the API server at 172.18.0.2:6443, and listens for probes
// on all addresses and for metrics on loopback.
func reservedWorld(t *testing.T) *rig {
	r := newGuardedRig(t)
	r.store.SetNodeAddrs(nodeAddrs)
	r.store.SetReserved(Reserved{
		API:     []netip.AddrPort{addrPort("172.18.0.2:6443"), addrPort("192.168.0.1:30443"), addrPort("[fd00:18::2]:6443")},
		Listens: []netip.AddrPort{addrPort("0.0.0.0:10256"), addrPort("127.0.0.1:10249")},
		Probes:  addrs("192.0.2.255"),
	})
	return r
}

// tenant returns a Service with external IPs, each at every port.
func tenant(name string, ips []string, ports ...string) *Service {
	return service(name, "10.96.0.66", ports...).with(func(s *Service) {
		s.ClusterIPs = addrs("10.96.0.66", "fd96::66")
		s.ExternalIPs = addrs(ips...)
	})
}

func (r *rig) externals() string {
	var got []string
	for k, v := range r.dump().Frontends {
		if kind := maps.FrontendKind(v.Kind); kind != maps.ClusterIP && kind != maps.UndefinedPort {
			got = append(got, k.String())
		}
	}
	slices.Sort(got)
	return strings.Join(got, " ")
}

// TestReserved has a tenant ask for the addresses of the API server and of this daemon.
func TestReserved(t *testing.T) {
	for _, c := range []struct {
		what  string
		ips   string
		ports []string
		want  string
	}{
		{"the API server", "172.18.0.2 fd00:18::2", []string{"p:6443/TCP"}, ""},
		{"other ports of its address", "172.18.0.2", []string{"p:6443/TCP", "q:443/TCP", "u:6443/UDP"}, "172.18.0.2:443/TCP 172.18.0.2:6443/UDP"},
		{"its port at another address", "172.18.0.3", []string{"p:6443/TCP"}, "172.18.0.3:6443/TCP"},
		{"our probes", "192.168.0.1 fd00:1::1", []string{"p:10256/TCP"}, ""},
		{"the same port at an address that is not the node's", "192.168.0.9", []string{"p:10256/TCP"}, "192.168.0.9:10256/TCP"},
		{"the port of metrics, which listen on loopback alone", "192.168.0.1", []string{"p:10249/TCP"}, "192.168.0.1:10249/TCP"},
		{"where the hooks are asked, at any port", "192.0.2.255 192.0.2.254", []string{"p:80/TCP", "q:53/UDP"}, "192.0.2.254:53/UDP 192.0.2.254:80/TCP"},
		{"another daemon of the node, as with kube-proxy", "192.168.0.1", []string{"p:10250/TCP"}, "192.168.0.1:10250/TCP"},
		{"a node port where the API server is on this node", "1.1.1.1", []string{"p:80/TCP:30443"}, "1.1.1.1:80/TCP [*]:30443/TCP"},
		{"a node port of our probes", "1.1.1.1", []string{"p:80/TCP:10256"}, "1.1.1.1:80/TCP"},
		{"a node port of our metrics: of IPv6 nobody listens there", "1.1.1.1", []string{"p:80/TCP:10249"}, "1.1.1.1:80/TCP [*]:10249/TCP"},
	} {
		r := reservedWorld(t)
		r.store.SetService(tenant("t", strings.Fields(c.ips), c.ports...))
		r.mustStep()
		if got := r.externals(); got != c.want {
			t.Errorf("%s: programmed are %q, want %q", c.what, got, c.want)
		}
		for _, lb := range []bool{true, false} { // as load-balancer IPs, and as external IPs
			s := tenant("t", strings.Fields(c.ips), c.ports...)
			if lb {
				s.ExternalIPs, s.LoadBalancerIPs = nil, s.ExternalIPs
			}
			r.store.SetService(s)
			r.mustStep()
			if got := r.externals(); got != c.want {
				t.Errorf("%s, as load-balancer IPs %v: programmed are %q, want %q", c.what, lb, got, c.want)
			}
		}
		r.sameAs(r.fresh(), c.what)
		r.store.SetReserved(Reserved{})
		r.mustStep()
		r.sameAs(r.fresh(), c.what+", nothing reserved any more")
	}
}

// TestReservedComes checks that a programmed frontend is removed when it becomes reserved, and
// comes back afterwards.
func TestReservedComes(t *testing.T) {
	r := newGuardedRig(t)
	r.store.SetNodeAddrs(nodeAddrs)
	r.store.SetService(tenant("t", []string{"192.168.0.1", "192.168.0.2"}, "p:31000/TCP"))
	r.store.SetService(service("n", "10.96.0.2", "p:80/TCP:31443"))
	check := func(what, want string) {
		t.Helper()
		r.mustStep()
		if got := r.externals(); got != want {
			t.Errorf("%s: programmed are %q, want %q", what, got, want)
		}
		r.sameAs(r.fresh(), what)
	}
	const port = "*:31443/TCP"
	check("nothing is reserved", port+" 192.168.0.1:31000/TCP 192.168.0.2:31000/TCP")
	checked := service("lb", "10.96.0.3", "p:80/TCP").with(func(s *Service) {
		s.LoadBalancerIPs, s.ExternalLocal, s.HealthCheckNodePort = addrs("5.5.5.5"), true, 31000
	})
	r.store.SetService(checked)
	check("its port is a healthCheckNodePort", port+" 192.168.0.2:31000/TCP 5.5.5.5:80/TCP")
	r.store.SetNodeAddrs(append(slices.Clone(nodeAddrs), addrs("192.168.0.2")...))
	check("the other address is the node's too", port+" 5.5.5.5:80/TCP")
	r.store.SetNodeAddrs(nodeAddrs)
	r.store.SetReserved(Reserved{API: []netip.AddrPort{addrPort("192.168.0.1:31443")}})
	check("the API server is at the node port", "192.168.0.2:31000/TCP 5.5.5.5:80/TCP")
	r.store.DeleteService(svcName("lb"))
	r.store.SetReserved(Reserved{NoExternalIPs: true})
	check("no external IPs are served", port)
	r.store.SetReserved(Reserved{})
	check("all is as it was", port+" 192.168.0.1:31000/TCP 192.168.0.2:31000/TCP")
}

// TestReservedNotClusterIPs checks that the daemon may use a cluster IP to reach the API server.
func TestReservedNotClusterIPs(t *testing.T) {
	r := newGuardedRig(t)
	r.store.SetNodeAddrs(nodeAddrs)
	r.store.SetReserved(Reserved{API: []netip.AddrPort{addrPort("10.96.0.1:443")}, NoExternalIPs: true})
	r.store.SetService(service("kubernetes", "10.96.0.1", "https:443/TCP"))
	r.store.SetSlice(slice("kubernetes", "kubernetes", "https:6443/TCP", "172.18.0.2"))
	r.mustStep()
	if got := r.leads("10.96.0.1:443"); got != "172.18.0.2:6443" {
		t.Errorf("the kubernetes Service leads to %s", got)
	}
}
