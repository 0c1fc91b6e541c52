// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"
)

// ClientKey is the key of map client_addrs: a network namespace, by its cookie, and the address
// that a socket is bound or connects to. The unspecified address of a family stands for all
// addresses without an entry.
type ClientKey struct {
	Netns uint64
	Addr  netip.Addr
}

// String returns "network namespace COOKIE to ADDRESS".
func (k ClientKey) String() string {
	return fmt.Sprintf("network namespace %d to %s", k.Netns, k.Addr)
}

func (k ClientKey) abi() abiClientKey { return abiClientKey{Netns: k.Netns, Addr: newAddr(k.Addr)} }

// SetClientAddr writes the source address that sockets of a network namespace use for an
// address. Only the goroutine that owns the map may call it.
func (k *Kernel) SetClientAddr(key ClientKey, source netip.Addr) error {
	value := abiClientAddr{Netns: key.Netns, Addr: newAddr(source)}
	err := k.set.maps[mapClientAddrs].Put(key.abi(), value)
	return k.wrap(err, mapClientAddrs, func() string { return "set the source address of " + key.String() })
}

// DeleteClientAddr removes an entry; it need not exist.
func (k *Kernel) DeleteClientAddr(key ClientKey) error {
	err := ignoreMissing(k.set.maps[mapClientAddrs].Delete(key.abi()))
	return k.wrap(err, mapClientAddrs, func() string { return "delete the source address of " + key.String() })
}

// ClientAddrs returns the entries of map client_addrs.
func (k *Kernel) ClientAddrs() (map[ClientKey]netip.Addr, error) {
	all := map[ClientKey]netip.Addr{}
	var key abiClientKey
	var value abiClientAddr
	it := k.set.maps[mapClientAddrs].Iterate()
	for it.Next(&key, &value) {
		all[ClientKey{key.Netns, key.Addr.addr()}] = value.Addr.addr()
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read map %s: %w", mapClientAddrs, err)
	}
	return all, nil
}

// ClientAddrsSize returns the size of map client_addrs, in entries.
func (k *Kernel) ClientAddrsSize() uint32 { return k.set.maps[mapClientAddrs].MaxEntries() }
