// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// lookIPVS finds what IPVS mode leaves besides its iptables chains: virtual servers, the
// device with their addresses, and ipsets. lookIPTables precedes it: the chains refer to the
// ipsets, so they are removed before the ipsets.
func (c *cleaner) lookIPVS() {
	sets, err := readSets()
	if err != nil {
		c.unseen("ipsets", err)
	}
	device, addrs, err := readDevice()
	if err != nil {
		c.unseen("device "+ipvsDevice, err)
	}
	c.lookServers(addrs, nodePorts(sets))
	if device != nil {
		c.found(Finding{By: "ipvs", Name: "device " + ipvsDevice}, func(context.Context) error {
			if err := netlink.LinkDel(device); err != nil {
				return fmt.Errorf("delete device %s: %w", ipvsDevice, err)
			}
			return nil
		})
	}
	for _, set := range sets {
		c.lookSet(set.SetName)
	}
}

// lookSet adds an ipset to the findings. Its removal fails if a rule still refers to the ipset.
func (c *cleaner) lookSet(name string) {
	c.found(Finding{By: "ipvs", Name: "ipset " + name}, func(context.Context) error {
		err := netlink.IpsetDestroy(name)
		if errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)) || errors.Is(err, nl.IPSetError(nl.IPSET_ERR_REFERENCED)) {
			return fmt.Errorf("destroy ipset %s: a rule that is not kube-proxy's uses it: remove that first", name)
		}
		if err != nil {
			return fmt.Errorf("destroy ipset %s: %w", name, err)
		}
		return nil
	})
}

// readSets returns kube-proxy's ipsets, with their members.
func readSets() ([]netlink.IPSetResult, error) {
	all, err := netlink.IpsetListAll()
	if isAbsent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list ipsets: %w", err)
	}
	return slices.DeleteFunc(all, func(s netlink.IPSetResult) bool { return !isSet(s.SetName) }), nil
}

// nodePorts returns the node ports that kube-proxy's ipsets contain.
func nodePorts(sets []netlink.IPSetResult) map[uint16]bool {
	ports := map[uint16]bool{}
	for _, set := range sets {
		if !nodePortSets[set.SetName] {
			continue
		}
		for _, e := range set.Entries {
			if e.Port != nil {
				ports[*e.Port] = true
			}
		}
	}
	return ports
}

var nodePortSets = map[string]bool{
	"KUBE-NODE-PORT-TCP": true, "KUBE-NODE-PORT-UDP": true, "KUBE-NODE-PORT-SCTP-HASH": true,
	"KUBE-6-NODE-PORT-TCP": true, "KUBE-6-NODE-PORT-UDP": true, "KUBE-6-NODE-PORT-SCTP-HASH": true,
}

// readDevice returns the device and its addresses, nil if there is none or if the device
// of that name is not a dummy device.
func readDevice() (netlink.Link, map[netip.Addr]bool, error) {
	link, err := netlink.LinkByName(ipvsDevice)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || err == nil && link.Type() != "dummy" {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("find it: %w", err)
	}
	list, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, fmt.Errorf("list its addresses: %w", err)
	}
	addrs := map[netip.Addr]bool{}
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			addrs[addr.Unmap()] = true
		}
	}
	return link, addrs, nil
}

// ipvsFile exists in every network namespace if the kernel has IPVS. A netlink request
// would load the module.
const ipvsFile = "/proc/thread-self/net/ip_vs"

// lookServers finds the virtual servers of kube-proxy: those at addresses of its device
// and at node ports of its ipsets. Other virtual servers belong to other programs, such as
// keepalived.
func (c *cleaner) lookServers(addrs map[netip.Addr]bool, ports map[uint16]bool) {
	if _, err := os.Stat(ipvsFile); errors.Is(err, os.ErrNotExist) {
		return
	}
	servers, err := listServers()
	if err != nil {
		c.unseen("virtual servers of IPVS", err)
		return
	}
	var others []string
	for _, s := range servers {
		if s.mark != 0 || !addrs[s.addr] && !ports[s.port] {
			others = append(others, s.String())
			continue
		}
		c.found(Finding{By: "ipvs", Name: "virtual server " + s.String()}, func(context.Context) error { return s.remove() })
	}
	if len(others) > 0 && len(addrs) > 0 {
		c.report.Kept = append(c.report.Kept, Kept{By: "ipvs", Names: others,
			Reason: "neither at an address of " + ipvsDevice + " nor at a node port of kube-proxy's ipsets"})
	}
}
