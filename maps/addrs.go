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

// addrIndex keeps map addrs in step with services and the node's addresses: what
// each address means, and how many frontends make it so.
type addrIndex struct {
	// frontends counts entries of services by address.
	frontends map[netip.Addr]int
	// flags is what map addrs holds.
	flags map[netip.Addr]uint32
	// known counts addresses that are not only backends'.
	known int
	// backends counts records of map backends by address.
	backends map[netip.Addr]int
	// left are addresses that no backend has any more, the oldest first. They stay marked.
	// leftAt has the place of each: one that comes back and leaves again is there once.
	left   list.List
	leftAt map[netip.Addr]*list.Element
}

// The flags of map addrs (enum addr_flag).
const (
	addrFrontend  = uint32(abiAddrFlagADDR_FLAG_FRONTEND)
	addrClusterIP = uint32(abiAddrFlagADDR_FLAG_CLUSTER_IP)
	addrNodePorts = uint32(abiAddrFlagADDR_FLAG_NODE_PORTS)
	addrOwnNetns  = uint32(abiAddrFlagADDR_FLAG_OWN_NETNS)
	addrBackend   = uint32(abiAddrFlagADDR_FLAG_BACKEND)
	addrProbe     = uint32(abiAddrFlagADDR_FLAG_PROBE)
)

// leftAddrs is how many addresses stay marked as backends' that are none's any more
// (LEFT_ADDRS of maps.h): connections to them go on.
const leftAddrs = 4096

// openAddrs reads the index back from the maps at the first write, and mends what
// a daemon that was killed between two writes has left: a frontend whose address
// is not marked would never be found.
func (k *Kernel) openAddrs() error {
	if k.addrs != nil {
		return nil
	}
	ix := &addrIndex{frontends: map[netip.Addr]int{}, backends: map[netip.Addr]int{}, leftAt: map[netip.Addr]*list.Element{}}
	var err error
	if ix.flags, err = k.readAddrs(); err != nil {
		return err
	}
	err = k.eachFrontend(func(key FrontendKey, _ Service) {
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
		if isProbe(a) { // SetProbe's, which takes no room of services
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
		k.addrs = nil // to be mended at the next write
	}
	return err
}

// markBackends marks the addresses of all backends. Those that are marked and no backend's
// left before this daemon began.
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

// markAddr adds and takes away flags of an address. It leaves the entries of ProbeAddrs alone,
// whatever a Service, an EndpointSlice or the node says of these addresses.
func (k *Kernel) markAddr(a netip.Addr, add, remove uint32) error {
	if isProbe(a) {
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
		if err := k.wrap(ignoreMissing(err), mapAddrs, "delete address "+a.String()); err != nil {
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
	if err := k.wrap(err, mapAddrs, "mark address "+a.String()); err != nil {
		return err
	}
	k.addrs.known = known
	k.addrs.flags[a] = flags
	return nil
}

// count is 1 for flags that say something.
func count(flags uint32) int {
	if flags == 0 {
		return 0
	}
	return 1
}

// addrRoom is how many addresses of frontends and of the node fit: the rest of map addrs is
// for backends'.
func (k *Kernel) addrRoom() int {
	return int(k.set.maps[mapAddrs].MaxEntries()) - int(k.sizes.Backends) - leftAddrs
}

// addBackend counts one record more at an address, which is marked before the record is
// there.
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

// dropBackend counts one record less at an address. The last leaves it marked: a pod that is
// not ready, or shuts down, has connections.
func (k *Kernel) dropBackend(a netip.Addr) error {
	if k.addrs.backends[a]--; k.addrs.backends[a] > 0 {
		return nil
	}
	delete(k.addrs.backends, a)
	k.addrs.leave(a)
	return k.forgetLeft()
}

// leave notes that an address is no backend's any more.
func (ix *addrIndex) leave(a netip.Addr) { ix.leftAt[a] = ix.left.PushBack(a) }

// forgetLeft unmarks those that left first, where there are too many.
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

// SetFrontend adds or replaces an entry. The entry itself is one
// BPF_MAP_UPDATE_ELEM: a look-up sees the old value or the new. Its address is
// marked first, so that the entry is found as soon as it is there.
func (k *Kernel) SetFrontend(key FrontendKey, v Service) error {
	if err := k.openAddrs(); err != nil {
		return err
	}
	a := key.AddrPort().Addr()
	if FrontendKind(v.Kind) == UndefinedPort {
		return k.markAddr(a, addrClusterIP, 0)
	}
	v.Key = key
	services, what := k.set.maps[mapServices], "set frontend "+key.String()
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

// DeleteFrontend removes an entry.
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
	return k.wrap(ignoreMissing(err), mapServices, "delete frontend "+key.String())
}

// dropFrontend counts one frontend less at an address.
func (k *Kernel) dropFrontend(a netip.Addr) error {
	k.addrs.frontends[a]--
	if k.addrs.frontends[a] > 0 {
		return nil
	}
	delete(k.addrs.frontends, a)
	return k.markAddr(a, 0, addrFrontend)
}

// SetNodeAddr adds an address that takes node ports.
func (k *Kernel) SetNodeAddr(a netip.Addr, flags uint32) error {
	if err := k.openAddrs(); err != nil {
		return err
	}
	add := addrNodePorts
	if flags&OwnNetns != 0 {
		add |= addrOwnNetns
	}
	return k.markAddr(a, add, addrOwnNetns)
}

// DeleteNodeAddr removes an address that takes node ports.
func (k *Kernel) DeleteNodeAddr(a netip.Addr) error {
	if err := k.openAddrs(); err != nil {
		return err
	}
	return k.markAddr(a, 0, addrNodePorts|addrOwnNetns)
}

// dumpAddrs tells cluster IPs and node addresses from map addrs.
func (k *Kernel) dumpAddrs(d *Dump) error {
	all, err := k.readAddrs()
	if err != nil {
		return err
	}
	for a, flags := range all {
		if flags&addrClusterIP != 0 && flags&addrProbe == 0 {
			d.Frontends[NewFrontendKey(a, 0, 0)] = Service{Kind: uint8(UndefinedPort)}
		}
		if flags&addrNodePorts != 0 {
			own := uint32(0)
			if flags&addrOwnNetns != 0 {
				own = OwnNetns
			}
			d.NodeAddrs[a] = own
		}
	}
	return nil
}

// ProbeAddrs are where the daemon asks whether the hooks act, one address of each family. They
// are for documentation (RFC 5737, RFC 3849): no cluster can route them.
var ProbeAddrs = [...]netip.Addr{netip.MustParseAddr("192.0.2.255"), netip.MustParseAddr("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff")}

func isProbe(a netip.Addr) bool { return slices.Contains(ProbeAddrs[:], a) }

// SetProbes makes sure that sockets are refused at ProbeAddrs. The entries stay, are in no
// dump, and belong to no reconcile: SetProbes may be called from any goroutine.
func (k *Kernel) SetProbes() error {
	for _, a := range ProbeAddrs {
		if err := k.setProbe(a); err != nil {
			return err
		}
	}
	return nil
}

func (k *Kernel) setProbe(a netip.Addr) error {
	addrs, key := k.set.maps[mapAddrs], newAddr(a)
	want := abiAddrInfo{Flags: addrClusterIP | addrProbe}
	var is abiAddrInfo
	if err := addrs.Lookup(key, &is); err == nil && is == want {
		return nil
	}
	return k.wrap(addrs.Put(key, want), mapAddrs, "set probe address "+a.String())
}
