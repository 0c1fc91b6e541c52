// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"encoding/binary"
	"net/netip"
	"sync"
)

// listing is one mention of an endpoint: the index of its slice, and its index in the slice. key is
// the address in network byte order as two words, and the port.
type listing struct {
	key          [3]uint64
	slice, index int32
}

func newListing(a netip.Addr, port uint16, slice, index int) listing {
	b := a.As16()
	return listing{
		key:   [3]uint64{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]), uint64(port)},
		slice: int32(slice), index: int32(index),
	}
}

func (l *listing) port() uint16 { return uint16(l.key[2]) }

// listings are reused: they would be half of the memory that a change takes, and hold no pointers.
var listings = sync.Pool{New: func() any { return new([]listing) }}

// sortListings sorts in the order of netip.AddrPort.Compare, for one family; the sort is stable.
// other is scratch space of the same length. It returns the sorted one of the two.
//
// A service can have thousands of endpoints, mostly in one network. A radix sort looks only at the
// bytes in which any two differ: two or three of eighteen. Comparing addresses took most of the
// time of a change.
func sortListings(all, other []listing) []listing {
	if len(all) < 2 {
		return all
	}
	var differs [3]uint64
	for i := range all {
		for w := range differs {
			differs[w] |= all[i].key[w] ^ all[0].key[w]
		}
	}
	for w := len(differs) - 1; w >= 0; w-- {
		for shift := 0; shift < 64; shift += 8 {
			if byte(differs[w]>>shift) != 0 {
				sortByByte(all, other, w, shift)
				all, other = other, all
			}
		}
	}
	return all
}

// sortByByte sorts all into other by one byte of a word of the keys.
func sortByByte(all, other []listing, word, shift int) {
	var next [256]int // where in other the next listing with that byte goes
	for i := range all {
		next[byte(all[i].key[word]>>shift)]++
	}
	sum := 0
	for v, n := range next {
		next[v] = sum
		sum += n
	}
	for i := range all {
		v := byte(all[i].key[word] >> shift)
		other[next[v]] = all[i]
		next[v]++
	}
}
