// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"net"
	"net/netip"
)

// Listen listens at an address in the node's network namespace. The socket belongs to this
// process, outside the node's cgroup. With a listener that forwards connections, processes of
// the node can reach a server outside the lab.
func (n *Node) Listen(addr netip.AddrPort) (listener net.Listener, err error) {
	err = n.Do(func() (err error) {
		listener, err = net.Listen("tcp", addr.String())
		return err
	})
	return listener, err
}
