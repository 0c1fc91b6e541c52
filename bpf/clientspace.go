// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
)

// clientSpace describes one network namespace. A new scan replaces it; only settle changes it.
type clientSpace struct {
	cookie uint64
	// own: it is the daemon's namespace, which is the node's.
	own bool
	// near: a device of the node's namespace leads there, as with most pods.
	near  bool
	since time.Time
	addrs []netip.Addr
	// file is the opened namespace until settle has checked it; nil where there are no sources.
	file *os.File
	// sources are the entries for map client_addrs, without the cookie: destination or bound
	// address → source address.
	sources map[netip.Addr]netip.Addr
}

// clientSpaceAddrs limits the addresses of one network namespace, so that a pod with many does
// not use up the map. Sockets that are bound to further addresses are refused.
const clientSpaceAddrs = 64

// several reports whether the kernel has a choice of source addresses.
func (s *clientSpace) several() bool {
	return len(ofFamily(s.addrs, true)) > 1 || len(ofFamily(s.addrs, false)) > 1
}

// compare orders by who gets room first: the node, then the namespaces to which its devices lead,
// since a process may be able to create any number of other ones. Among equals the older is first:
// the kernel assigns cookies in ascending order.
func (s *clientSpace) compare(o *clientSpace) int {
	return cmp.Or(s.rank()-o.rank(), cmp.Compare(s.cookie, o.cookie))
}

func (s *clientSpace) rank() int {
	switch {
	case s.own:
		return 0
	case s.near:
		return 1
	}
	return 2
}

// readClientSpace reads the network namespace of the calling thread. bound are the addresses of
// frontends with source ranges.
func readClientSpace(bound []netip.Addr) (*clientSpace, error) {
	cookie, err := NetnsCookie()
	if err != nil {
		return nil, err
	}
	all, err := Addrs()
	if err != nil {
		return nil, err
	}
	// The kernel uses a loopback address for loopback only.
	addrs := slices.DeleteFunc(all, netip.Addr.IsLoopback)
	s := &clientSpace{cookie: cookie, addrs: addrs, sources: clientSources(addrs, bound, routeSource)}
	if len(s.sources) > 0 {
		s.file, err = os.Open(hostNetns)
	}
	return s, err
}

// settle runs in the node's network namespace. It sets near. From the sources that the kernel has
// chosen in a pod it removes those that the node would not route back to that pod. Otherwise a process that may add addresses and routes
// in the pod could make the kernel name a source that is not the pod's, and connect with
// another. The same holds for a bound address that the pod has: for the kernel it is its own
// source, but the programs replace the destination, and the packets leave with another source.
func (s *clientSpace) settle(bound []netip.Addr, links func() ([]netlink.Link, error)) {
	if s.file == nil {
		return
	}
	defer func() { s.file = nil }()
	defer s.file.Close()
	if s.own {
		return
	}
	id, err := netlink.GetNetNsIdByFd(int(s.file.Fd()))
	s.near = err == nil && id >= 0
	leads := map[netip.Addr]bool{}
	for to, source := range s.sources {
		if to.IsUnspecified() || to == source && !slices.Contains(bound, to) {
			continue
		}
		if _, asked := leads[source]; !asked {
			leads[source] = s.near && leadsInto(source, id, links)
		}
		if !leads[source] {
			delete(s.sources, to)
		}
	}
}

// leadsInto reports whether packets to an address leave the calling thread's network namespace
// by a device whose peer is in the namespace of that id, or by the bridge that such a device is a
// port of.
func leadsInto(to netip.Addr, id int, links func() ([]netlink.Link, error)) bool {
	routes, err := netlink.RouteGet(to.AsSlice())
	if err != nil || len(routes) == 0 {
		return false
	}
	all, err := links()
	return err == nil && slices.ContainsFunc(all, func(l netlink.Link) bool {
		a := l.Attrs()
		return a.NetNsID == id && (a.Index == routes[0].LinkIndex || a.MasterIndex == routes[0].LinkIndex)
	})
}

// clientSources returns the source addresses of a namespace's sockets. The keys are: the
// address that a socket is bound to; the unspecified address, where the family has one address
// only; else the destination address, with the source that choose returns.
func clientSources(addrs, bound []netip.Addr, choose func(to netip.Addr) (netip.Addr, error)) map[netip.Addr]netip.Addr {
	sources := map[netip.Addr]netip.Addr{}
	for _, six := range []bool{false, true} {
		mine := ofFamily(addrs, six)
		for _, a := range mine[:min(len(mine), clientSpaceAddrs)] {
			sources[a] = a
		}
		if len(mine) == 1 {
			unspecified := netip.IPv4Unspecified()
			if six {
				unspecified = netip.IPv6Unspecified()
			}
			sources[unspecified] = mine[0]
		}
		if len(mine) < 2 {
			continue
		}
		for _, to := range ofFamily(bound, six) {
			if _, own := sources[to]; own {
				continue // for its own address the kernel uses that address as source
			}
			if source, err := choose(to); err == nil { // else there is no route to it
				sources[to] = source
			}
		}
	}
	return sources
}

func ofFamily(addrs []netip.Addr, six bool) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return a.Is6() != six })
}

// routeSource returns the source address that the kernel chooses for packets to an address,
// in the network namespace of the calling thread.
func routeSource(to netip.Addr) (netip.Addr, error) {
	routes, err := netlink.RouteGet(to.AsSlice())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("ask for the route to %s: %w", to, err)
	}
	for _, r := range routes {
		if source, ok := netip.AddrFromSlice(r.Src); ok {
			return source.Unmap(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("the route to %s names no source address", to)
}
