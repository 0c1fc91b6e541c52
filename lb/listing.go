// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"encoding/binary"
	"net/netip"
	"sync"
)

// listing is one mention of an endpoint: the place of a slice in a list, and of the
// endpoint in the slice. key is its address, the first half first, and its port.
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

// listings are used again: they hold no pointers, and half of the memory that a
// change takes would be for them.
var listings = sync.Pool{New: func() any { return new([]listing) }}

// sortListings sorts in the order of netip.AddrPort.Compare, for one family, and
// keeps that of equal ones. It needs room for as many, and gives one of the two.
//
// A service can have thousands of endpoints, and its endpoints are most often in
// one network: a radix sort looks at those bytes alone in which any two differ, two
// or three of eighteen. To compare addresses took most of the time of a change.
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

// sortByByte sorts into other by one byte of a word of the keys.
func sortByByte(all, other []listing, word, shift int) {
	var next [256]int // where the next one with that byte goes
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
