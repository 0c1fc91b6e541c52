// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"container/list"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// addrIndex is a copy of map addrs, with the number of frontends and of backends at each address.
// Kernel uses it to keep the map consistent with the other maps and the node's addresses.
type addrIndex struct {
	// frontends counts the entries of map services by address.
	frontends map[netip.Addr]int
	// flags are the values of map addrs, by address.
	flags map[netip.Addr]uint32
	// known counts the addresses with other flags than addrBackend.
	known int
	// backends counts the used backends by address.
	backends map[netip.Addr]int
	// left are the addresses whose last backend was removed, in the order of the removal. They
	// remain marked. leftAt has the element of left of each address, to remove an address that
	// gets a backend again.
	left   list.List
	leftAt map[netip.Addr]*list.Element
}

// The flags of map addrs (enum addr_flag).
const (
	addrFrontend  = uint32(abiAddrFlagADDR_FLAG_FRONTEND)
	addrClusterIP = uint32(abiAddrFlagADDR_FLAG_CLUSTER_IP)
	addrNodePorts = uint32(abiAddrFlagADDR_FLAG_NODE_PORTS)
	addrHostNetns = uint32(abiAddrFlagADDR_FLAG_HOST_NETNS)
	addrBackend   = uint32(abiAddrFlagADDR_FLAG_BACKEND)
	addrHookCheck = uint32(abiAddrFlagADDR_FLAG_HOOK_CHECK)
)

// leftAddrs is how many addresses remain marked as backends' after the removal of their last
// backend (LEFT_ADDRS of maps.h): connections to such an address continue.
const leftAddrs = 4096

// openAddrs builds the index from the maps at the first write. It also repairs the map after a
// daemon that was killed between two writes: programs would never find a frontend whose address
// is not marked.
func (k *Kernel) openAddrs() error {
	if k.addrs != nil {
		return nil
	}
	ix := &addrIndex{frontends: map[netip.Addr]int{}, backends: map[netip.Addr]int{}, leftAt: map[netip.Addr]*list.Element{}}
	var err error
	if ix.flags, err = k.readAddrs(); err != nil {
		return err
	}
	err = k.eachFrontend(func(key FrontendKey, _ Frontend) {
		if a := key.AddrPort().Addr(); !a.IsUnspecified() {
			ix.frontends[a]++
		}
	})
	if err != nil {
		return err
	}
	for i := range k.backends {
		if be := &k.backends[i]; be.ServiceId != 0 {
			ix.backends[be.Addr.addr()]++
		}
	}
	for a, flags := range ix.flags {
		if isHookCheck(a) { // an entry of SetHookChecks, which is not counted
			delete(ix.flags, a)
		} else if flags&^addrBackend != 0 {
			ix.known++
		}
	}
	k.addrs = ix
	var errs []error
	for a := range ix.frontends {
		errs = append(errs, k.markAddr(a, addrFrontend, 0))
	}
	for a := range ix.flags {
		if ix.frontends[a] == 0 {
			errs = append(errs, k.markAddr(a, 0, addrFrontend))
		}
	}
	errs = append(errs, k.markBackends())
	err = errors.Join(errs...)
	if err != nil {
		k.addrs = nil // the next write builds the index again
	}
	return err
}

// markBackends marks the addresses of all backends. A marked address without a backend has lost
// its last backend under an earlier daemon.
func (k *Kernel) markBackends() error {
	var errs []error
	for a := range k.addrs.backends {
		errs = append(errs, k.markAddr(a, addrBackend, 0))
	}
	for a, flags := range k.addrs.flags {
		if flags&addrBackend != 0 && k.addrs.backends[a] == 0 {
			k.addrs.leave(a)
		}
	}
	return errors.Join(append(errs, k.forgetLeft())...)
}

// markAddr adds and removes flags of an address. It does not change the entries of HookCheckAddrs,
// even if a Service, an EndpointSlice or the node has such an address. Where the map has no
// room it returns a FullError.
func (k *Kernel) markAddr(a netip.Addr, add, remove uint32) error {
	if isHookCheck(a) {
		return nil
	}
	old := k.addrs.flags[a]
	flags := old&^remove | add
	known := k.addrs.known - count(old&^addrBackend) + count(flags&^addrBackend)
	switch flags {
	case old:
		return nil
	case 0:
		err := k.set.maps[mapAddrs].Delete(newAddr(a))
		if err := k.wrap(ignoreMissing(err), mapAddrs, func() string { return "delete address " + a.String() }); err != nil {
			return err
		}
		k.addrs.known = known
		delete(k.addrs.flags, a)
		return nil
	}
	err := error(unix.E2BIG)
	if known <= k.addrRoom() || known <= k.addrs.known {
		err = k.set.maps[mapAddrs].Put(newAddr(a), abiAddrInfo{Flags: flags})
	}
	if err := k.wrap(err, mapAddrs, func() string { return "mark address " + a.String() }); err != nil {
		return err
	}
	k.addrs.known = known
	k.addrs.flags[a] = flags
	return nil
}

// count returns 1 for an address with flags, else 0.
func count(flags uint32) int {
	if flags == 0 {
		return 0
	}
	return 1
}

// addrRoom returns how many addresses of frontends and of the node fit: the rest of map addrs
// is reserved for backends' addresses.
func (k *Kernel) addrRoom() int {
	return int(k.set.maps[mapAddrs].MaxEntries()) - int(k.sizes.Backends) - leftAddrs
}

// addBackend counts one more backend at an address. The address is marked before the backend is
// written.
func (k *Kernel) addBackend(a netip.Addr) error {
	if err := k.markAddr(a, addrBackend, 0); err != nil {
		return err
	}
	k.addrs.backends[a]++
	if at := k.addrs.leftAt[a]; at != nil {
		k.addrs.left.Remove(at)
		delete(k.addrs.leftAt, a)
	}
	return nil
}

// dropBackend counts one backend less at an address. An address without backends remains marked:
// a pod that is not ready, or that shuts down, still has connections.
func (k *Kernel) dropBackend(a netip.Addr) error {
	if k.addrs.backends[a]--; k.addrs.backends[a] > 0 {
		return nil
	}
	delete(k.addrs.backends, a)
	k.addrs.leave(a)
	return k.forgetLeft()
}

// leave records that the last backend at an address was removed.
func (ix *addrIndex) leave(a netip.Addr) { ix.leftAt[a] = ix.left.PushBack(a) }

// forgetLeft unmarks the oldest addresses of left, until leftAddrs remain.
func (k *Kernel) forgetLeft() error {
	ix := k.addrs
	var errs []error
	for ix.left.Len() > leftAddrs {
		a := ix.left.Remove(ix.left.Front()).(netip.Addr)
		delete(ix.leftAt, a)
		errs = append(errs, k.markAddr(a, 0, addrBackend))
	}
	return errors.Join(errs...)
}

func (k *Kernel) readAddrs() (map[netip.Addr]uint32, error) {
	all := map[netip.Addr]uint32{}
	var a abiAddr
	var info abiAddrInfo
	it := k.set.maps[mapAddrs].Iterate()
	for it.Next(&a, &info) {
		all[a.addr()] = info.Flags
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read map %s: %w", mapAddrs, err)
	}
	return all, nil
}

// SetFrontend adds or replaces a frontend. The entry is written by one BPF_MAP_UPDATE_ELEM: a
// look-up returns the old value or the new one. The address is marked before, so that programs
// find the entry as soon as it exists.
func (k *Kernel) SetFrontend(key FrontendKey, v Frontend) error {
	if err := k.openAddrs(); err != nil {
		return err
	}
	a := key.AddrPort().Addr()
	if FrontendKind(v.Kind) == UndefinedPort {
		return k.markAddr(a, addrClusterIP, 0)
	}
	v.Key = key
	services := k.set.maps[mapServices]
	what := func() string { return "set frontend " + key.String() }
	err := services.Update(key, v, ebpf.UpdateExist)
	if !errors.Is(err, ebpf.ErrKeyNotExist) {
		return k.wrap(err, mapServices, what)
	}
	if err := k.expectOthers(key); err != nil {
		return err
	}
	if a.IsUnspecified() {
		return k.wrap(services.Put(key, v), mapServices, what)
	}
	if err := k.markAddr(a, addrFrontend, 0); err != nil {
		return err
	}
	k.addrs.frontends[a]++
	if err := services.Put(key, v); err != nil {
		return errors.Join(k.wrap(err, mapServices, what), k.dropFrontend(a))
	}
	return nil
}

// DeleteFrontend removes a frontend; it need not exist.
func (k *Kernel) DeleteFrontend(key FrontendKey) error {
	if err := k.openAddrs(); err != nil {
		return err
	}
	a := key.AddrPort().Addr()
	if key.Port == 0 {
		return k.markAddr(a, 0, addrClusterIP)
	}
	err := k.set.maps[mapServices].Delete(key)
	if err == nil && !a.IsUnspecified() {
		return k.dropFrontend(a)
	}
	return k.wrap(ignoreMissing(err), mapServices, func() string { return "delete frontend " + key.String() })
}

// dropFrontend counts one frontend less at an address, and unmarks the address after the last.
func (k *Kernel) dropFrontend(a netip.Addr) error {
	k.addrs.frontends[a]--
	if k.addrs.frontends[a] > 0 {
		return nil
	}
	delete(k.addrs.frontends, a)
	return k.markAddr(a, 0, addrFrontend)
}

// SetNodeAddr adds an address that takes node ports. flags is HostNetns or 0.
func (k *Kernel) SetNodeAddr(a netip.Addr, flags uint32) error {
	if err := k.openAddrs(); err != nil {
		return err
	}
	add := addrNodePorts
	if flags&HostNetns != 0 {
		add |= addrHostNetns
	}
	return k.markAddr(a, add, addrHostNetns)
}

// DeleteNodeAddr removes an address that takes node ports.
func (k *Kernel) DeleteNodeAddr(a netip.Addr) error {
	if err := k.openAddrs(); err != nil {
		return err
	}
	return k.markAddr(a, 0, addrNodePorts|addrHostNetns)
}

// dumpAddrs adds the cluster IPs and node addresses of map addrs to the dump.
func (k *Kernel) dumpAddrs(d *Dump) error {
	all, err := k.readAddrs()
	if err != nil {
		return err
	}
	for a, flags := range all {
		if flags&addrClusterIP != 0 && flags&addrHookCheck == 0 {
			d.Frontends[NewFrontendKey(a, 0, 0)] = Frontend{Kind: uint8(UndefinedPort)}
		}
		if flags&addrNodePorts != 0 {
			own := uint32(0)
			if flags&addrHostNetns != 0 {
				own = HostNetns
			}
			d.NodeAddrs[a] = own
		}
	}
	return nil
}

// HookCheckAddrs are the addresses of the hook check, one of each family. They are reserved for
// documentation (RFC 5737, RFC 3849): no cluster can route them.
var HookCheckAddrs = [...]netip.Addr{netip.MustParseAddr("192.0.2.255"), netip.MustParseAddr("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff")}

func isHookCheck(a netip.Addr) bool { return slices.Contains(HookCheckAddrs[:], a) }

// SetHookChecks makes sure that map addrs has the entries by which the hooks refuse HookCheckAddrs.
// These entries are never removed, are in no dump, and no reconcile writes them: SetHookChecks is
// safe from any goroutine.
func (k *Kernel) SetHookChecks() error {
	for _, a := range HookCheckAddrs {
		if err := k.setHookCheck(a); err != nil {
			return err
		}
	}
	return nil
}

func (k *Kernel) setHookCheck(a netip.Addr) error {
	addrs, key := k.set.maps[mapAddrs], newAddr(a)
	want := abiAddrInfo{Flags: addrClusterIP | addrHookCheck}
	var is abiAddrInfo
	if err := addrs.Lookup(key, &is); err == nil && is == want {
		return nil
	}
	return k.wrap(addrs.Put(key, want), mapAddrs, func() string { return "set hook check address " + a.String() })
}
