// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Kernel is Tables on real maps. The arrays are mapped into memory: a slot or a
// backend costs a store, not a system call.
type Kernel struct {
	set      *Set
	sizes    Sizes
	slots    []slot
	backends []Backend
	stats    []uint64
	meta     []Meta
	problems []abiProblem
	addrs    *addrIndex // nil before the first write
	// newFrontends counts TCP frontends that were added. resets: a device may have
	// DeviceResets. Any goroutine uses them.
	newFrontends atomic.Uint64
	resets       atomic.Bool
}

// slot is an element of map slots as it lies in memory: the kernel rounds array
// elements up to 8 bytes.
type slot struct {
	ID uint32
	_  uint32
}

var _ Tables = (*Kernel)(nil)

// NewKernel maps the set's arrays into memory. Close lets go of them.
func NewKernel(set *Set) (*Kernel, error) {
	k := &Kernel{set: set, sizes: Sizes{
		Services: set.maps[mapServices].MaxEntries(),
		Slots:    set.maps[mapSlots].MaxEntries(),
		Backends: set.maps[mapBackends].MaxEntries(),
		Affinity: set.maps[mapAffinity].MaxEntries(),
		Sources:  set.maps[mapSources].MaxEntries(),
		Flows:    set.maps[mapFlows].MaxEntries(),
	}}
	err := errors.Join(
		mapArray(set.maps[mapSlots], &k.slots),
		mapArray(set.maps[mapBackends], &k.backends),
		mapArray(set.maps[mapBackendStats], &k.stats),
		mapArray(set.maps[mapMeta], &k.meta),
		mapArray(set.maps[mapProblems], &k.problems))
	if err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// mapArray maps all elements of an mmapable array. T has the element's size
// with the kernel's rounding.
func mapArray[T any](m *ebpf.Map, to *[]T) error {
	n := int(m.MaxEntries())
	var zero T
	length := n * int(unsafe.Sizeof(zero))
	page := unix.Getpagesize()
	length = (length + page - 1) / page * page
	mem, err := unix.Mmap(m.FD(), 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map array %s of %d elements into memory: %w", m.String(), n, err)
	}
	*to = unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(mem))), n)
	return nil
}

// unmapArray takes the slice away: a second call does nothing, and memory that
// is not there any more can't be read by mistake.
func unmapArray[T any](s *[]T) error {
	mem := *s
	if mem == nil {
		return nil
	}
	*s = nil
	var zero T
	length := len(mem) * int(unsafe.Sizeof(zero))
	page := unix.Getpagesize()
	length = (length + page - 1) / page * page
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(mem)), uintptr(length))
}

// Close unmaps the arrays; the set stays open.
func (k *Kernel) Close() error {
	return errors.Join(unmapArray(&k.slots), unmapArray(&k.backends), unmapArray(&k.stats), unmapArray(&k.meta),
		unmapArray(&k.problems))
}

// Sizes gives what fits.
func (k *Kernel) Sizes() Sizes { return k.sizes }

// WriteSlots stores backend ids from base on.
func (k *Kernel) WriteSlots(base uint32, ids []uint32) error {
	if uint64(base)+uint64(len(ids)) > uint64(len(k.slots)) {
		return fmt.Errorf("write %d slots from %d: map slots has %d", len(ids), base, len(k.slots))
	}
	for i, id := range ids {
		atomic.StoreUint32(&k.slots[int(base)+i].ID, id)
	}
	return nil
}

// SetBackend stores a record, its service id last: whoever sees that sees all.
func (k *Kernel) SetBackend(id uint32, b Backend) error {
	if id == 0 || int(id) >= len(k.backends) {
		return fmt.Errorf("set backend record %d: map backends has records 1 to %d", id, len(k.backends)-1)
	}
	if err := k.openAddrs(); err != nil {
		return err
	}
	to := &k.backends[id]
	if to.ServiceId == b.ServiceId && to.Addr == b.Addr && to.Port == b.Port && to.Protocol == b.Protocol {
		to.Flags = b.Flags
		return nil
	}
	if err := k.addBackend(b.Addr.addr()); err != nil {
		return err
	}
	if to.ServiceId != 0 {
		if err := k.dropBackend(to.Addr.addr()); err != nil {
			return err
		}
	}
	atomic.StoreUint32(&to.ServiceId, 0)
	to.Addr, to.Port, to.Protocol, to.Flags = b.Addr, b.Port, b.Protocol, b.Flags
	atomic.StoreUint64(&k.stats[id], 0)
	atomic.StoreUint32(&to.ServiceId, b.ServiceId)
	return nil
}

// FreeBackend clears the record's service id.
func (k *Kernel) FreeBackend(id uint32) error {
	if id == 0 || int(id) >= len(k.backends) {
		return fmt.Errorf("free backend record %d: map backends has records 1 to %d", id, len(k.backends)-1)
	}
	if err := k.openAddrs(); err != nil {
		return err
	}
	used := k.backends[id].ServiceId != 0
	atomic.StoreUint32(&k.backends[id].ServiceId, 0)
	if !used {
		return nil
	}
	return k.dropBackend(k.backends[id].Addr.addr())
}

// Backend reads one record; false where it is nobody's. Safe from any goroutine.
func (k *Kernel) Backend(id uint32) (Backend, bool) {
	if id == 0 || int(id) >= len(k.backends) {
		return Backend{}, false
	}
	from := &k.backends[id]
	service := atomic.LoadUint32(&from.ServiceId)
	be := *from
	// A record that was freed or filled anew meanwhile may be of both.
	if service == 0 || be.ServiceId != service || atomic.LoadUint32(&from.ServiceId) != service {
		return Backend{}, false
	}
	return be, true
}

// Connections counts connections and flows begun to a backend record.
func (k *Kernel) Connections(id uint32) uint64 {
	if int(id) >= len(k.stats) {
		return 0
	}
	return atomic.LoadUint64(&k.stats[id])
}

// SetName keeps what a service id stands for.
func (k *Kernel) SetName(id uint32, n Name) error {
	v, err := newServiceName(n)
	if err != nil {
		return err
	}
	return k.wrap(k.set.maps[mapNames].Put(id, v), mapNames, fmt.Sprintf("name service id %d %s", id, n))
}

// DeleteName forgets what a service id stood for.
func (k *Kernel) DeleteName(id uint32) error {
	err := k.set.maps[mapNames].Delete(id)
	return k.wrap(ignoreMissing(err), mapNames, fmt.Sprintf("delete the name of service id %d", id))
}

// SetSource adds a range of clients. The value is the prefix's bits: a look-up
// finds the longest range that holds another, and tells by it which that is.
func (k *Kernel) SetSource(key SourceKey) error {
	if err := key.check(); err != nil {
		return err
	}
	return k.wrap(k.putSource(key), mapSources, "add source range "+key.String())
}

func (k *Kernel) putSource(key SourceKey) error { return k.putSourceValue(key, uint8(key.PrefixBits)) }

func (k *Kernel) putSourceValue(key SourceKey, value uint8) error {
	sources, there := k.set.maps[mapSources], uint8(0)
	err := sources.Put(key, value)
	if !errors.Is(err, unix.ENOSPC) {
		return err
	}
	if sources.Lookup(key, &there) == nil && there == value {
		return nil // a full trie of an older kernel takes not even what it has
	}
	return unix.E2BIG // what the other maps say
}

// DeleteSource removes one.
func (k *Kernel) DeleteSource(key SourceKey) error {
	err := k.set.maps[mapSources].Delete(key)
	return k.wrap(ignoreMissing(err), mapSources, "delete source range "+key.String())
}

// SockPeerFD is the file descriptor of map sock_peer, by which sock_diag is
// asked for what sockets hold in it.
func (k *Kernel) SockPeerFD() int { return k.set.maps[mapSockPeer].FD() }

// IsBackend says whether a record is that service's and has that address. Safe
// from any goroutine.
func (k *Kernel) IsBackend(id, service uint32, addr netip.AddrPort) bool {
	be, used := k.Backend(id)
	return used && be.ServiceId == service && be.AddrPort() == addr
}

// BackendsAt adds to each address the records of endpoints that have it. It reads the whole map.
// Safe from any goroutine.
func (k *Kernel) BackendsAt(all map[netip.AddrPort][]Backend) {
	for id := range k.backends {
		if be, used := k.Backend(uint32(id)); used {
			if found, asked := all[be.AddrPort()]; asked {
				all[be.AddrPort()] = append(found, be)
			}
		}
	}
}

// IsFrontend says whether a service has that address and port, as its own or as
// a node port of an address of this node. Safe from any goroutine.
func (k *Kernel) IsFrontend(addr netip.AddrPort, protocol uint8) bool {
	_, has := k.frontend(addr, protocol, addrNodePorts)
	return has
}

// Frontend returns the service that has an address and port, as IsFrontend; a node port also at
// those addresses that take it in the node's own network namespace only. Safe from any goroutine.
func (k *Kernel) Frontend(addr netip.AddrPort, protocol uint8) (Service, bool) {
	return k.frontend(addr, protocol, addrNodePorts|addrOwnNetns)
}

// frontend looks for a node port where the address has no flags but nodePorts of those that say
// where node ports are taken.
func (k *Kernel) frontend(addr netip.AddrPort, protocol uint8, nodePorts uint32) (Service, bool) {
	var info abiAddrInfo
	if k.set.maps[mapAddrs].Lookup(newAddr(addr.Addr()), &info) != nil {
		return Service{}, false
	}
	if v, has := k.service(NewFrontendKey(addr.Addr(), addr.Port(), protocol)); has {
		return v, true
	}
	flags := info.Flags & (addrNodePorts | addrOwnNetns)
	if flags&addrNodePorts == 0 || flags&^nodePorts != 0 {
		return Service{}, false
	}
	any := netip.IPv6Unspecified()
	if addr.Addr().Is4() {
		any = netip.IPv4Unspecified()
	}
	return k.service(NewFrontendKey(any, addr.Port(), protocol))
}

// service reads one entry. Its memory may be another entry's by the time that it is copied, which
// its key tells: then it is read again.
func (k *Kernel) service(key FrontendKey) (v Service, has bool) {
	for range 4 {
		if k.set.maps[mapServices].Lookup(key, &v) != nil {
			return Service{}, false
		}
		if v.Key == key {
			return v, true
		}
	}
	return Service{}, false
}

// wrap turns the kernel's "no room" into a FullError and says what was tried.
func (k *Kernel) wrap(err error, name, what string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.E2BIG):
		full := k.sizes.NewFullError(name)
		if full.Size = k.set.maps[name].MaxEntries(); name == mapAddrs {
			full.Size = uint32(k.addrRoom())
		}
		return fmt.Errorf("%s: %w", what, full)
	}
	return fmt.Errorf("%s in map %s: %w", what, name, err)
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// Leads returns the endpoints to which a TCP connection from this node to an address
// is translated, none where it is not translated. Safe from any goroutine.
func (k *Kernel) Leads(to netip.AddrPort) []netip.AddrPort {
	v, has := k.Frontend(netip.AddrPortFrom(to.Addr().Unmap(), to.Port()), unix.IPPROTO_TCP)
	if !has || uint64(v.Inside.Base)+uint64(v.Inside.Count) > uint64(len(k.slots)) {
		return nil
	}
	var all []netip.AddrPort
	for i := range v.Inside.Count {
		id := atomic.LoadUint32(&k.slots[v.Inside.Base+i].ID)
		if be, used := k.Backend(id); used && be.ServiceId == v.Id {
			all = append(all, be.AddrPort())
		}
	}
	return all
}
