// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	stdmaps "maps"
	"net/netip"
	"slices"

	"shunt/maps"
)

// DeviceAttachment is the current state of one direction of a device.
type DeviceAttachment struct {
	Device string `json:"device"`
	Index  int    `json:"ifindex"`
	// Why is the reason for attaching to the device. If nothing is attached, it is the reason for
	// which automatic would choose the device.
	Why       Why    `json:"why"`
	Direction string `json:"direction"`
	// By is the method, "TCX" or "clsact", or empty if no program is attached.
	By      string `json:"by,omitempty"`
	Program uint32 `json:"program,omitempty"`
	// Source4 and Source6 are the SNAT addresses of packets that leave by the device, or invalid
	// addresses.
	Source4 netip.Addr `json:"source4,omitzero"`
	Source6 netip.Addr `json:"source6,omitzero"`
	Problem string     `json:"problem,omitempty"`

	inEffect bool
}

// DeviceAttachments returns the attached programs of devices in this network namespace, and the
// missing ones, sorted by device. It reads the kernel and the pins below root, and needs no
// running daemon.
func DeviceAttachments(root string, k *maps.Kernel) ([]DeviceAttachment, error) {
	devices, err := readDevices()
	if err != nil {
		return nil, err
	}
	ways := waysBelow(root, false)
	found, err := listAll(ways)
	if err != nil {
		return nil, err
	}
	known, err := k.Devices()
	if err != nil {
		return nil, err
	}
	all := []DeviceAttachment{}
	for _, w := range ways {
		for _, a := range found[w] {
			all = append(all, newDeviceAttachment(a, w, devices, known))
		}
	}
	all = append(all, missing(all, devices)...)
	slices.SortFunc(all, func(a, b DeviceAttachment) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), -cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.By, b.By))
	})
	return all, nil
}

// LeftOut is a reason for not attaching, with the devices of this network namespace to which it
// applies.
type LeftOut struct {
	Why     Why      `json:"why"`
	Devices []string `json:"devices"`
}

// DevicesLeftOut returns the devices that have no element in all, by the reason for not
// attaching. all is the result of DeviceAttachments, where a device that lacks a program has an
// element.
func DevicesLeftOut(all []DeviceAttachment) ([]LeftOut, error) {
	devices, err := readDevices()
	if err != nil {
		return nil, err
	}
	asked := slices.ContainsFunc(all, func(a DeviceAttachment) bool { return a.Why == WhyAsked })
	by := map[Why][]string{}
	for _, d := range devices {
		if slices.ContainsFunc(all, func(a DeviceAttachment) bool { return a.Index == d.index }) {
			continue
		}
		choice := chooser{}.choose(d)
		if choice.attach && asked {
			choice.why = whyNotAsked
		}
		by[choice.why] = append(by[choice.why], d.name)
	}
	left := []LeftOut{}
	for _, why := range slices.Sorted(stdmaps.Keys(by)) {
		left = append(left, LeftOut{why, by[why]})
	}
	return left, nil
}

func newDeviceAttachment(a attachment, w way, devices []device, known map[uint32]maps.Device) DeviceAttachment {
	s := DeviceAttachment{Index: a.index, Why: a.why, Direction: a.dir.String(), By: w.String(), Program: uint32(a.program),
		inEffect: a.inEffect}
	s.Source4, s.Source6 = known[uint32(a.index)].Addrs()
	if d := deviceOf(devices, a.index); d != nil {
		s.Device = d.name
	}
	switch {
	case !a.inEffect:
		s.Problem = "not in effect: the device is gone, or was moved to another network namespace, or this is another one than the daemon's"
	case programProblem(a.dir.String(), a.program, nil) != "":
		s.By, s.Problem = "", programProblem(a.dir.String(), a.program, nil)
	case a.why != WhyPod && !s.Source4.IsValid() && !s.Source6.IsValid():
		s.Problem = "no address of this node is known for packets that leave here to endpoints of other nodes"
	}
	return s
}

// missing returns an element for each direction that lacks a program: for the second direction of
// a device with one program, and for both directions of a device that automatic would choose,
// unless devices were named by --devices.
func missing(all []DeviceAttachment, devices []device) []DeviceAttachment {
	asked := slices.ContainsFunc(all, func(a DeviceAttachment) bool { return a.Why == WhyAsked })
	var lacking []DeviceAttachment
	for _, d := range devices {
		has := map[string]bool{}
		var why Why
		for _, a := range all {
			if a.Index == d.index && a.inEffect {
				has[a.Direction], why = true, a.Why
			}
		}
		if choice := (chooser{}).choose(d); why == "" && choice.attach && !asked {
			why = choice.why
		}
		if why == "" {
			continue
		}
		for dir := range direction(directions) {
			if !has[dir.String()] {
				lacking = append(lacking, DeviceAttachment{Device: d.name, Index: d.index, Why: why, Direction: dir.String(),
					Problem: "not attached: --devices names others, or the daemon's log says why"})
			}
		}
	}
	return lacking
}
