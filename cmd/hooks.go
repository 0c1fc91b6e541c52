// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"context"

	"go.uber.org/zap"

	"shunt/bpf"
	"shunt/lb"
	"shunt/maps"
)

// newHooks returns the Hooks, which attach the programs and repair their attachments. It
// attaches nothing: attach does.
func (d *daemon) newHooks() *bpf.Hooks {
	return bpf.NewHooks(bpf.HooksOptions{
		Root: d.cfg.BPFFSRoot, MountBPFFS: d.cfg.MountBPFFS, Lock: d.lock, Set: d.set, Maps: d.kernel,
		FindCgroup: func() (string, error) { return bpf.FindCgroupRoot(d.cfg.CgroupRoot) },
		Programs:   d.programs, Packets: d.packets, FlowSeed: d.flowSeed, Memory: d.memory, Log: d.log,
		Repaired: func(name string) { d.reporter.health.HookRepaired(name) },
		// Sockets may have connected while a hook was not in effect.
		Lost: func() { d.sweeper.Poke(d.everySocket()) },
		Earlier: bpf.Earlier{InEffect: d.inEffect, Adopted: d.adopted,
			Lasts: func(is bool) { d.reporter.health.SetAdoptedInEffect(is) }},
	})
}

// attach puts the programs into effect. The loop calls it on the reconcile goroutine once the
// maps contain every known Service, so that incomplete maps are never in effect.
func (d *daemon) attach(ctx context.Context) error {
	d.reporter.synced()
	if err := d.set.Switch(); err != nil {
		return err
	}
	d.startPackets()
	if err := d.hooks.Start(ctx); err != nil {
		return err
	}
	flows, err := d.set.Commit()
	if err != nil {
		return err
	}
	if flows != (maps.CarriedFlows{}) {
		d.log.Warn("not every connection from outside could be taken over into the new map flows; others are not touched",
			zap.Int("entries_without_room", flows.Lost), zap.String("flag", maps.FlagFlows), zap.Error(flows.Err))
	}
	d.log.Info("in effect", zap.String("cgroup", d.cgroup))
	// Sockets may be connected to a removed endpoint, or to an untranslated address: until
	// now the maps of an earlier daemon, or none, were in effect.
	d.sweeper.Poke(d.everySocket())
	return nil
}

func (d *daemon) everySocket() bpf.Sweep {
	return bpf.Sweep{UDP: true, Untranslated: true, TCP: d.cfg.DestroyTCPSockets}
}

func (d *daemon) sweepStale(s lb.Stale) {
	d.sweeper.Poke(bpf.Sweep{
		TCP: s.TCPBackends && d.cfg.DestroyTCPSockets,
		UDP: s.UDPFlows, Untranslated: s.UDPFrontends,
	})
}
