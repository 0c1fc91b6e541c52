package lb

import (
	"encoding/binary"
	"net/netip"
	"sync"
)

// listing is one mention of an endpoint: the place of a slice in a list, and of the
// endpoint in the slice. key is its address and port, both in network order.
type listing struct {
	key          [18]byte
	slice, index int32
}

func newListing(a netip.Addr, port uint16, slice, index int) listing {
	l := listing{slice: int32(slice), index: int32(index)}
	b := a.As16()
	copy(l.key[:], b[:])
	binary.BigEndian.PutUint16(l.key[len(b):], port)
	return l
}

func (l *listing) port() uint16 { return binary.BigEndian.Uint16(l.key[16:]) }

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
	differs := differing(all)
	for b := len(differs) - 1; b >= 0; b-- {
		if differs[b] == 0 {
			continue
		}
		var next [256]int // where the next one with that byte goes
		for i := range all {
			next[all[i].key[b]]++
		}
		sum := 0
		for v, n := range next {
			next[v] = sum
			sum += n
		}
		for i := range all {
			v := all[i].key[b]
			other[next[v]] = all[i]
			next[v]++
		}
		all, other = other, all
	}
	return all
}

// differing has a bit set for each bit of the keys in which any two differ.
func differing(all []listing) (bits [18]byte) {
	var high, low uint64
	var port uint16
	first := &all[0].key
	for i := range all {
		k := &all[i].key
		high |= binary.BigEndian.Uint64(k[:8]) ^ binary.BigEndian.Uint64(first[:8])
		low |= binary.BigEndian.Uint64(k[8:16]) ^ binary.BigEndian.Uint64(first[8:16])
		port |= binary.BigEndian.Uint16(k[16:]) ^ binary.BigEndian.Uint16(first[16:])
	}
	binary.BigEndian.PutUint64(bits[:8], high)
	binary.BigEndian.PutUint64(bits[8:16], low)
	binary.BigEndian.PutUint16(bits[16:], port)
	return bits
}
