// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	stdmaps "maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"go.uber.org/zap"

	"shunt/maps"
)

// PacketPathOptions are the options of NewPacketPath.
type PacketPathOptions struct {
	Root string
	Set  *maps.Set
	// Maps are the maps of Set. PacketPath writes map devices.
	Maps *maps.Kernel
	// Devices and PodDevices are --devices and --pod-devices. With no Devices, automatic
	// chooses.
	Devices, PodDevices DeviceNames
	Programs            PacketOptions
	Log                 *zap.Logger
	// Failed is called for each device that could not be attached to, at each attempt. It may
	// be nil.
	Failed func()
	// noTCX attaches as on a kernel without TCX.
	noTCX bool
}

// PacketPath attaches the packet path's programs to the devices of its network namespace, follows
// changes of devices, and updates map devices accordingly. Attached programs remain attached
// after Close.
type PacketPath struct {
	opts     PacketPathOptions
	programs *packetPrograms
	// ways are the methods of attaching. The first is used; attachments by the others are
	// removed.
	ways []way
	poke chan struct{}
	// started is closed by Start.
	started chan struct{}

	nodeMu sync.Mutex
	node   []netip.Addr // replaced as a whole

	mu sync.Mutex // held during a scan
	// problems are those of the last scan, by device, so that each is logged once.
	problems map[string]string
	// inEffect reports whether a scan has attached to all devices. From then on the programs
	// translate all new connections, and strangers counts the connections that conntrack still
	// translates.
	inEffect  bool
	strangers strangers
	counted   atomic.Uint64 // maps.Kernel.NewFrontends as of the last scan
	// wanted are the devices that the last scan chose, by index. Before the first scan they are
	// the devices to which an earlier daemon has attached.
	wanted map[int]wantedDevice
	// lost has the programs that scans have found missing and attached again since takeLost, by
	// direction.
	lost [directions]string
	// held are the TCX links in effect. They remain open, so that no removal of a pin detaches a
	// program while this process lives.
	held map[point]link.Link
}

// wantedDevice is a device that should have programs.
type wantedDevice struct {
	name string
	// programs are the ids of the programs by direction; 0 stands for any program of shunt.
	programs [directions]ebpf.ProgramID
}

// NewPacketPath loads the programs for Ethernet devices, and attaches nothing before Start.
func NewPacketPath(opts PacketPathOptions) (*PacketPath, error) {
	programs, err := newPacketPrograms(opts.Set, opts.Programs)
	if err != nil {
		return nil, err
	}
	// Loading early reports a failure before anything is in effect.
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

// waysBelow returns the methods of attaching, first the one to use on this kernel.
func waysBelow(root string, noTCX bool) []way {
	ways := []way{tcx{filepath.Join(root, linkDir)}, clsact{}}
	if noTCX || haveTCX() != nil {
		slices.Reverse(ways)
	}
	return ways
}

// Close closes the programs and links. Attached programs remain attached.
func (p *PacketPath) Close() error {
	p.letGo(nil)
	return p.programs.close()
}

// hold opens the pinned TCX link of a point and keeps it open.
func (p *PacketPath) hold(at point, why Why) error {
	t, ok := p.ways[0].(tcx)
	if !ok {
		return nil // a filter needs no open file descriptor
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

// letGo closes the links of devices that were not chosen.
func (p *PacketPath) letGo(chosen map[int]bool) {
	for at, l := range p.held {
		if !chosen[at.index] {
			l.Close()
			delete(p.held, at)
		}
	}
}

// Start scans once, and lets Run begin. Problems of devices are logged, and Run tries again.
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

// SetNodeAddrs sets the addresses of the Node object, and asks for a scan if they have changed:
// devices with such an address are attached to. It does not wait for a scan under way.
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

// wake asks for a scan.
func (p *PacketPath) wake() {
	select {
	case p.poke <- struct{}{}:
	default: // a scan is asked for already
	}
}

// sync scans: it attaches to the devices that exist now, and detaches from others. It reads
// everything from the kernel, so that it also repairs attachments that another program removed.
// It reports whether there were no problems. If there were, the caller must call it again.
func (p *PacketPath) sync() (ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	problems := map[string]string{}
	if err := p.pass(problems); err != nil {
		problems[everyDevice] = err.Error()
	}
	for _, name := range slices.Sorted(stdmaps.Keys(problems)) {
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
		p.wake() // the next scan may set DeviceResets
	}
	return len(problems) == 0
}

// settled reports whether no scan is due without a change, since conntrack translates no
// connection to any frontend.
func (p *PacketPath) settled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.strangers.gone && p.strangers.frontends == p.opts.Maps.NewFrontends()
}

// Reconciled is called when frontends may have been added. If conntrack was not checked for some
// of them, it asks for a scan. It does not wait for a scan under way.
func (p *PacketPath) Reconciled() {
	if p.opts.Maps.NewFrontends() != p.counted.Load() {
		p.wake()
	}
}

// everyDevice is the name under which problems of no particular device are reported.
const everyDevice = "all"

// pass does one scan for sync. It stores the problems of devices in problems, by device name.
func (p *PacketPath) pass(problems map[string]string) error {
	devices, err := readDevices()
	if err != nil {
		return err
	}
	found, err := listAll(p.ways)
	if err == nil {
		p.noteLost(found)
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
	var all []*serving
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
		all = append(all, p.prepare(d, choice, devices, resets))
	}
	p.attachAll(all, found, problems)
	if uplinks == 0 {
		problems[everyDevice] = "no device here is an uplink or a tunnel: nothing from outside is served; --devices names some"
	}
	if p.opts.Maps.NewFrontends() != frontends {
		err = p.opts.Maps.ClearResets()
	}
	p.letGo(chosen)
	return errors.Join(err, p.removeUnwanted(found, chosen), p.forget(chosen))
}

// attachments are the attachments that were found, by method.
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

// removeStale removes the attachments that are no longer in effect.
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

// at returns the first attachment by a method at a point, or nil.
func (a attachments) at(w way, at point) *attachment {
	i := slices.IndexFunc(a[w], func(one attachment) bool { return one.point == at })
	if i < 0 {
		return nil
	}
	return &a[w][i]
}

// forget removes the entries of map devices for devices that were not chosen.
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
