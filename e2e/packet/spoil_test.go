// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
)

// spoil damages a packet, as an attacker or a fault might.
func (d *dice) spoil(b []byte) []byte {
	b = bytes.Clone(b)
	switch d.IntN(4) {
	case 0:
		return b[:d.IntN(len(b)+1)]
	case 1: // in the headers
		for range 1 + d.IntN(3) {
			b[d.IntN(min(len(b), 64))] = byte(d.Uint32())
		}
	case 2: // a checksum, a length or the like with an extreme value
		i := d.IntN(min(len(b), 64)-1) &^ 1
		binary.BigEndian.PutUint16(b[i:], []uint16{0, 0xffff}[d.IntN(2)])
	default:
		b = append(b, make([]byte, d.IntN(20))...)
	}
	return b
}
