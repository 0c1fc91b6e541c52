// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"github.com/cilium/ebpf"

	"shunt/maps"
)

// PacketPrograms are the packet path's programs for one kind of device, loaded and not
// attached. Tests run them on packets by BPF_PROG_TEST_RUN.
type PacketPrograms struct {
	Ingress, Egress *ebpf.Program
	programs        *packetPrograms
}

// PacketDevice is a kind of device.
type PacketDevice struct {
	// NoEthernet: packets begin with their IP header instead of an Ethernet header.
	NoEthernet bool
	// Pod: packets that arrive come from a pod of this node.
	Pod bool
	// NoKernCtx: load the programs as on a kernel without "checksum state in tc programs"
	// (Features).
	NoKernCtx bool
}

// LoadPacketPrograms loads the programs with the maps of set, for the network namespace of the
// calling thread.
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
