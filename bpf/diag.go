package bpf

import (
	"encoding/binary"
	"io/fs"
	"net/netip"
	"path/filepath"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"shunt/maps"
)

// diagID is struct inet_diag_sockid: ports, addresses, interface and cookie of a
// socket, as the kernel wants them back.
type diagID [48]byte

// diagRequest is struct inet_diag_req_v2.
type diagRequest struct {
	family, protocol uint8
	states           uint32
	id               diagID
}

var _ nl.NetlinkRequestData = (*diagRequest)(nil)

// Len is the structure's size.
func (r *diagRequest) Len() int { return 8 + len(r.id) }

// Serialize lays the request out; numbers are in the machine's order.
func (r *diagRequest) Serialize() []byte {
	b := make([]byte, r.Len())
	b[0], b[1] = r.family, r.protocol
	binary.NativeEndian.PutUint32(b[4:], r.states)
	copy(b[8:], r.id[:])
	return b
}

// diagSocket is what a dump says of one socket.
type diagSocket struct {
	family uint8
	id     diagID
	// peer is the address that the kernel sends to, unmapped.
	peer netip.AddrPort
	// cgroup is the id of the cgroup that the socket was made in; 0: unknown.
	cgroup uint64
	// flow is what sock_peer holds for it, nil: nothing.
	flow *maps.SockFlow
}

// parseDiag reads struct inet_diag_msg and its attributes.
func parseDiag(msg []byte) (diagSocket, bool) {
	if len(msg) < inetDiagMsgLength {
		return diagSocket{}, false
	}
	s := diagSocket{family: msg[0]}
	copy(s.id[:], msg[4:])
	port := binary.BigEndian.Uint16(msg[6:])
	if s.family == unix.AF_INET {
		s.peer = netip.AddrPortFrom(netip.AddrFrom4([4]byte(msg[24:28])), port)
	} else {
		s.peer = netip.AddrPortFrom(netip.AddrFrom16([16]byte(msg[24:40])).Unmap(), port)
	}
	eachAttr(msg[inetDiagMsgLength:], func(kind uint16, value []byte) {
		switch {
		case kind == repCgroupID && len(value) >= 8:
			s.cgroup = binary.NativeEndian.Uint64(value)
		case kind == repSkBPFStorages:
			s.flow = parseStorages(value)
		}
	})
	return s, true
}

// parseStorages finds the value of the one map that was asked for.
func parseStorages(b []byte) *maps.SockFlow {
	var flow *maps.SockFlow
	eachAttr(b, func(kind uint16, storage []byte) {
		if kind != repStorage {
			return
		}
		eachAttr(storage, func(kind uint16, value []byte) {
			if kind == repStorageMapVal && len(value) >= int(unsafe.Sizeof(maps.SockFlow{})) {
				flow = new(maps.SockFlow)
				copy(unsafe.Slice((*byte)(unsafe.Pointer(flow)), unsafe.Sizeof(*flow)), value)
			}
		})
	})
	return flow
}

// eachAttr goes through netlink attributes (struct nlattr).
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

// cgroupsBelow gives the ids of a cgroup and of all below it. One that goes away
// meanwhile is left out.
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
