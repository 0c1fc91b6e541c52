// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// Packets are what a client sends past its own stack: whole IP packets, each the
// first of a connection as far as anybody can tell, to a node that need not have
// the destination's address.
type Packets struct {
	// Network is tcp (SYN without data) or udp (a question of the line protocol).
	Network string
	Dst     netip.AddrPort
	// From holds the source addresses, of which each packet has one by chance; a
	// prefix of full length is one address.
	From netip.Prefix
	// FromPort is the source port; 0: one by chance.
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

// Flood sends packets to a node, as fast as it can, and gives how many were sent.
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
