// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	shuntmaps "shunt/maps"
)

// PacketPathOptions of NewPacketPath.
type PacketPathOptions struct {
	Root string
	Set  *shuntmaps.Set
	// Maps are those of Set; of them, map devices is written here.
	Maps *shuntmaps.Kernel
	// Devices empty: those that the rule chooses, see chooser.
	Devices, PodDevices DeviceNames
	Programs            PacketOptions
	Log                 *zap.Logger
	// Failed counts devices that could not be attached to, at each attempt.
	Failed func()
	// noTCX attaches as on a kernel without it.
	noTCX bool
}

// PacketPath keeps the programs attached to the devices of the network namespace
// that it is made in, and map devices in step with them. What it attached stays in
// effect when it is closed.
type PacketPath struct {
	opts     PacketPathOptions
	programs *packetPrograms
	// ways: the first attaches, what the others have is removed.
	ways []way
	poke chan struct{}
	// started is closed by Start.
	started chan struct{}

	nodeMu sync.Mutex
	node   []netip.Addr // published as a whole

	mu sync.Mutex // orders passes
	// problems are those of the pass before, by device, so that each is said once.
	problems map[string]string
	// inEffect: a pass has attached to all devices, so that connections that begin now are
	// ours, and strangers are counted.
	inEffect  bool
	strangers strangers
	counted   atomic.Uint64 // maps.Kernel.NewFrontends as of the last pass
	// wanted are the devices that the last pass chose, by index. Before the first they are
	// those that an earlier daemon has attached to.
	wanted map[int]wantedDevice
	// held are TCX links in effect. They are kept open: a pin that somebody removes takes
	// no program from a device while this process lives.
	held map[point]link.Link
}

// wantedDevice is a device that should have programs.
type wantedDevice struct {
	name string
	// programs are which; 0: any of ours.
	programs [directions]ebpf.ProgramID
}

// NewPacketPath loads the programs, and attaches nothing yet.
func NewPacketPath(opts PacketPathOptions) (*PacketPath, error) {
	programs, err := newPacketPrograms(opts.Set, opts.Programs)
	if err != nil {
		return nil, err
	}
	// What can't be loaded is known before anything is in effect.
	if _, err := programs.get(variant{ethernet: true}); err != nil {
		return nil, err
	}
	p := &PacketPath{opts: opts, programs: programs, ways: waysBelow(opts.Root, opts.noTCX),
		poke: make(chan struct{}, 1), started: make(chan struct{}), problems: map[string]string{},
		held: map[point]link.Link{}}
	if p.wanted, err = p.attached(); err != nil {
		return nil, errors.Join(err, programs.close())
	}
	return p, nil
}

// attached returns the devices on which an earlier daemon's programs are in effect.
func (p *PacketPath) attached() (map[int]wantedDevice, error) {
	found, err := listAll(p.ways)
	if err != nil {
		return nil, err
	}
	devices := map[int]wantedDevice{}
	for _, a := range found[p.ways[0]] {
		if there, err := net.InterfaceByIndex(a.index); err == nil && a.inEffect {
			devices[a.index] = wantedDevice{name: there.Name}
		}
	}
	return devices, nil
}

// waysBelow gives the ways with the one first that this kernel takes.
func waysBelow(root string, noTCX bool) []way {
	ways := []way{tcx{filepath.Join(root, linkDir)}, clsact{}}
	if noTCX || haveTCX() != nil {
		slices.Reverse(ways)
	}
	return ways
}

// Close closes the programs; those that are attached stay in effect.
func (p *PacketPath) Close() error {
	p.letGo(nil)
	return p.programs.close()
}

// hold keeps the link at a point open, unless it is.
func (p *PacketPath) hold(at point, why Why) error {
	t, ok := p.ways[0].(tcx)
	if !ok {
		return nil // filters have no owner
	}
	if l := p.held[at]; l != nil {
		if _, ok := inEffect(l, at); ok {
			return nil
		}
		l.Close()
	}
	l, err := t.hold(at, why)
	if err != nil {
		delete(p.held, at)
		return fmt.Errorf("keep the %s link open: %w", at.dir, err)
	}
	p.held[at] = l
	return nil
}

// letGo closes the links of devices that are not among those.
func (p *PacketPath) letGo(chosen map[int]bool) {
	for at, l := range p.held {
		if !chosen[at.index] {
			l.Close()
			delete(p.held, at)
		}
	}
}

// Start puts the programs into effect, and lets Run begin. Problems of devices are
// logged, and Run tries again.
func (p *PacketPath) Start() {
	p.sync()
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.started:
	default:
		close(p.started)
	}
}

// SetNodeAddrs says what addresses the Node has, whose devices are attached to. It
// does not wait for a pass that is under way.
func (p *PacketPath) SetNodeAddrs(addrs []netip.Addr) {
	p.nodeMu.Lock()
	defer p.nodeMu.Unlock()
	if !slices.Equal(p.node, addrs) {
		p.node = addrs
		p.wake()
	}
}

func (p *PacketPath) nodeAddrs() []netip.Addr {
	p.nodeMu.Lock()
	defer p.nodeMu.Unlock()
	return p.node
}

// wake asks for a pass.
func (p *PacketPath) wake() {
	select {
	case p.poke <- struct{}{}:
	default: // one is asked for already
	}
}

// sync brings what is attached in line with the devices that there are now. It asks
// the kernel for everything, and so mends too what somebody else has removed. ok
// says that nothing is left to try again.
func (p *PacketPath) sync() (ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	problems := map[string]string{}
	if err := p.pass(problems); err != nil {
		problems[everyDevice] = err.Error()
	}
	for _, name := range slices.Sorted(maps.Keys(problems)) {
		if p.opts.Failed != nil {
			p.opts.Failed()
		}
		if text := problems[name]; p.problems[name] != text {
			p.opts.Log.Warn("packets of a device are not served, trying again", zap.String("device", name), zap.String("problem", text))
		}
	}
	for name := range p.problems {
		if problems[name] == "" {
			p.opts.Log.Info("packets of a device are served again", zap.String("device", name))
		}
	}
	p.problems = problems
	if len(problems) == 0 && !p.inEffect {
		p.inEffect = true
		p.wake() // unknown connections can be reset now
	}
	return len(problems) == 0
}

// settled reports whether nothing is left to wait for but changes.
func (p *PacketPath) settled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.strangers.gone && p.strangers.frontends == p.opts.Maps.NewFrontends()
}

// Reconciled says that frontends may have been added. It asks for a pass if conntrack was
// not asked about some, and does not wait for one that is under way.
func (p *PacketPath) Reconciled() {
	if p.opts.Maps.NewFrontends() != p.counted.Load() {
		p.wake()
	}
}

// everyDevice stands for a device's name in problems that are of none.
const everyDevice = "all"

// pass does the work of sync; problems of a device go to problems, by its name.
func (p *PacketPath) pass(problems map[string]string) error {
	devices, err := readDevices()
	if err != nil {
		return err
	}
	found, err := listAll(p.ways)
	if err == nil {
		err = found.removeStale()
	}
	if err != nil {
		return err
	}
	chosen, uplinks := map[int]bool{}, 0
	frontends := p.opts.Maps.NewFrontends()
	p.counted.Store(frontends)
	resets := p.inEffect && p.strangers.look(frontends, p.opts.Maps.IsFrontend, p.opts.Log)
	c := chooser{asked: p.opts.Devices, pods: p.opts.PodDevices, node: p.nodeAddrs()}
	p.wanted = map[int]wantedDevice{}
	for _, d := range devices {
		choice := c.choose(d)
		if !choice.attach {
			if slices.Contains(p.opts.Devices, d.name) || slices.Contains(p.opts.PodDevices, d.name) {
				problems[d.name] = "it was asked for, but can't be attached to: " + string(choice.why)
			}
			continue
		}
		chosen[d.index], p.wanted[d.index] = true, wantedDevice{name: d.name}
		if !choice.pod() {
			uplinks++
		}
		if err := p.serve(d, choice, devices, found, resets); err != nil && !errors.Is(err, unix.ENODEV) {
			problems[d.name] = err.Error()
		}
	}
	if uplinks == 0 {
		problems[everyDevice] = "no device here is an uplink or a tunnel: nothing from outside is served; --devices names some"
	}
	if p.opts.Maps.NewFrontends() != frontends {
		err = p.opts.Maps.ClearResets()
	}
	p.letGo(chosen)
	return errors.Join(err, p.removeUnwanted(found, chosen), p.forget(chosen))
}

// attachments are what was found, by way.
type attachments map[way][]attachment

func listAll(ways []way) (attachments, error) {
	found := attachments{}
	for _, w := range ways {
		var err error
		if found[w], err = w.list(); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// removeStale removes what is not in effect any more.
func (a attachments) removeStale() error {
	var errs []error
	for w := range a {
		a[w] = slices.DeleteFunc(a[w], func(one attachment) bool {
			if !one.inEffect {
				errs = append(errs, w.remove(one))
			}
			return !one.inEffect
		})
	}
	return errors.Join(errs...)
}

// at gives the first attachment of a way at a point, nil where there is none.
func (a attachments) at(w way, at point) *attachment {
	i := slices.IndexFunc(a[w], func(one attachment) bool { return one.point == at })
	if i < 0 {
		return nil
	}
	return &a[w][i]
}

// serve writes down a device's addresses, and whether unknown connections are reset, and
// then puts both programs into effect.
func (p *PacketPath) serve(d device, choice decision, devices []device, found attachments, resets bool) error {
	programs, err := p.programs.get(variant{ethernet: d.header == headerEthernet, pod: choice.pod()})
	if err != nil {
		return err
	}
	p.wanted[d.index] = wantedDevice{d.name, [directions]ebpf.ProgramID{programs.by[ingress].id, programs.by[egress].id}}
	entry := shuntmaps.NewDevice(sources(d, devices))
	if resets {
		entry.Flags |= shuntmaps.DeviceResets
	}
	if err := p.opts.Maps.SetDevice(uint32(d.index), entry); err != nil {
		return err
	}
	w := p.ways[0]
	var errs []error
	for dir := range direction(directions) {
		at := point{d.index, dir}
		old := found.at(w, at)
		if err := w.attach(at, choice.why, programs.by[dir], old); err != nil {
			errs = append(errs, fmt.Errorf("attach the %s program by %s: %w", dir, w, err))
			continue
		}
		errs = append(errs, p.hold(at, choice.why))
		if old == nil {
			p.opts.Log.Info("attached to a device", zap.String("device", d.name), zap.Stringer("direction", dir),
				zap.Stringer("by", w), zap.String("why", string(choice.why)))
		}
	}
	return errors.Join(errs...)
}

// removeUnwanted takes away what was found and was not attached to now: of devices
// that are gone or no longer chosen, and what another way has attached.
func (p *PacketPath) removeUnwanted(found attachments, chosen map[int]bool) error {
	var errs []error
	for i, w := range p.ways {
		for _, a := range found[w] {
			if i == 0 && chosen[a.index] && a.handle == found.at(w, a.point).handle {
				continue
			}
			if err := w.remove(a); err != nil {
				errs = append(errs, err)
				continue
			}
			p.opts.Log.Info("detached from a device", zap.Int("ifindex", a.index), zap.Stringer("direction", a.dir), zap.Stringer("by", w))
		}
	}
	return errors.Join(errs...)
}

// forget removes the entries of devices that are not attached to.
func (p *PacketPath) forget(chosen map[int]bool) error {
	known, err := p.opts.Maps.Devices()
	if err != nil {
		return err
	}
	var errs []error
	for index := range known {
		if !chosen[int(index)] {
			errs = append(errs, p.opts.Maps.DeleteDevice(index))
		}
	}
	return errors.Join(errs...)
}
