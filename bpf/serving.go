// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"shunt/maps"
)

// serving is a chosen device during a scan. After an error, no further program is attached to it.
type serving struct {
	device
	why      Why
	programs *loadedPrograms
	err      error
}

// prepare loads a device's programs, and writes its entry to map devices: its SNAT addresses, and
// whether unknown connections are reset.
func (p *PacketPath) prepare(d device, choice decision, devices []device, resets bool) *serving {
	s := &serving{device: d, why: choice.why}
	if s.programs, s.err = p.programs.get(variant{ethernet: d.header == headerEthernet, pod: choice.pod()}); s.err != nil {
		return s
	}
	p.wanted[d.index] = wantedDevice{d.name, [directions]ebpf.ProgramID{s.programs.by[ingress].id, s.programs.by[egress].id}}
	entry := maps.NewDevice(sources(d, devices, p.nodeAddrs()))
	if resets {
		entry.Flags |= maps.DeviceResets
	}
	s.err = p.opts.Maps.SetDevice(uint32(d.index), entry)
	return s
}

// attachAll attaches both programs to all devices, in attachOrder. If a device's egress program
// can't be attached, its ingress program is not attached either: clients would get replies from
// the backend's address instead of the frontend's.
func (p *PacketPath) attachAll(all []*serving, found attachments, problems map[string]string) {
	for _, dir := range attachOrder {
		for _, s := range all {
			if s.err == nil {
				s.err = p.attach(s, dir, found)
			}
		}
	}
	for _, s := range all {
		if s.err != nil && !errors.Is(s.err, unix.ENODEV) {
			problems[s.name] = s.err.Error()
		}
	}
}

// attach attaches a device's program of one direction.
func (p *PacketPath) attach(s *serving, dir direction, found attachments) error {
	w, at := p.ways[0], point{s.index, dir}
	old := found.at(w, at)
	if err := w.attach(at, s.why, s.programs.by[dir], old); err != nil {
		return fmt.Errorf("attach the %s program by %s: %w", dir, w, err)
	}
	if old == nil {
		p.opts.Log.Info("attached to a device", zap.String("device", s.name), zap.Stringer("direction", dir),
			zap.Stringer("by", w), zap.String("why", string(s.why)))
	}
	return p.hold(at, s.why)
}

// removeUnwanted removes, in detachOrder, all attachments but those that this kernel's method has
// at a chosen device; of several at one point it retains the first.
func (p *PacketPath) removeUnwanted(found attachments, chosen map[int]bool) error {
	var errs []error
	for _, dir := range detachOrder {
		for i, w := range p.ways {
			for _, a := range found[w] {
				if a.dir != dir || i == 0 && chosen[a.index] && a.handle == found.at(w, a.point).handle {
					continue
				}
				if err := w.remove(a); err != nil {
					errs = append(errs, err)
					continue
				}
				p.opts.Log.Info("detached from a device", zap.Int("ifindex", a.index), zap.Stringer("direction", a.dir),
					zap.Stringer("by", w))
			}
		}
	}
	return errors.Join(errs...)
}
