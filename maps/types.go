// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// The maps' keys and values, generated from bpf/include/abi.h, where the fields are explained.
// Their addresses and ports are in network byte order.
type (
	// FrontendKey is the key of map services.
	FrontendKey = abiFrontendKey
	// Frontend is the value of map services. Its Key is for programs. SetFrontend sets it, and
	// Dump returns values without it.
	Frontend = abiFrontend
	// SlotRange is a range of map slots.
	SlotRange = abiSlotRange
	// Backend is an element of map backends.
	Backend = abiBackend
	// SockFlow is the socket storage of a connected socket.
	SockFlow = abiSockFlow
	// AffinityKey is the key of map affinity.
	AffinityKey = abiAffinityKey
	// AffinityValue is the value of map affinity.
	AffinityValue = abiAffinityValue
	// SourceRangeKey is the key of map sources.
	SourceRangeKey = abiSourceRangeKey
	// Meta is the one element of map meta.
	Meta = abiMetaValue
	// Device is the value of map devices.
	Device = abiDevice
)

// FrontendKind is the kind of a frontend's address (enum frontend_kind).
type FrontendKind uint8

// The kinds of frontend.
const (
	ClusterIP      = FrontendKind(abiFrontendKindFRONTEND_KIND_CLUSTER_IP)
	NodePort       = FrontendKind(abiFrontendKindFRONTEND_KIND_NODE_PORT)
	LoadBalancerIP = FrontendKind(abiFrontendKindFRONTEND_KIND_LOAD_BALANCER_IP)
	ExternalIP     = FrontendKind(abiFrontendKindFRONTEND_KIND_EXTERNAL_IP)
	UndefinedPort  = FrontendKind(abiFrontendKindFRONTEND_KIND_UNDEFINED_PORT)
)

// String returns the kind as the Service API spells it.
func (k FrontendKind) String() string {
	switch k {
	case ClusterIP:
		return "ClusterIP"
	case NodePort:
		return "NodePort"
	case LoadBalancerIP:
		return "LoadBalancerIP"
	case ExternalIP:
		return "ExternalIP"
	case UndefinedPort:
		return "UndefinedPort"
	}
	return fmt.Sprintf("FrontendKind(%d)", uint8(k))
}

// Flags of Frontend.Flags (enum frontend_flag).
const (
	InsideLocal  = uint16(abiFrontendFlagFRONTEND_FLAG_INSIDE_LOCAL)
	OutsideLocal = uint16(abiFrontendFlagFRONTEND_FLAG_OUTSIDE_LOCAL)
	Elsewhere    = uint16(abiFrontendFlagFRONTEND_FLAG_ELSEWHERE)
	SourceRanges = uint16(abiFrontendFlagFRONTEND_FLAG_SOURCE_RANGES)
)

// Flags of Backend.Flags (enum backend_flag).
const (
	ClusterSet  = uint8(abiBackendFlagBACKEND_FLAG_CLUSTER_SET)
	LocalSet    = uint8(abiBackendFlagBACKEND_FLAG_LOCAL_SET)
	OnNode      = uint8(abiBackendFlagBACKEND_FLAG_ON_NODE)
	Terminating = uint8(abiBackendFlagBACKEND_FLAG_TERMINATING)
	// Unready: the backend is in no set, but its connections may continue. Only TCP endpoints
	// have it.
	Unready = uint8(abiBackendFlagBACKEND_FLAG_UNREADY)
	// Renamed: the backend is in no set for a moment, because the name of its port changes.
	Renamed = uint8(abiBackendFlagBACKEND_FLAG_RENAMED)
)

// HostNetns is a flag of SetNodeAddr: the address takes node ports only from sockets of the
// node's own network namespace.
const HostNetns = addrHostNetns

// Name is a service port of one family: what a service id stands for.
type Name struct {
	Namespace, Name, Port string
	// Protocol is the IP protocol number.
	Protocol uint8
	// Family is 4 or 6.
	Family uint8
}

// String returns "namespace/name:port/PROTOCOL", as the command line shows it.
func (n Name) String() string {
	s := n.Namespace + "/" + n.Name
	if n.Port != "" {
		s += ":" + n.Port
	}
	return s + "/" + ProtocolName(n.Protocol)
}

// ProtocolName returns an IP protocol number as the Service API spells it; "ANY" for 0.
func ProtocolName(p uint8) string {
	switch p {
	case 0:
		return "ANY"
	case 6:
		return "TCP"
	case 17:
		return "UDP"
	}
	return fmt.Sprintf("%d", p)
}

// HostPort converts a port between network and host byte order.
func HostPort(be uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], be)
	return binary.BigEndian.Uint16(b[:])
}

// NewFrontendKey returns the key of an address and a port in host byte order. The unspecified
// address of a family with a port is the key of a node port.
func NewFrontendKey(a netip.Addr, port uint16, protocol uint8) FrontendKey {
	return FrontendKey{Addr: newAddr(a), Port: HostPort(port), Protocol: protocol}
}

// AddrPort returns the key's address, an IPv4-mapped one as IPv4, and its port in host byte
// order.
func (k FrontendKey) AddrPort() netip.AddrPort { return addrPort(k.Addr, k.Port) }

// String returns "address:port/PROTOCOL", or "*:port/PROTOCOL" for a node port.
func (k FrontendKey) String() string {
	ap := k.AddrPort()
	host := ap.String()
	if ap.Addr().IsUnspecified() {
		host = fmt.Sprintf("*:%d", ap.Port())
		if ap.Addr().Is6() {
			host = "[*]" + host[1:]
		}
	}
	return host + "/" + ProtocolName(k.Protocol)
}

// NewBackend returns an element of map backends.
func NewBackend(a netip.AddrPort, protocol, flags uint8, serviceID uint32) Backend {
	return Backend{Addr: newAddr(a.Addr()), Port: HostPort(a.Port()), Protocol: protocol,
		Flags: flags, ServiceId: serviceID}
}

// AddrPort returns the backend's address, an IPv4-mapped one as IPv4, and its port in host byte
// order.
func (b Backend) AddrPort() netip.AddrPort { return addrPort(b.Addr, b.Port) }

// Frontend returns the address and port that the socket was connected to, before translation.
func (f SockFlow) Frontend() netip.AddrPort { return addrPort(f.FrontendAddr, f.FrontendPort) }

// Backend returns the address and port of the backend that the socket is connected to.
func (f SockFlow) Backend() netip.AddrPort { return addrPort(f.BackendAddr, f.BackendPort) }

// NewSourceRangeKey returns the key of a source range of a service id. It masks the range.
func NewSourceRangeKey(serviceID uint32, p netip.Prefix) SourceRangeKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += v4Bits
	}
	p = p.Masked()
	return SourceRangeKey{PrefixBits: uint32(idBits + bits), ServiceId: serviceID, Addr: newAddr(p.Addr())}
}

// A prefix in map sources begins with the bits of the service id; an IPv4 range continues with
// those of ::ffff:0:0/96.
const idBits, v4Bits = 32, 96

// Prefix returns the key's range, or an invalid prefix if NewSourceRangeKey does not make such a
// key.
func (k SourceRangeKey) Prefix() netip.Prefix {
	a, bits := k.Addr.addr(), int(k.PrefixBits)-idBits
	if a.Is4() {
		bits -= v4Bits
	}
	p := netip.PrefixFrom(a, bits)
	if !p.IsValid() || p != p.Masked() {
		return netip.Prefix{}
	}
	return p
}

// String returns "PREFIX of service id N".
func (k SourceRangeKey) String() string {
	p := k.Prefix()
	if !p.IsValid() {
		return fmt.Sprintf("%s with %d bits of service id %d", k.Addr.addr(), k.PrefixBits, k.ServiceId)
	}
	return fmt.Sprintf("%s of service id %d", p, k.ServiceId)
}

// check returns an error for a key without a service id, or one that NewSourceRangeKey does not
// make: such an entry would admit clients outside of its range.
func (k SourceRangeKey) check() error {
	if !k.Prefix().IsValid() || k.ServiceId == 0 {
		return fmt.Errorf("add source range %s: no range of a service", k)
	}
	return nil
}

func newAddr(a netip.Addr) abiAddr { return abiAddr{B: a.As16()} }

func (a abiAddr) addr() netip.Addr { return netip.AddrFrom16(a.B).Unmap() }

func addrPort(a abiAddr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(a.addr(), HostPort(port))
}

func newServiceName(n Name) (abiServiceName, error) {
	v := abiServiceName{Protocol: n.Protocol, Family: n.Family}
	for _, f := range []struct {
		to   *[64]uint8
		what string
		s    string
	}{{&v.Namespace, "namespace", n.Namespace}, {&v.Name, "name", n.Name}, {&v.Port, "port name", n.Port}} {
		if len(f.s) >= len(f.to) {
			return v, fmt.Errorf("service %s: %s has %d characters, map names holds %d",
				n, f.what, len(f.s), len(f.to)-1)
		}
		copy(f.to[:], f.s)
	}
	return v, nil
}

func (v abiServiceName) name() Name {
	text := func(b [64]uint8) string { return strings.TrimRight(string(b[:]), "\x00") }
	return Name{Namespace: text(v.Namespace), Name: text(v.Name), Port: text(v.Port),
		Protocol: v.Protocol, Family: v.Family}
}
