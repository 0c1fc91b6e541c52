// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// TestSortListings checks that the radix sort orders like a stable sort by netip: few and many
// listings, of one network and of all, with equal ones among them.
func TestSortListings(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 2))
	for range 300 {
		var all []listing
		addrs := map[listing]netip.AddrPort{}
		v6, spread := r.IntN(2) == 0, 1+r.IntN(16)
		for i := range r.IntN(200) {
			var b [16]byte
			b[0] = 0xfd
			for j := range spread {
				b[15-j] = byte(r.IntN(4) * 70)
			}
			a := netip.AddrFrom16(b)
			if !v6 {
				a = netip.AddrFrom4([4]byte(b[12:]))
			}
			port := binary.BigEndian.Uint16([]byte{byte(r.IntN(2)), byte(r.IntN(2))})
			l := newListing(a, port, 0, i)
			if l.port() != port {
				t.Fatalf("port %d became %d", port, l.port())
			}
			addrs[l] = netip.AddrPortFrom(a, port)
			all = append(all, l)
		}
		want := slices.Clone(all)
		slices.SortStableFunc(want, func(a, b listing) int { return cmp.Compare(addrs[a].Compare(addrs[b]), 0) })
		if got := sortListings(all, make([]listing, len(all))); !slices.Equal(got, want) {
			t.Fatalf("got %v\nwant %v", got, want)
		}
	}
}
