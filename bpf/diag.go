// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// diagID is struct inet_diag_sockid: a socket's ports, addresses, interface and cookie, in the
// layout that the kernel expects in a request.
type diagID [48]byte

func (id diagID) cookie() uint64 {
	low, high := binary.NativeEndian.Uint32(id[40:]), binary.NativeEndian.Uint32(id[44:])
	return uint64(high)<<32 | uint64(low)
}

// diagRequest is struct inet_diag_req_v2.
type diagRequest struct {
	family, protocol uint8
	states           uint32
	id               diagID
}

var _ nl.NetlinkRequestData = (*diagRequest)(nil)

// Len returns the structure's size in bytes.
func (r *diagRequest) Len() int { return 8 + len(r.id) }

// Serialize returns the request's bytes. Numbers are in host byte order.
func (r *diagRequest) Serialize() []byte {
	b := make([]byte, r.Len())
	b[0], b[1] = r.family, r.protocol
	binary.NativeEndian.PutUint32(b[4:], r.states)
	copy(b[8:], r.id[:])
	return b
}

// diagSocket is a connected socket.
type diagSocket struct {
	family uint8
	id     diagID
	// peer is the address that the kernel sends to, IPv4-mapped addresses as IPv4.
	peer netip.AddrPort
	// cgroup is the id of the cgroup that the socket was created in, or 0 if it is unknown.
	cgroup uint64
}

// parseDiag parses struct inet_diag_msg and its attributes.
func parseDiag(msg []byte) (diagSocket, bool) {
	if len(msg) < inetDiagMsgLength {
		return diagSocket{}, false
	}
	s := diagSocket{family: msg[0], id: diagID(msg[4:52])}
	s.peer = peerOf(s.family, s.id)
	eachAttr(msg[inetDiagMsgLength:], func(kind uint16, value []byte) {
		if kind == repCgroupID && len(value) >= 8 {
			s.cgroup = binary.NativeEndian.Uint64(value)
		}
	})
	return s, true
}

// peerOf returns the peer in a socket's id, which has ports and addresses in network byte order.
func peerOf(family uint8, id diagID) netip.AddrPort {
	port := binary.BigEndian.Uint16(id[2:])
	if family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(id[20:24])), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(id[20:36])).Unmap(), port)
}

// eachAttr calls visit for each netlink attribute (struct nlattr) in b.
func eachAttr(b []byte, visit func(kind uint16, value []byte)) {
	for len(b) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(b))
		if length < unix.SizeofNlAttr || length > len(b) {
			return
		}
		kind := binary.NativeEndian.Uint16(b[2:]) &^ uint16(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)
		visit(kind, b[unix.SizeofNlAttr:length])
		b = b[min(len(b), (length+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
	}
}

// cgroupsBelow returns the ids of a cgroup and of all cgroups below it. It leaves out those
// that are removed meanwhile.
func cgroupsBelow(root string) map[uint64]bool {
	ids := map[uint64]bool{}
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		if id, err := cgroupID(path); err == nil {
			ids[id] = true
		}
		return nil
	})
	return ids
}

// SOCK_DESTROY and the attributes of sock_diag (linux/sock_diag.h,
// linux/inet_diag.h) that the unix package does not have.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21

	repCgroupID       = 21 // INET_DIAG_CGROUP_ID, Linux 5.8
	stateEstablished  = 1
	inetDiagMsgLength = 72
)

// dumpUDP returns all connected UDP sockets of a family in the calling thread's network
// namespace.
func dumpUDP(family uint8) ([]diagSocket, error) {
	req := nl.NewNetlinkRequest(sockDiagByFamily, unix.NLM_F_DUMP)
	req.AddData(&diagRequest{family: family, protocol: unix.IPPROTO_UDP, states: 1 << stateEstablished})
	var sockets []diagSocket
	err := req.ExecuteIter(unix.NETLINK_SOCK_DIAG, sockDiagByFamily, func(msg []byte) bool {
		if sock, ok := parseDiag(msg); ok {
			sockets = append(sockets, sock)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list UDP sockets by sock_diag: %w", err)
	}
	return sockets, nil
}

func destroySocket(sock diagSocket, proto uint8) error {
	req := nl.NewNetlinkRequest(sockDestroy, unix.NLM_F_ACK)
	req.AddData(&diagRequest{family: sock.family, protocol: proto, states: ^uint32(0), id: sock.id})
	_, err := req.Execute(unix.NETLINK_SOCK_DIAG, 0)
	return err
}
