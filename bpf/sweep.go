// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"shunt/maps"
)

// Sweeper destroys connected sockets whose backend no longer serves. A connected socket is never
// translated again: only an error makes its process connect to another backend. Sweeper handles
// the sockets of every network namespace. Every sweep reads the current sockets and maps, so that
// it can be repeated, and destroys sockets that an earlier sweep missed.
type Sweeper struct {
	o     SweeperOptions
	poked chan Sweep
	iters *sockIters // nil: the kernel has no such iterators
	// waiting are the UDP sockets with verdict waits (stays.go), by cookie, with the time of the
	// first sweep that found each.
	waiting map[uint64]time.Time
}

// Sweep selects the sockets to look for.
type Sweep struct {
	// TCP and UDP select the sockets of that protocol whose backend no longer serves.
	TCP, UDP bool
	// Untranslated selects the UDP sockets that were connected to an address before it was a
	// frontend.
	Untranslated bool
}

// SweeperOptions are the options of NewSweeper.
type SweeperOptions struct {
	// Set has the maps that the programs use. Maps reads the same maps.
	Set  *maps.Set
	Maps *maps.Kernel
	// Cgroup is the directory of the cgroup that the hooks are attached to. Only sockets of this
	// cgroup and of its descendants are translated.
	Cgroup string
	// Destroyed is called with each destroyed socket's IP protocol. It must not block, and may
	// be nil.
	Destroyed func(protocol uint8)
	Log       *zap.Logger
}

// sweepPause is the least time between two sweeps. The first sweep is at once. Requests that
// arrive during a pause are merged into one sweep.
const sweepPause = 20 * time.Millisecond

// sweepAgain are the delays of further sweeps after a request. A socket inside connect() may have
// its backend chosen by the hook, but no peer yet. No sweep finds such a socket before the call
// returns, and the call needs CPU time to return.
var sweepAgain = []time.Duration{100 * time.Millisecond, time.Second, 10 * time.Second}

// NewSweeper returns a Sweeper that does nothing until Run.
func NewSweeper(o SweeperOptions) *Sweeper {
	return &Sweeper{o: o, poked: make(chan Sweep, 1)}
}

// Poke asks for a sweep. It never blocks, and is safe from any goroutine.
func (s *Sweeper) Poke(what Sweep) {
	for {
		select {
		case s.poked <- what:
			return
		case waiting := <-s.poked:
			what = what.and(waiting)
		}
	}
}

// and returns the union of both.
func (w Sweep) and(o Sweep) Sweep {
	return Sweep{TCP: w.TCP || o.TCP, UDP: w.UDP || o.UDP, Untranslated: w.Untranslated || o.Untranslated}
}

// Run sweeps on request until the context ends, and returns nil then. Where the kernel lacks
// the iterators it logs a warning, and finds only untranslated sockets.
func (s *Sweeper) Run(ctx context.Context) error {
	var err error
	if s.iters, err = openIters(s.o.Set); err != nil {
		s.o.Log.Warn("sockets that are connected to removed endpoints stay: they can't be found", zap.Error(err))
	} else {
		defer s.iters.Close()
	}
	var what Sweep
	var asked time.Time
	var again <-chan time.Time // nil: no sweep is due again
	left := 0                  // how many delays of sweepAgain are left
	for {
		select {
		case <-ctx.Done():
			return nil
		case more := <-s.poked:
			what, asked, left = what.and(more), time.Now(), len(sweepAgain)
		case <-again:
			left--
		}
		if err := s.sweep(ctx, what); err != nil {
			s.o.Log.Warn("not every socket without a backend could be destroyed", zap.Error(err))
		}
		if again = nil; left > 0 {
			again = time.After(time.Until(asked.Add(sweepAgain[len(sweepAgain)-left])))
		} else {
			what = Sweep{}
		}
		pause(ctx, sweepPause)
	}
}

// sweep finds and destroys sockets once.
func (s *Sweeper) sweep(ctx context.Context, what Sweep) error {
	pass := &socketScan{s: s, stale: map[uint64][]staleSocket{}}
	if err := pass.findStale(what); err != nil {
		return err
	}
	if len(pass.stale) == 0 && !what.Untranslated {
		return nil
	}
	wanted := func(inode uint64) bool { return what.Untranslated || pass.stale[inode] != nil }
	var errs []error
	err := eachNetns(ctx, netnsGlobs, wanted, func(inode uint64, path string) {
		errs = append(errs, pass.destroyStale(inode))
		if what.Untranslated {
			if err := pass.destroyUntranslated(); err != nil {
				errs = append(errs, fmt.Errorf("network namespace %s: %w", path, err))
			}
		}
	})
	if err == nil && len(pass.stale) > 0 {
		left := func(inode uint64) bool { return pass.stale[inode] != nil }
		err = eachNetns(ctx, threadGlobs, left, func(inode uint64, _ string) {
			errs = append(errs, pass.destroyStale(inode))
		})
	}
	for inode, sockets := range pass.stale {
		if ctx.Err() == nil {
			errs = append(errs, fmt.Errorf("network namespace %d with %d such sockets: it can't be entered", inode, len(sockets)))
		}
	}
	return errors.Join(append(errs, err)...)
}

// socketScan is one sweep.
type socketScan struct {
	s *Sweeper
	// stale are the stale sockets by the inode number of their network namespace, without those
	// that were destroyed.
	stale map[uint64][]staleSocket
	// The following are read only when an untranslated candidate is found; nil: not read yet.
	ours       map[uint64]bool // cgroup ids
	translated map[uint64]bool // socket cookies
}

func (p *socketScan) findStale(what Sweep) error {
	if p.s.iters == nil || !what.TCP && !what.UDP {
		return nil
	}
	all, err := p.s.iters.readStale()
	all = slices.DeleteFunc(all, func(sock staleSocket) bool {
		return (sock.protocol != unix.IPPROTO_TCP || !what.TCP) && (sock.protocol != unix.IPPROTO_UDP || !what.UDP)
	})
	for _, sock := range p.s.confirm(all, time.Now()) {
		p.stale[sock.netns] = append(p.stale[sock.netns], sock)
	}
	return err
}

// destroyStale destroys the stale sockets of the calling thread's network namespace, whose
// inode number is inode.
func (p *socketScan) destroyStale(inode uint64) error {
	var errs []error
	for _, sock := range p.stale[inode] {
		errs = append(errs, p.destroy(sock.diagSocket, sock.protocol))
	}
	delete(p.stale, inode)
	return errors.Join(errs...)
}

// destroyUntranslated destroys the untranslated UDP sockets in the calling thread's network
// namespace.
func (p *socketScan) destroyUntranslated() error {
	var errs []error
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := dumpUDP(family)
		errs = append(errs, err)
		for _, sock := range sockets {
			if !p.s.o.Maps.IsFrontend(sock.peer, unix.IPPROTO_UDP) || !p.isOurs(sock.cgroup) {
				continue
			}
			translated, err := p.isTranslated(sock)
			if err == nil && !translated {
				err = p.destroy(sock, unix.IPPROTO_UDP)
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// isOurs reports whether a cgroup is the one that the hooks are attached to or below it.
func (p *socketScan) isOurs(id uint64) bool {
	if p.ours == nil {
		p.ours = cgroupsBelow(p.s.o.Cgroup)
	}
	return p.ours[id]
}

// isTranslated reports whether a socket's peer is a backend that a hook chose for it. Even a
// socket whose peer is a frontend's address can be translated: a host process can be the endpoint
// of a Service with a frontend at the host's own address.
func (p *socketScan) isTranslated(sock diagSocket) (bool, error) {
	if p.translated == nil && p.s.iters != nil {
		var err error
		if p.translated, err = p.s.iters.readTranslated(); err != nil {
			p.translated = nil
			return false, err
		}
	}
	return p.translated[sock.id.cookie()], nil
}

func (p *socketScan) destroy(sock diagSocket, proto uint8) error {
	err := destroySocket(sock, proto)
	if errors.Is(err, unix.ENOENT) {
		return nil // ENOENT: the socket was closed meanwhile
	}
	if err != nil {
		return fmt.Errorf("destroy a %s socket to %s: %w", maps.ProtocolName(proto), sock.peer, err)
	}
	if p.s.o.Destroyed != nil {
		p.s.o.Destroyed(proto)
	}
	return nil
}
