// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Offsets in an Ethernet frame.
const (
	etherSize = 14
	ip4Size   = 20
	ip6Size   = 40
	tcpSize   = 20
	udpSize   = 8
)

// floodTries bounds the flood: it ends early after floodTries send calls for each packet.
const floodTries = 4

func (a *agent) flood(ctx context.Context, args floodArgs) (int, error) {
	if args.Count <= 0 || args.Count > maxPackets {
		return 0, fmt.Errorf("%d packets: one to %d are possible", args.Count, maxPackets)
	}
	f, err := newFrame(args)
	if err != nil {
		return 0, err
	}
	device, err := net.InterfaceByName(args.Device)
	if err != nil {
		return 0, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // protocol 0: receives nothing
	if err != nil {
		return 0, failure("socket", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Ifindex: device.Index, Halen: 6}
	var stop atomic.Bool
	defer context.AfterFunc(ctx, func() { stop.Store(true) })()
	sent := 0
	for tries := 0; sent < args.Count && tries < floodTries*args.Count && !stop.Load(); tries++ {
		f.vary()
		switch err := unix.Sendto(fd, f.bytes, 0, to); {
		case err == nil:
			sent++
		case errors.Is(err, unix.ENOBUFS): // the device's queue is full until the receiver gets a CPU
			time.Sleep(time.Millisecond)
		case !errors.Is(err, unix.EINTR):
			return sent, failure("sendto", err)
		}
	}
	return sent, nil
}

// frame is one Ethernet frame whose source address and port vary.
type frame struct {
	args  floodArgs
	bytes []byte
	rand  *rand.Rand
	six   bool
	proto uint8
	l4    int // where the transport header begins
	check int // where its checksum is
}

func newFrame(args floodArgs) (*frame, error) {
	f := &frame{args: args, rand: rand.New(rand.NewPCG(rand.Uint64(), 0)), six: args.Dst.Addr().Is6()}
	if f.six != args.From.Addr().Is6() || len(args.MAC) != 6 || len(args.Own) != 6 {
		return nil, fmt.Errorf("from %v to %v by %v: no packet can be made of it", args.From, args.Dst, args.MAC)
	}
	f.bytes = append(append(f.bytes, args.MAC...), args.Own...)
	f.l4 = etherSize + ip4Size
	if f.six {
		f.l4 = etherSize + ip6Size
	}
	var l4 []byte
	switch args.Network {
	case "tcp":
		f.proto, f.check, l4 = unix.IPPROTO_TCP, f.l4+16, make([]byte, tcpSize)
		l4[12], l4[13] = tcpSize/4<<4, 2 // SYN
		binary.BigEndian.PutUint16(l4[14:], 65535)
	case "udp":
		f.proto, f.check, l4 = unix.IPPROTO_UDP, f.l4+6, append(make([]byte, udpSize), "flood\n"...)
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	default:
		return nil, fmt.Errorf("%q is no network: tcp or udp is", args.Network)
	}
	binary.BigEndian.PutUint16(l4[2:], args.Dst.Port())
	f.bytes = append(append(f.bytes, f.ipHeader(len(l4))...), l4...)
	return f, nil
}

// ipHeader returns the EtherType and the IP header.
func (f *frame) ipHeader(payload int) []byte {
	dst := f.args.Dst.Addr().AsSlice()
	if f.six {
		h := make([]byte, 2+ip6Size)
		binary.BigEndian.PutUint16(h, unix.ETH_P_IPV6)
		h[2], h[8], h[9] = 6<<4, f.proto, 64
		binary.BigEndian.PutUint16(h[6:], uint16(payload))
		copy(h[2+24:], dst)
		return h
	}
	h := make([]byte, 2+ip4Size)
	binary.BigEndian.PutUint16(h, unix.ETH_P_IP)
	h[2], h[10], h[11] = 4<<4|ip4Size/4, 64, f.proto
	binary.BigEndian.PutUint16(h[4:], uint16(ip4Size+payload))
	copy(h[2+16:], dst)
	return h
}

// vary writes a new random source into the frame and updates the checksums.
func (f *frame) vary() {
	ip := f.bytes[etherSize:f.l4]
	src, dst := ip[12:16], ip[16:20]
	if f.six {
		src, dst = ip[8:24], ip[24:40]
	}
	f.source(src)
	port := f.args.FromPort
	if port == 0 {
		port = uint16(1024 + f.rand.IntN(64511))
	}
	l4 := f.bytes[f.l4:]
	binary.BigEndian.PutUint16(l4, port)
	if f.proto == unix.IPPROTO_TCP {
		binary.BigEndian.PutUint32(l4[4:], f.rand.Uint32())
	}
	if !f.six {
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], fold(sum(ip)))
	}
	clear(f.bytes[f.check : f.check+2])
	check := fold(sum(src) + sum(dst) + uint32(f.proto) + uint32(len(l4)) + sum(l4))
	if check == 0 {
		check = 0xffff // over UDP, 0 means that there is no checksum
	}
	binary.BigEndian.PutUint16(f.bytes[f.check:], check)
}

// source writes a random address of the prefix args.From.
func (f *frame) source(to []byte) {
	var any [16]byte
	binary.BigEndian.PutUint64(any[:], f.rand.Uint64())
	binary.BigEndian.PutUint64(any[8:], f.rand.Uint64())
	copy(to, any[:])
	base := f.args.From.Masked().Addr().AsSlice()
	for bit := range f.args.From.Bits() {
		mask := byte(0x80) >> (bit % 8)
		to[bit/8] = to[bit/8]&^mask | base[bit/8]&mask
	}
}

// sum and fold compute the Internet checksum (RFC 1071).
func sum(b []byte) (s uint32) {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
