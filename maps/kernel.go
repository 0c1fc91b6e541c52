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

// Kernel is Tables on the kernel's maps. Its arrays are mapped into memory: writing a slot or a
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
	// newFrontends counts the TCP frontends that were added. resets reports whether a device may
	// have DeviceResets. Any goroutine may use both.
	newFrontends atomic.Uint64
	resets       atomic.Bool
}

// slot is an element of map slots in memory: the kernel rounds the size of array elements up to
// 8 bytes.
type slot struct {
	ID uint32
	_  uint32
}

var _ Tables = (*Kernel)(nil)

// NewKernel maps the set's arrays into memory. Close unmaps them.
func NewKernel(set *Set) (*Kernel, error) {
	k := &Kernel{set: set, sizes: sizesFrom(func(name string) uint32 { return set.maps[name].MaxEntries() })}
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

// mapArray maps all elements of an mmapable array. T must have the element's size, rounded up
// as the kernel does.
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

// unmapArray unmaps the slice and sets it to nil: a second call does nothing, and unmapped
// memory can't be read by mistake.
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

// Close unmaps the arrays. The set remains open.
func (k *Kernel) Close() error {
	return errors.Join(unmapArray(&k.slots), unmapArray(&k.backends), unmapArray(&k.stats), unmapArray(&k.meta),
		unmapArray(&k.problems))
}

// Sizes returns the maps' sizes.
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

// SetBackend writes a backend. The service id is written last: a reader that sees it sees the
// other fields too.
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

// FreeBackend clears the backend's service id.
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

// Backend returns a backend by its id, or false if the backend is free. It is safe from any
// goroutine.
func (k *Kernel) Backend(id uint32) (Backend, bool) {
	if id == 0 || int(id) >= len(k.backends) {
		return Backend{}, false
	}
	from := &k.backends[id]
	service := atomic.LoadUint32(&from.ServiceId)
	be := *from
	// If the backend was freed or rewritten during the copy, be may be a mixture of two backends.
	if service == 0 || be.ServiceId != service || atomic.LoadUint32(&from.ServiceId) != service {
		return Backend{}, false
	}
	return be, true
}

// Connections returns how many connections and flows have begun to a backend.
func (k *Kernel) Connections(id uint32) uint64 {
	if int(id) >= len(k.stats) {
		return 0
	}
	return atomic.LoadUint64(&k.stats[id])
}

// SetName sets the service port that a service id stands for.
func (k *Kernel) SetName(id uint32, n Name) error {
	v, err := newServiceName(n)
	if err != nil {
		return err
	}
	return k.wrap(k.set.maps[mapNames].Put(id, v), mapNames, func() string { return fmt.Sprintf("name service id %d %s", id, n) })
}

// DeleteName removes the name of a service id.
func (k *Kernel) DeleteName(id uint32) error {
	err := k.set.maps[mapNames].Delete(id)
	return k.wrap(ignoreMissing(err), mapNames, func() string { return fmt.Sprintf("delete the name of service id %d", id) })
}

// SetSourceRange adds a source range. A look-up in the LPM trie finds the longest range that
// contains the address. The value is the key's prefix_bits, by which the look-up knows that
// range.
func (k *Kernel) SetSourceRange(key SourceRangeKey) error {
	if err := key.check(); err != nil {
		return err
	}
	return k.wrap(k.putSourceRange(key), mapSources, func() string { return "add source range " + key.String() })
}

func (k *Kernel) putSourceRange(key SourceRangeKey) error {
	return k.putSourceRangeValue(key, uint8(key.PrefixBits))
}

func (k *Kernel) putSourceRangeValue(key SourceRangeKey, value uint8) error {
	sources, there := k.set.maps[mapSources], uint8(0)
	err := sources.Put(key, value)
	if !errors.Is(err, unix.ENOSPC) {
		return err
	}
	if sources.Lookup(key, &there) == nil && there == value {
		return nil // an older kernel's full trie also refuses an update of an existing key
	}
	return unix.E2BIG // the error of the other maps
}

// DeleteSourceRange removes a source range; it need not exist.
func (k *Kernel) DeleteSourceRange(key SourceRangeKey) error {
	err := k.set.maps[mapSources].Delete(key)
	return k.wrap(ignoreMissing(err), mapSources, func() string { return "delete source range " + key.String() })
}

// IsBackend reports whether the backend with this id has that service id, address and port. It is
// safe from any goroutine.
func (k *Kernel) IsBackend(id, service uint32, addr netip.AddrPort) bool {
	be, used := k.Backend(id)
	return used && be.ServiceId == service && be.AddrPort() == addr
}

// BackendsAt adds to each address and port the backends that have it. It reads the whole map,
// and is safe from any goroutine.
func (k *Kernel) BackendsAt(all map[netip.AddrPort][]Backend) {
	for id := range k.backends {
		if be, used := k.Backend(uint32(id)); used {
			if found, asked := all[be.AddrPort()]; asked {
				all[be.AddrPort()] = append(found, be)
			}
		}
	}
}

// IsFrontend reports whether an address and port is a frontend, or a node port on an address of
// this node that takes node ports from all clients. It is safe from any goroutine.
func (k *Kernel) IsFrontend(addr netip.AddrPort, protocol uint8) bool {
	_, has := k.frontend(addr, protocol, addrNodePorts)
	return has
}

// Frontend returns the frontend of an address and port, as IsFrontend does. Unlike IsFrontend it
// also finds a node port on addresses that take node ports only from the node's own network
// namespace (HostNetns). It is safe from any goroutine.
func (k *Kernel) Frontend(addr netip.AddrPort, protocol uint8) (Frontend, bool) {
	return k.frontend(addr, protocol, addrNodePorts|addrHostNetns)
}

// frontend returns the frontend of an address and port. It returns a node port only if the
// address takes node ports, and has no other flag about node ports than those in nodePorts.
func (k *Kernel) frontend(addr netip.AddrPort, protocol uint8, nodePorts uint32) (Frontend, bool) {
	var info abiAddrInfo
	if k.set.maps[mapAddrs].Lookup(newAddr(addr.Addr()), &info) != nil {
		return Frontend{}, false
	}
	if v, has := k.service(NewFrontendKey(addr.Addr(), addr.Port(), protocol)); has {
		return v, true
	}
	flags := info.Flags & (addrNodePorts | addrHostNetns)
	if flags&addrNodePorts == 0 || flags&^nodePorts != 0 {
		return Frontend{}, false
	}
	any := netip.IPv6Unspecified()
	if addr.Addr().Is4() {
		any = netip.IPv4Unspecified()
	}
	return k.service(NewFrontendKey(any, addr.Port(), protocol))
}

// service reads one entry of map services. The kernel may reuse the memory of an entry for
// another one while a look-up copies it. The Key in the value then differs from key, and the
// entry is read again.
func (k *Kernel) service(key FrontendKey) (v Frontend, has bool) {
	for range 4 {
		if k.set.maps[mapServices].Lookup(key, &v) != nil {
			return Frontend{}, false
		}
		if v.Key == key {
			return v, true
		}
	}
	return Frontend{}, false
}

// wrap adds the description of the failed write to an error, and turns the kernel's E2BIG into a
// FullError. what returns the description, and is called only for an error: a first sync makes
// some 100,000 writes.
func (k *Kernel) wrap(err error, name string, what func() string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.E2BIG):
		full := k.sizes.NewFullError(name)
		if full.Size = k.set.maps[name].MaxEntries(); name == mapAddrs {
			full.Size = uint32(k.addrRoom())
		}
		return fmt.Errorf("%s: %w", what(), full)
	}
	return fmt.Errorf("%s in map %s: %w", what(), name, err)
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// Leads returns the endpoints to which a TCP connection from this node to an address is
// translated, or nil if it is not translated. It is safe from any goroutine.
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
