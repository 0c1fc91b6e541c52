// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"

	"shunt/maps"
)

// move swaps two services' addresses of one kind. All services have the same endpoints, in
// their own backends.
func (d *dice) move(w *world) {
	u := universes[d.IntN(2)]
	proto := []uint8{protoTCP, protoUDP}[d.IntN(2)]
	kind := []maps.FrontendKind{maps.ClusterIP, maps.NodePort, maps.LoadBalancerIP, maps.ExternalIP}[d.IntN(4)]
	addr := u.kinds()[kind]
	key := func(service int) frontendKey {
		if kind == maps.NodePort {
			addr = netip.AddrPortFrom(u.any(), addr.Port())
		}
		return frontendKey{at(addr, addr.Port()+uint16(service)), proto}
	}
	one, other := key(d.IntN(services)), key(d.IntN(services))
	a, b := w.frontends[one], w.frontends[other]
	if a.service == 0 || b.service == 0 {
		panic("a service without an address of that kind")
	}
	a.addr, b.addr = b.addr, a.addr
	w.frontends[one], w.frontends[other] = b, a
}
