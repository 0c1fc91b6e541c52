// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"shunt/e2e/rig"
	"shunt/lab"
	"shunt/maps"
)

// TestEndpointStays: names, ids and the services of addresses change, while the endpoint of
// a socket keeps serving the address that the socket used. No socket is destroyed or gets
// another endpoint. A real cluster makes some of these changes by two objects, one after the
// other.
func TestEndpointStays(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "--destroy-tcp-sockets")
	for _, p := range c.web {
		p.Serve("tcp", otherPort)
		p.Serve("udp", otherPort)
	}
	renamed, swapped := [2]string{"new-a-", "new-b-"}, [2]string{"b-", "a-"}
	for i, test := range []struct {
		name string
		run  func(c *cluster, name string, n int)
	}{
		{"addresses go to another service at once", addressesGo(false)},
		{"addresses are nobody's for a moment", addressesGo(true)},
		{"another service has the cluster IP", serviceReplaced},
		{"names of ports change, in the slices later", namesChange(renamed, "service")},
		{"names of ports change, in the slices first", namesChange(renamed, "slices")},
		{"ports swap names", namesChange(swapped, "")},
		{"ports swap names, in the slices later", namesChange(swapped, "service")},
	} {
		t.Run(test.name, func(t *testing.T) {
			sub := *c
			sub.t = t
			test.run(&sub, fmt.Sprintf("svc-%d", i), i+1)
		})
	}
}

// otherPort is a second port of the servers.
const otherPort = rig.ServerPort + 1

// moment is how much later a second object changes.
const moment = 150 * time.Millisecond

// held is a socket, the address it asked, and the server that answered.
type held struct {
	*talker
	dst    netip.AddrPort
	server string
}

// hold opens sockets of all kinds to addresses, IPv4 first.
func (c *cluster) hold(addrs []netip.Addr, port uint16) (all []held) {
	c.t.Helper()
	for _, p := range []*lab.Pod{c.client, c.host} {
		for _, w := range ways {
			dst := rig.At(w.of(addrs), port)
			if w.sendto {
				k := w.open(c.t, p)
				all = append(all, held{k, dst, k.askTo(dst)})
				continue
			}
			k := w.openTo(c.t, p, dst)
			all = append(all, held{k, dst, k.ask(dst)})
		}
	}
	return all
}

// wantHeld checks that all sockets work, after the delayed scans of a sweep, which destroy
// some sockets later.
func (c *cluster) wantHeld(all []held) {
	c.t.Helper()
	time.Sleep(1100*time.Millisecond + quiet) // only time shows that nothing happens
	for _, h := range all {
		if !h.w.sendto {
			h.wantKept(h.dst, h.server)
		}
		if h.w.network[:3] == "tcp" {
			continue
		}
		if got := h.askTo(h.dst); got != h.server { // connected or not
			c.t.Errorf("%s: %s answers at %v, before it was %s", h.w, got, h.dst, h.server)
		}
	}
}

// holdEverywhere opens sockets to every address of service number n but the cluster IPs.
func (c *cluster) holdEverywhere(n int) []held {
	c.t.Helper()
	all := append(c.hold(rig.BalancerIPs(n), rig.ServicePort), c.hold(rig.ExternalIPs(n), rig.ServicePort)...)
	return append(all, c.hold(c.host.Addrs(), rig.NodePortOf(n))...)
}

func addressesGo(gap bool) func(c *cluster, name string, n int) {
	return func(c *cluster, name string, n int) {
		other := name + "-other"
		up := rig.Up(c.web...)
		c.apply(rig.Service(name, n, rig.Everywhere(n)), rig.SlicesOf(name, up...),
			rig.Service(other, n+50), rig.SlicesOf(other, up...))
		all := append(c.holdEverywhere(n), c.hold(rig.ClusterIPs(n), rig.ServicePort)...)
		c.m.Put(rig.Service(name, n))
		if gap {
			c.apply()
			time.Sleep(moment)
		}
		taking := rig.Service(other, n+50)
		rig.Everywhere(n)(taking)
		c.apply(taking)
		c.wantHeld(all)
	}
}

func serviceReplaced(c *cluster, name string, n int) {
	up := rig.Up(c.web...)
	c.apply(rig.Service(name, n, rig.Everywhere(n)), rig.SlicesOf(name, up...))
	all := append(c.holdEverywhere(n), c.hold(rig.ClusterIPs(n), rig.ServicePort)...)
	other := "a" + name // its name is before the other one's
	c.m.RemoveService(name)
	c.apply(rig.Service(other, n, rig.Everywhere(n)), rig.SlicesOf(other, up...))
	c.wantHeld(all)
}

// named returns a service with two ports of each protocol, and its slices, with these names
// of ports.
func (c *cluster) named(name string, n int, inService, inSlices [2]string) (service *corev1.Service, slices []any) {
	service = rig.Service(name, n, rig.Everywhere(n))
	service.Spec.Ports = nil
	slices = rig.SlicesOf(name, rig.Up(c.web...)...)
	for _, s := range slices {
		s.(*discoveryv1.EndpointSlice).Ports = nil
	}
	for i, port := range []int32{rig.ServerPort, otherPort} {
		for _, p := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
			service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{Protocol: p,
				Name: inService[i] + rig.PortName(p), Port: rig.ServicePort + int32(i), NodePort: int32(rig.NodePortOf(n)) + 500*int32(i)})
			inSlice := inSlices[i] + rig.PortName(p)
			for _, s := range slices {
				s := s.(*discoveryv1.EndpointSlice)
				s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &inSlice, Protocol: &p, Port: &port})
			}
		}
	}
	return service, slices
}

// holdNamed opens sockets to both ports of such a service.
func (c *cluster) holdNamed(n int) (all []held) {
	c.t.Helper()
	for i := range uint16(2) {
		all = append(all, c.hold(rig.ClusterIPs(n), rig.ServicePort+i)...)
		all = append(all, c.hold(c.host.Addrs(), rig.NodePortOf(n)+500*i)...)
	}
	return all
}

// namesChange changes the names of two ports to after: first in the object that first names,
// "service" or "slices", and a moment later in the other one; in both at once if it names none.
func namesChange(after [2]string, first string) func(c *cluster, name string, n int) {
	return func(c *cluster, name string, n int) {
		before := [2]string{"a-", "b-"}
		service, slices := c.named(name, n, before, before)
		c.apply(service, slices)
		all := c.holdNamed(n)
		changed, inSlices := c.named(name, n, after, after)
		switch first {
		case "service":
			c.apply(changed)
			time.Sleep(moment)
		case "slices":
			c.apply(inSlices)
			time.Sleep(moment)
		}
		c.apply(changed, inSlices)
		c.wantHeld(all)
	}
}

// TestOtherIDs: a daemon that cannot use the maps of an earlier one fills others, with new ids.
// Earlier sockets keep their endpoints, and those whose endpoint was removed meanwhile are
// destroyed.
func TestOtherIDs(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "--destroy-tcp-sockets")
	up := rig.Up(c.web...)
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", up...),
		rig.Service("goes", 2), rig.SlicesOf("goes", rig.UpAt(otherPort, c.web[0])...))
	all := append(c.holdEverywhere(1), c.hold(rig.ClusterIPs(1), rig.ServicePort)...)
	var gone []*talker
	for _, w := range connectedUDP {
		gone = append(gone, w.openTo(t, c.client, rig.VIP(2, w.family)))
	}
	c.d.Kill()
	if err := c.d.Kernel(func(k *maps.Kernel) { k.UpdateMeta(func(m *maps.DaemonMeta) { m.Abi-- }) }); err != nil {
		t.Fatal(err)
	}
	c.m.RemoveService("goes")
	// These names sort before the old ones: they get the first ids.
	c.m.Put(rig.Service("a", 3), rig.SlicesOf("a", up...), rig.Service("b", 4), rig.SlicesOf("b", up...))
	c.m.Write()
	c.d.Start()
	for _, k := range gone {
		k.wantDestroyed()
	}
	c.wantHeld(all)
}
