// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"shunt/maps"
)

// PacketOptions are the constants that the packet path's programs are loaded with (config.h).
type PacketOptions struct {
	SNATPorts SNATPorts
	// FlowSeed is a secret of this node, see function FlowSeed.
	FlowSeed uint64
	// ClusterCIDRs are the pod CIDRs of all nodes: at most CONFIG_CLUSTER_CIDRS (4).
	ClusterCIDRs []netip.Prefix
	Timeouts     Timeouts
	// UnreachableInterval is the least time between two ICMP errors that one CPU sends, with a
	// burst of at most one second's worth. Zero: the default of config.h.
	UnreachableInterval time.Duration
	// edit changes the programs before they are loaded, in tests; else nil.
	edit func(*ebpf.CollectionSpec)
}

// variant is a kind of device. Each kind has its own loaded programs.
type variant struct {
	ethernet, pod bool
}

// packetPrograms are the packet path's programs. Those of a variant are loaded when the first
// such device appears.
type packetPrograms struct {
	set    *maps.Set
	opts   PacketOptions
	cookie uint64
	// kernCtx reports whether programs can read how far a packet's checksum is computed (see
	// Features).
	kernCtx bool
	loaded  map[variant]*loadedPrograms
}

// loadedPrograms are the programs of one variant, by direction.
type loadedPrograms struct {
	objects tcPrograms
	by      [directions]loadedProgram
}

type loadedProgram struct {
	*ebpf.Program
	id ebpf.ProgramID
}

// newPacketPrograms returns programs for the network namespace of the calling thread, and loads
// none.
func newPacketPrograms(set *maps.Set, opts PacketOptions) (*packetPrograms, error) {
	cookie, err := NetnsCookie()
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) { // see config.h
		return nil, err
	}
	return &packetPrograms{set: set, opts: opts, cookie: cookie, kernCtx: haveKernCtx() == nil,
		loaded: map[variant]*loadedPrograms{}}, nil
}

// get returns the programs for a variant, and loads them at the first call.
func (p *packetPrograms) get(v variant) (*loadedPrograms, error) {
	if l := p.loaded[v]; l != nil {
		return l, nil
	}
	spec, err := loadTc()
	if err == nil {
		err = p.configure(spec, v)
	}
	if err != nil {
		return nil, fmt.Errorf("configure the packet path's programs: %w", err)
	}
	if p.opts.edit != nil {
		p.opts.edit(spec)
	}
	l := &loadedPrograms{}
	opts := ebpf.CollectionOptions{MapReplacements: replacements(spec, p.set)}
	if !p.kernCtx {
		// The verifier then drops the branches that read the kernel's types, so that any types
		// will do. The kernel may have been built without type information (BTF).
		opts.Programs.KernelTypes = spec.Types
	}
	err = spec.LoadAndAssign(&l.objects, &opts)
	if err != nil {
		return nil, fmt.Errorf("load the packet path's programs into the kernel: %w", Explain(err))
	}
	for dir, prog := range [directions]*ebpf.Program{ingress: l.objects.ShuntIngress, egress: l.objects.ShuntEgress} {
		if l.by[dir], err = newLoadedProgram(prog); err != nil {
			return nil, errors.Join(err, l.objects.Close())
		}
	}
	p.loaded[v] = l
	return l, nil
}

func newLoadedProgram(p *ebpf.Program) (loadedProgram, error) {
	info, err := p.Info()
	if err != nil {
		return loadedProgram{}, fmt.Errorf("ask for the id of program %s: %w", p, err)
	}
	id, _ := info.ID() // Linux 4.13
	return loadedProgram{p, id}, nil
}

// configure sets the constants of config.h in spec.
func (p *packetPrograms) configure(spec *ebpf.CollectionSpec, v variant) error {
	var cidrs []tcCidr
	for _, c := range p.opts.ClusterCIDRs {
		cidrs = append(cidrs, newCidr(c))
	}
	room := int(spec.Variables[tcVarConfigClusterCidrs].Size()) / binary.Size(tcCidr{})
	if len(cidrs) > room {
		return fmt.Errorf("%d cluster CIDRs, there is room for %d", len(cidrs), room)
	}
	count := len(cidrs)
	cidrs = append(cidrs, make([]tcCidr, room-count)...)
	var timeouts tcTimeouts
	if err := spec.Variables[tcVarConfigTimeouts].Get(&timeouts); err != nil {
		return err
	}
	p.opts.Timeouts.apply(&timeouts)
	var interval uint64
	if err := spec.Variables[tcVarConfigUnreachableInterval].Get(&interval); err != nil {
		return err
	}
	if d := p.opts.UnreachableInterval; d > 0 {
		interval = uint64(d.Nanoseconds())
	}
	for name, value := range map[string]any{
		tcVarConfigNetnsCookie:         p.cookie,
		tcVarConfigHasKernCtx:          boolByte(p.kernCtx),
		tcVarConfigEthernet:            boolByte(v.ethernet),
		tcVarConfigPodDevice:           boolByte(v.pod),
		tcVarConfigSnatPortFirst:       p.opts.SNATPorts.First,
		tcVarConfigSnatPortCount:       p.opts.SNATPorts.Count,
		tcVarConfigFlowSeed:            p.opts.FlowSeed,
		tcVarConfigClusterCidrs:        cidrs,
		tcVarConfigClusterCidrCount:    uint32(count),
		tcVarConfigTimeouts:            timeouts,
		tcVarConfigUnreachableInterval: interval,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

func boolByte(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

func newCidr(p netip.Prefix) tcCidr {
	var c tcCidr
	p = p.Masked()
	c.Addr.B = p.Addr().As16()
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	for i := range bits {
		c.Mask.B[i/8] |= 0x80 >> (i % 8)
	}
	return c
}

// close closes the programs. Attached programs remain attached.
func (p *packetPrograms) close() error {
	var errs []error
	for _, l := range p.loaded {
		errs = append(errs, l.objects.Close())
	}
	clear(p.loaded)
	return errors.Join(errs...)
}
