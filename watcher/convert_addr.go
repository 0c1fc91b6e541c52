// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"net/netip"
	"strings"
)

// use is what an address is used for. It decides which addresses are refused.
type use uint8

const (
	// asFrontend: a cluster IP or load-balancer IP, assigned by the API server or a
	// controller.
	asFrontend use = iota
	// asExternalIP: a frontend that a user wrote.
	asExternalIP
	// asEndpoint: the first address of an endpoint.
	asEndpoint
	// asNode: an address of this node.
	asNode
)

// readAddr parses an address for a use, and reports whether the address is usable. It accepts
// the forms that are not canonical but that kube-proxy accepts (IPv4-mapped IPv6, leading
// zeros), and adds a warning with the address that was parsed. It refuses an address that
// can't be programmed, with a warning.
func (p *warnings) readAddr(field path, s string, u use) (netip.Addr, bool) {
	a, note := parseAddr(s)
	if !a.IsValid() {
		p.add(field.String(), "%s %s: ignored", show(s), note)
		return a, false
	}
	if why := unusable(a, u); why != "" {
		p.add(field.String(), "%s %s: ignored", show(s), why)
		return a, false
	}
	if note != "" {
		p.add(field.String(), "%s %s %s", show(s), note, a)
	}
	return a, true
}

// parseAddr returns the address in s; an IPv4-mapped address is unmapped. The second result
// is the reason why s is refused, or how a form that is not canonical was parsed.
func parseAddr(s string) (netip.Addr, string) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		if a, err = netip.ParseAddr(trimZeros(s)); err != nil {
			return netip.Addr{}, "is not an IP address"
		}
		return a, "has leading zeros, read as decimal:"
	case a.Zone() != "":
		return netip.Addr{}, "has a zone"
	case a.Is4In6():
		return a.Unmap(), "is IPv4-mapped, read as"
	}
	return a, ""
}

// trimZeros removes leading zeros from the numbers of a dotted quad. Old objects may
// contain them. Go before 1.17, and so the API servers that accepted such objects, parsed
// these numbers as decimal; other programs parse them as octal (CVE-2021-29923).
func trimZeros(s string) string {
	parts := strings.Split(s, ".")
	if len(parts) != 4 || len(s) > 64 {
		return s
	}
	for i, n := range parts {
		if n = strings.TrimLeft(n, "0"); n == "" && parts[i] != "" {
			n = "0"
		}
		parts[i] = n
	}
	return strings.Join(parts, ".")
}

// unusable returns why an address can't have this use, "" if it can. For externalIPs
// and endpoints it refuses the addresses that API validation refuses: unspecified, loopback,
// link-local and multicast. Of addresses that controllers write it refuses only those that
// can't work or would capture this node's own loopback traffic: an IPv4 link-local address
// is accepted.
func unusable(a netip.Addr, u use) string {
	switch {
	case a.IsUnspecified():
		return "is the unspecified address"
	case a.IsLoopback():
		return "is a loopback address"
	case a.IsMulticast():
		return "is a multicast address"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is the broadcast address"
	case a.IsLinkLocalUnicast() && (a.Is6() || u == asExternalIP || u == asEndpoint):
		return "is a link-local address"
	}
	return ""
}

// parseRange returns the CIDR in s, masked; an IPv4-mapped CIDR is unmapped. The second
// result is the reason why s is not a CIDR, "" if it is.
func parseRange(s string) (netip.Prefix, string) {
	r, err := netip.ParsePrefix(s)
	if err != nil {
		quad, bits, _ := strings.Cut(s, "/")
		if r, err = netip.ParsePrefix(trimZeros(quad) + "/" + bits); err != nil {
			return netip.Prefix{}, "is not a CIDR"
		}
	}
	if a := r.Addr(); a.Is4In6() {
		if r.Bits() < 96 {
			return netip.Prefix{}, "is IPv4-mapped and wider than all of IPv4"
		}
		r = netip.PrefixFrom(a.Unmap(), r.Bits()-96)
	}
	return r.Masked(), ""
}
