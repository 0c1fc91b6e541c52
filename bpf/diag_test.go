// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// diagMsg returns sock_diag's answer about one socket (linux/inet_diag.h).
func diagMsg(family uint8, local, peer netip.AddrPort, cgroup uint64) []byte {
	b := make([]byte, inetDiagMsgLength)
	b[0], b[1] = family, stateEstablished
	binary.BigEndian.PutUint16(b[4:], local.Port())
	binary.BigEndian.PutUint16(b[6:], peer.Port())
	copy(b[8:], wireAddr(family, local.Addr()))
	copy(b[24:], wireAddr(family, peer.Addr()))
	b = append(b, attr(8, []byte{1})...) // an attribute that parseDiag ignores, padded
	return append(b, attr(repCgroupID, binary.NativeEndian.AppendUint64(nil, cgroup))...)
}

func wireAddr(family uint8, a netip.Addr) []byte {
	if family == unix.AF_INET {
		return a.AsSlice()
	}
	b := a.As16()
	return b[:]
}

func attr(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

var (
	local4 = netip.MustParseAddrPort("10.244.1.4:40000")
	peer4  = netip.MustParseAddrPort("10.244.1.2:8080")
	local6 = netip.MustParseAddrPort("[fd00:10:244:1::4]:40000")
	peer6  = netip.MustParseAddrPort("[fd00:10:244:1::2]:8080")
)

func TestParseDiag(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name        string
		family      uint8
		local, peer netip.AddrPort
	}{
		{"IPv4", unix.AF_INET, local4, peer4},
		{"IPv6", unix.AF_INET6, local6, peer6},
		{"IPv4 on an IPv6 socket", unix.AF_INET6, local4, peer4},
	} {
		t.Run(test.name, func(t *testing.T) {
			msg := diagMsg(test.family, test.local, test.peer, 4711)
			s, ok := parseDiag(msg)
			if !ok || s.family != test.family || s.peer != test.peer || s.cgroup != 4711 {
				t.Errorf("%+v (%v), want a socket to %v of cgroup 4711", s, ok, test.peer)
			}
			if !slices.Equal(s.id[:], msg[4:52]) {
				t.Errorf("the kernel would be told of %x, it has %x", s.id, msg[4:52])
			}
			// Attributes that are cut off are missing; the others are still read correctly.
			for n := range msg {
				s, ok := parseDiag(msg[:n])
				if ok != (n >= inetDiagMsgLength) || ok && s.peer != test.peer || s.cgroup != 0 {
					t.Errorf("the first %d bytes: %+v (%v)", n, s, ok)
				}
			}
		})
	}
}

// staleBytes returns the iterator's output for one socket.
func staleBytes(raw sweepStaleSocket) []byte {
	return slices.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&raw)), unsafe.Sizeof(raw)))
}

// The iterator's output for a socket becomes the id by which sock_diag finds it.
func TestParseStale(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name        string
		family      uint8
		local, peer netip.AddrPort
	}{
		{"IPv4", unix.AF_INET, local4, peer4},
		{"IPv6", unix.AF_INET6, local6, peer6},
		{"IPv4 on an IPv6 socket", unix.AF_INET6, local4, peer4},
	} {
		t.Run(test.name, func(t *testing.T) {
			raw := sweepStaleSocket{Family: uint16(test.family), Protocol: unix.IPPROTO_UDP, Netns: 4026531840, Cookie: 0x123456789, Device: 7}
			raw.LocalPort, raw.PeerPort = networkOrder(test.local.Port()), networkOrder(test.peer.Port())
			raw.Local.B, raw.Peer.B = test.local.Addr().As16(), test.peer.Addr().As16()
			if test.family == unix.AF_INET { // an IPv4 address is in the last word alone
				clear(raw.Local.B[:12])
				clear(raw.Peer.B[:12])
			}
			data := append(staleBytes(raw), staleBytes(raw)...)
			all := parseStale(data[:len(data)-1]) // the second socket is cut off
			if len(all) != 1 {
				t.Fatalf("%d sockets, want 1", len(all))
			}
			s := all[0]
			if s.peer != test.peer || s.protocol != unix.IPPROTO_UDP || s.netns != 4026531840 || s.family != test.family {
				t.Errorf("%+v", s)
			}
			msg := diagMsg(test.family, test.local, test.peer, 0)
			if !slices.Equal(s.id[:36], msg[4:40]) {
				t.Errorf("ports and addresses %x, want %x", s.id[:36], msg[4:40])
			}
			if device := binary.NativeEndian.Uint32(s.id[36:]); device != 7 {
				t.Errorf("device %d, want 7", device)
			}
			if low := binary.NativeEndian.Uint32(s.id[40:]); low != 0x23456789 || s.id.cookie() != 0x123456789 {
				t.Errorf("cookie %#x, its first word %#x", s.id.cookie(), low)
			}
		})
	}
	t.Run("no cookie", func(t *testing.T) {
		s := newStaleSocket(&sweepStaleSocket{Family: unix.AF_INET6})
		if !slices.Equal(s.id[40:], []byte{255, 255, 255, 255, 255, 255, 255, 255}) {
			t.Errorf("cookie %x, want the one that fits every socket", s.id[40:])
		}
	})
}

func networkOrder(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}

// FuzzParse: any bytes are parsed without a panic and without reading past their end.
func FuzzParse(f *testing.F) {
	f.Add(diagMsg(unix.AF_INET, local4, peer4, 1))
	f.Add(diagMsg(unix.AF_INET6, local6, peer6, 1)[:inetDiagMsgLength+6])
	f.Add(staleBytes(sweepStaleSocket{Family: unix.AF_INET, Cookie: 1}))
	f.Add(attr(repCgroupID, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, ok := parseDiag(data); ok && (len(data) < inetDiagMsgLength || s.family != data[0]) {
			t.Errorf("%d bytes became %+v", len(data), s)
		}
		if n := len(parseStale(data)); n != len(data)/int(unsafe.Sizeof(sweepStaleSocket{})) {
			t.Errorf("%d bytes became %d sockets", len(data), n)
		}
		total := 0
		eachAttr(data, func(_ uint16, value []byte) { total += unix.SizeofNlAttr + len(value) })
		if total > len(data) {
			t.Errorf("attributes of %d bytes in %d bytes", total, len(data))
		}
	})
}
