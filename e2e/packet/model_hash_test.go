// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// pick returns the hash by which the programs choose for a packet (pkt_hash of pkt.h): of
// its addresses, ports and the node's secret.
func pick(src, dst end, proto uint8) uint32 {
	h := uint64(seed)
	for i := range 4 {
		h = mix(h, uint64(binary.NativeEndian.Uint32(src.addr[4*i:]))<<32|uint64(binary.NativeEndian.Uint32(dst.addr[4*i:])))
	}
	h = mix(h, uint64(network(src.port))<<32|uint64(network(dst.port))<<16|uint64(proto))
	return uint32(h >> 16)
}

func mix(h, word uint64) uint64 {
	h = (h ^ word) * 0x9e3779b97f4a7c15
	return h ^ h>>32
}

// network returns a port in network byte order, as an integer in memory.
func network(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}

// network32 returns an integer that is in network byte order in memory.
func network32(n uint32) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, n))
}
