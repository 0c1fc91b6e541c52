// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// Packets describes packets that a client sends without its own network stack. Each is a whole
// IP packet, in the form of the first packet of a connection. The destination need not be an
// address of the node that receives the packets.
type Packets struct {
	// Network is tcp (SYN without data) or udp (one request of the line protocol).
	Network string
	Dst     netip.AddrPort
	// From is the range of source addresses: each packet has a random one. A prefix of full
	// length is one address.
	From netip.Prefix
	// FromPort is the source port. 0 means a random one for each packet.
	FromPort uint16
	Count    int
}

type floodArgs struct {
	Packets
	Device   string
	MAC, Own net.HardwareAddr
}

// maxPackets bounds one call.
const maxPackets = 16 << 20

// Flood sends packets to a node as fast as possible, and returns the number of packets sent.
// The client must be on the wire.
func (p *Pod) Flood(ctx context.Context, to *Node, packets Packets) (sent int, err error) {
	args := floodArgs{Packets: packets, Device: "eth0"}
	if args.MAC, err = to.space.hardwareAddr("eth0"); err != nil {
		return 0, err
	}
	if args.Own, err = p.space.hardwareAddr("eth0"); err != nil {
		return 0, err
	}
	err = p.call(ctx, "flood", args, &sent)
	return sent, err
}

func (n *netns) hardwareAddr(device string) (net.HardwareAddr, error) {
	link, err := n.nl.LinkByName(device)
	if err != nil {
		return nil, fmt.Errorf("find %s in %s: %w", device, n.name, err)
	}
	return link.Attrs().HardwareAddr, nil
}
