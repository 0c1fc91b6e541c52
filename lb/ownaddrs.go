// SPDX-License-Identifier: Apache-2.0

package lb

// Cluster IPs that a device of this node has. A node-local DNS cache works like that: it binds the
// cluster IP of the cluster's DNS on a device of its own, and every pod of the node asks it there.
// So such an address is the node's: its Service is not programmed at it, and it takes no node
// ports, since clients take it for a cluster IP.

import (
	"net/netip"
	"slices"

	"go.uber.org/zap"
)

// owns reports whether a device of the node has the address.
func (at place) owns(a netip.Addr) bool {
	_, found := slices.BinarySearchFunc(at.addrs, a, netip.Addr.Compare)
	return found
}

// setAddrs records the node's addresses. It adds to todo the services whose cluster IP a device
// has now or had before.
func (l *Loop) setAddrs(addrs []netip.Addr, todo *changes) {
	differs := map[netip.Addr]bool{}
	for _, pair := range [][2][]netip.Addr{{l.addrs, addrs}, {addrs, l.addrs}} {
		for _, a := range pair[0] {
			if !slices.Contains(pair[1], a) {
				differs[a] = true
			}
		}
	}
	l.addrs = addrs
	for name, svc := range l.o.Store.serviceNames() {
		if slices.ContainsFunc(svc.ClusterIPs, func(a netip.Addr) bool { return differs[a] }) {
			todo.service(name)
		}
	}
}

// noteOwn records which cluster IPs of a service are the node's own. svc is nil if it is gone.
func (l *Loop) noteOwn(name ServiceName, svc *Service, at place) {
	var own []netip.Addr
	if svc != nil {
		for _, a := range svc.ClusterIPs {
			if at.owns(a) {
				own = append(own, a)
			}
		}
	}
	if slices.Equal(l.ownIPs[name], own) {
		return
	}
	l.ownChanged = true
	if len(own) == 0 {
		delete(l.ownIPs, name)
		l.o.Log.Info("no device of this node has the service's cluster IP any more: it is served here", zap.Stringer("service", name))
		return
	}
	l.ownIPs[name] = own
	l.o.Log.Info("a device of this node has the service's cluster IP: the address is left to it, and takes no node ports",
		zap.Stringer("service", name), zap.Stringers("addresses", own))
}

// withoutOwn returns the addresses that are no service's cluster IP.
func (l *Loop) withoutOwn(addrs []netip.Addr) []netip.Addr {
	if len(l.ownIPs) == 0 {
		return addrs
	}
	own := map[netip.Addr]bool{}
	for _, ips := range l.ownIPs {
		for _, a := range ips {
			own[a] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return own[a] })
}
