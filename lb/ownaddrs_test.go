// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"slices"
	"testing"

	"shunt/maps"
)

// TestOwnClusterIP sets on a device of the node the cluster IP of a service, as a node-local DNS
// cache does, and takes it away again. In between, the address is the node's: neither the service
// nor node ports are served there. The order of the address and the Service does not matter.
func TestOwnClusterIP(t *testing.T) {
	vip := netip.MustParseAddr("10.96.0.10")
	with := append(addrs(vip.String()), nodeAddrs...)
	r := newGuardedRig(t)
	dns := service("dns", vip.String(), "p:53/TCP").with(func(s *Service) {
		s.Ports[0].NodePort, s.LoadBalancerIPs = 30053, addrs("1.1.1.1")
	})
	check := func(when string, own, exists bool) {
		t.Helper()
		r.mustStep()
		served := exists && !own
		if got := r.owner("10.96.0.10:53") != "none"; got != served {
			t.Errorf("%s: the cluster IP is served: %v, want %v", when, got, served)
		}
		if _, got := r.dump().Frontends[maps.NewFrontendKey(vip, 0, 0)]; got != served {
			t.Errorf("%s: its undefined ports are refused: %v, want %v", when, got, served)
		}
		if got, want := slices.Contains(r.loop.Status().NodePortAddrs, vip), own && !exists; got != want {
			t.Errorf("%s: the address takes node ports: %v, want %v", when, got, want)
		}
		if exists && (r.owner("1.1.1.1:53") == "none" || r.owner("0.0.0.0:30053") == "none") {
			t.Errorf("%s: the other frontends are not served", when)
		}
	}
	r.store.SetNodeAddrs(nodeAddrs)
	r.store.SetService(dns)
	check("before", false, true)
	r.store.SetNodeAddrs(with)
	check("with the address", true, true)
	r.store.SetNodeAddrs(nodeAddrs)
	check("after", false, true)
	r.store.SetNodeAddrs(with)
	check("again", true, true)
	r.store.DeleteService(dns.Name)
	check("without the service", true, false)
	r.store.SetService(dns)
	check("the service later", true, true)
}
