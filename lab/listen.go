// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"net"
	"net/netip"
)

// Listen listens at an address of the node's network namespace, in this process
// and so outside the node's cgroup: it lets what runs on the node reach something
// beyond the lab, where the listener passes connections on.
func (n *Node) Listen(addr netip.AddrPort) (listener net.Listener, err error) {
	err = n.Do(func() (err error) {
		listener, err = net.Listen("tcp", addr.String())
		return err
	})
	return listener, err
}
