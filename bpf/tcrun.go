// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"github.com/cilium/ebpf"

	"shunt/maps"
)

// PacketPrograms are the packet path's programs for one sort of device, loaded and
// not attached: what tests run on packets with BPF_PROG_TEST_RUN.
type PacketPrograms struct {
	Ingress, Egress *ebpf.Program
	programs        *packetPrograms
}

// PacketDevice is a sort of device.
type PacketDevice struct {
	// NoEthernet: packets begin with their IP header.
	NoEthernet bool
	// Pod: what comes in is from a pod of this node.
	Pod bool
	// NoKernCtx: as on a kernel that has no "checksum state in tc programs" (Features).
	NoKernCtx bool
}

// LoadPacketPrograms loads the programs with these maps, for the network namespace
// of the calling thread.
func LoadPacketPrograms(set *maps.Set, opts PacketOptions, d PacketDevice) (*PacketPrograms, error) {
	p, err := newPacketPrograms(set, opts)
	if err != nil {
		return nil, err
	}
	p.kernCtx = p.kernCtx && !d.NoKernCtx
	l, err := p.get(variant{ethernet: !d.NoEthernet, pod: d.Pod})
	if err != nil {
		return nil, err
	}
	return &PacketPrograms{Ingress: l.by[ingress].Program, Egress: l.by[egress].Program, programs: p}, nil
}

// Close closes the programs.
func (p *PacketPrograms) Close() error { return p.programs.close() }
