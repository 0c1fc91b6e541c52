// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"shunt/bpf"
	"shunt/maps"
)

// packetStatus is what `shunt status` reports about the packet path.
type packetStatus struct {
	Devices []bpf.DeviceAttachment `json:"devices"`
	// LeftOut are the devices to which no program is attached, with the reason.
	LeftOut []bpf.LeftOut `json:"leftOut"`
	// Problems are the problems that concern no single device.
	Problems []string `json:"problems,omitempty"`

	// OwnClusterIPs are cluster IPs that are not served here and that are assigned to a
	// device of this node. shunt passes packets to them.
	OwnClusterIPs []netip.Addr `json:"ownClusterIPs,omitempty"`

	// elsewhere is set if the daemon is in another network namespace.
	elsewhere bool
}

func readPackets(root string, kernel *maps.Kernel, daemon daemonStatus) (s packetStatus, err error) {
	if daemon.Running && bpf.InOtherNetns(daemon.PID) {
		s.elsewhere, s.Devices = true, []bpf.DeviceAttachment{}
		s.Problems = []string{fmt.Sprintf("the daemon is in another network namespace: "+
			"`nsenter --net=/proc/%d/ns/net shunt status` shows its devices", daemon.PID)}
		return s, nil
	}
	if s.Devices, err = bpf.DeviceAttachments(root, kernel); err != nil {
		return s, err
	}
	if s.LeftOut, err = bpf.DevicesLeftOut(s.Devices); err != nil {
		return s, err
	}
	s.Problems, err = bpf.ForwardingProblems()
	return s, err
}

// setOwn sets OwnClusterIPs. unserved are all cluster IPs that are not served here.
func (s *packetStatus) setOwn(unserved []netip.Addr) error {
	if s.elsewhere {
		return nil
	}
	addrs, err := bpf.NodeAddrs()
	for _, a := range unserved {
		if slices.Contains(addrs, a) {
			s.OwnClusterIPs = append(s.OwnClusterIPs, a)
		}
	}
	return err
}

func (s *packetStatus) table(w io.Writer) {
	attached, by := 0, map[string]bool{}
	for _, a := range s.Devices {
		if a.By != "" {
			attached++
			by[a.By] = true
		}
	}
	text := "attached to no device"
	switch {
	case s.elsewhere:
		text = "unknown"
	case by["clsact"]:
		text = "in effect, by filters of a qdisc (clsact): this kernel has no TCX"
	case attached > 0:
		text = "in effect"
	}
	fmt.Fprintf(w, "Packet path:\t%s\n", text)
	for _, a := range s.Devices {
		fmt.Fprintf(w, "  %s %s\t%s\n", deviceName(a), a.Direction, deviceText(a))
	}
	for _, l := range s.LeftOut {
		const most = 8
		names := strings.Join(l.Devices[:min(len(l.Devices), most)], ", ")
		if more := len(l.Devices) - most; more > 0 {
			names += fmt.Sprintf(" and %d more", more)
		}
		fmt.Fprintf(w, "  left out: %s\t%s\n", l.Why, names)
	}
	for _, a := range s.OwnClusterIPs {
		fmt.Fprintf(w, "  %s\ta cluster IP that a device of this node has: left to it\n", a)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(w, "  WARNING\t%s\n", p)
	}
}

func deviceName(a bpf.DeviceAttachment) string {
	if a.Device == "" {
		return fmt.Sprintf("(ifindex %d)", a.Index)
	}
	return a.Device
}

// deviceText returns "why, how, program, source addresses", and what is wrong.
func deviceText(a bpf.DeviceAttachment) string {
	parts := []string{string(a.Why)}
	if a.By != "" {
		parts = append(parts, fmt.Sprintf("%s, program %d", a.By, a.Program))
	}
	for _, src := range []netip.Addr{a.Source4, a.Source6} {
		if src.IsValid() && a.Direction == "egress" {
			parts = append(parts, "source "+src.String())
		}
	}
	if a.Problem != "" {
		parts = append(parts, "PROBLEM: "+a.Problem)
	}
	return strings.Join(parts, ", ")
}
