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

// clientSpace describes one network namespace. A scan that reads the namespace again makes a new
// clientSpace. Only settle changes one.
type clientSpace struct {
	cookie uint64
	// own reports whether the namespace is the daemon's, which is the node's.
	own bool
	// near reports whether a device of the node's namespace has its peer in this one, as with
	// most pods.
	near  bool
	since time.Time
	addrs []netip.Addr
	// file is the namespace's open file until settle closes it; nil if there are no sources.
	file *os.File
	// sources are the namespace's entries of map client_addrs without its cookie: source
	// addresses, by the address that a socket is bound to or connects to (clientSources).
	sources map[netip.Addr]netip.Addr
}

// clientSpaceAddrs is how many addresses of each family get entries in one network namespace, so
// that a pod with many addresses does not fill the map. The programs refuse sockets that are
// bound to further addresses.
const clientSpaceAddrs = 64

// several reports whether the kernel has a choice of source addresses.
func (s *clientSpace) several() bool {
	return len(ofFamily(s.addrs, true)) > 1 || len(ofFamily(s.addrs, false)) > 1
}

// compare orders namespaces by their priority for room in the map: first the node's, then those
// that contain the peer of one of its devices. The others are last, since a process may be able
// to create any number of them. Within a rank the older namespace is first: the kernel assigns
// cookies in ascending order.
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
	// The kernel uses a loopback address only as the source of loopback packets.
	addrs := slices.DeleteFunc(all, netip.Addr.IsLoopback)
	s := &clientSpace{cookie: cookie, addrs: addrs, sources: clientSources(addrs, bound, routeSource)}
	if len(s.sources) > 0 {
		s.file, err = os.Open(hostNetns)
	}
	return s, err
}

// settle sets near, and removes sources that a pod could have forged. It runs in the node's
// network namespace. A process that may add addresses and routes in its pod could make the kernel
// report a source that is not the pod's, and then connect with another one. So settle removes
// each source that the kernel has chosen in a pod, unless the node routes this address to that
// pod. It treats a bound address that the pod itself has in the same way: the kernel reports the
// address as its own source, but the programs replace the destination, and the packets leave with
// another source.
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

// leadsInto reports whether packets to an address leave the calling thread's network namespace by
// a device whose peer is in the namespace with this id (nsid), or by the bridge that such a
// device is a port of.
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

// clientSources returns the source addresses of a namespace's sockets. Its result has three sorts
// of keys. Each address that a socket can be bound to has itself as its source. The unspecified
// address of a family has the namespace's address, if there is only one of the family. If there
// are several, each bound address has the source that choose returns for this destination.
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
