// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// readDevices returns the devices of the calling thread's network namespace, sorted by index. It
// accepts a list that changed during the read, since a notification of the change follows.
func readDevices() ([]device, error) {
	links, err := netlink.LinkList()
	if err = complete(err); err != nil {
		return nil, fmt.Errorf("list network devices: %w", err)
	}
	kinds := map[int]string{}
	for _, l := range links {
		kinds[l.Attrs().Index] = l.Type()
	}
	parents := map[int]bool{}
	for _, l := range links {
		if slices.Contains(parentedKinds, l.Type()) {
			parents[l.Attrs().ParentIndex] = true
		}
	}
	devices := make([]device, 0, len(links))
	for _, l := range links {
		a := l.Attrs()
		d := device{index: a.Index, name: a.Name, kind: l.Type(), header: headerOf(a.EncapType), master: a.MasterIndex,
			parent: parents[a.Index]}
		if a.Flags&net.FlagLoopback != 0 {
			d.kind = kindLoopback
		}
		d.bridged = d.master != 0 && kinds[d.master] != "vrf"
		devices = append(devices, d)
	}
	slices.SortFunc(devices, func(a, b device) int { return a.index - b.index })
	if err := readDeviceAddrs(devices); err != nil {
		return nil, err
	}
	return devices, readGateways(devices)
}

// complete returns nil for the error that a list changed during the read; else it returns err.
func complete(err error) error {
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil
	}
	return err
}

// headerOf returns the link-layer header of a hardware type (ARPHRD_*), by the netlink
// library's name for it.
func headerOf(encap string) header {
	switch encap {
	case "ether":
		return headerEthernet
	case "none", "ipip", "tunnel6", "sit", "gre", "ppp", "void",
		fmt.Sprintf("unknown%d", unix.ARPHRD_IP6GRE), fmt.Sprintf("unknown%d", unix.ARPHRD_RAWIP):
		return headerNone
	}
	return headerUnknown
}

func deviceOf(devices []device, index int) *device {
	i, found := slices.BinarySearchFunc(devices, index, func(d device, index int) int { return d.index - index })
	if !found {
		return nil
	}
	return &devices[i]
}

// notSource are the flags of addresses that the kernel does not choose as a source. IPv6 has no
// secondary addresses: there the same bit means a temporary one.
const notSource = unix.IFA_F_SECONDARY | unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED

func readDeviceAddrs(devices []device) error {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err = complete(err); err != nil {
		return fmt.Errorf("list addresses of devices: %w", err)
	}
	for _, a := range list {
		d := deviceOf(devices, a.LinkIndex)
		ip, ok := netip.AddrFromSlice(a.IP)
		if d == nil || !ok {
			continue
		}
		ip = ip.Unmap()
		bits, _ := a.Mask.Size()
		if ip.Is4() && len(a.Mask) == net.IPv6len {
			bits -= 96
		}
		flags := a.Flags
		if flags&unix.IFA_F_OPTIMISTIC != 0 {
			flags &^= unix.IFA_F_TENTATIVE // usable while duplicate address detection still runs (RFC 4429)
		}
		d.addrs = append(d.addrs, deviceAddr{prefix: netip.PrefixFrom(ip, bits),
			source: a.Scope == unix.RT_SCOPE_UNIVERSE && flags&notSource == 0})
	}
	return nil
}

// readGateways marks the devices that have a route to a gateway, or a default route, in any table.
func readGateways(devices []device) error {
	mark := func(index int, gw net.IP, via netlink.Destination) {
		if d := deviceOf(devices, index); d != nil && (len(gw) > 0 && !gw.IsUnspecified() || via != nil) {
			d.gateway = true
		}
	}
	byDefault := func(index int) {
		if d := deviceOf(devices, index); d != nil {
			d.defaultRoute = true
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		every := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
		err := netlink.RouteListFilteredIter(family, every, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
			mark(r.LinkIndex, r.Gw, r.Via)
			for _, hop := range r.MultiPath {
				mark(hop.LinkIndex, hop.Gw, hop.Via)
			}
			if isDefault(r) {
				byDefault(r.LinkIndex)
				for _, hop := range r.MultiPath {
					byDefault(hop.LinkIndex)
				}
			}
			return true
		})
		if err = complete(err); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return fmt.Errorf("list routes: %w", err)
		}
	}
	return nil
}

// isDefault reports whether the route is a default route: it matches every destination.
func isDefault(r netlink.Route) bool {
	if r.Type != unix.RTN_UNICAST {
		return false
	}
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// The sysctls that make this network namespace forward packets.
const (
	sysctlForward4 = "net.ipv4.ip_forward"
	sysctlForward6 = "net.ipv6.conf.all.forwarding"
)

// ForwardingProblems returns a line for each family in use here whose packets are not
// forwarded. Without forwarding, clients from outside can't reach pods.
func ForwardingProblems() ([]string, error) {
	addrs, err := Addrs()
	if err != nil {
		return nil, err
	}
	var problems []string
	for _, f := range []struct {
		family, sysctl string
		is             func(netip.Addr) bool
	}{{"IPv4", sysctlForward4, netip.Addr.Is4}, {"IPv6", sysctlForward6, netip.Addr.Is6}} {
		if !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return f.is(a) && !a.IsLoopback() }) {
			continue
		}
		value, err := readSysctl(f.sysctl)
		if err != nil {
			return nil, err
		}
		if value == "0" {
			problems = append(problems, fmt.Sprintf("%s forwarding is off: clients outside can't reach a pod by %s through this node; "+
				"set sysctl %s=1", f.family, f.family, f.sysctl))
		}
	}
	return problems, nil
}

// readSysctl returns a sysctl's value in the calling thread's network namespace.
func readSysctl(name string) (string, error) {
	text, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", name, err)
	}
	return strings.TrimSpace(string(text)), nil
}
