// SPDX-License-Identifier: Apache-2.0

// Package lab creates nodes and pods from network namespaces and cgroups, with
// real processes and real sockets, for tests, `shunt demo` and `shunt bench`. It
// removes everything that it creates, does not change the machine's own network,
// and does not depend on Services or eBPF. Start reading at Lab, then Node and
// Pod; agent.go contains the process inside a pod.
//
// # Shape
//
// Every node is a network namespace with a cgroup (v2) of its own. Every pod is
// a namespace joined to its node by a veth pair, with a host route per pod on
// the node's side and a default route through the node (as the CNI plugin "ptp"
// and kindnet do), and a cgroup below its node's. The nodes' uplinks end in one
// bridge, in its own namespace: the wire. Outside clients are on the wire too.
// Lab.Use connects pods by a bridge per node instead, or nodes by VXLAN devices.
//
//	            shunt-lab-<id>/                       cgroups
//	┌ n1 ────────────┐ ┌ n2 ────────────┐
//	│ web-0   api-0  │ │ client         │ ┌ outside ┐
//	│  eth0    eth0  │ │  eth0          │ │         │
//	│   │       │    │ │   │            │ │         │
//	│ veth2   veth3  │ │ veth2          │ │         │
//	│      eth0      │ │      eth0      │ │  eth0   │
//	└───────┼────────┘ └───────┼────────┘ └────┼────┘
//	        └───────────── wire ───────────────┘
//
// # IP plan
//
// The plan is the same in every lab, since no packet leaves it. <n> is the number of
// a node, <p> of a node's pod (from 2), <c> of an outside client (from 201). They
// are hexadecimal in IPv6.
//
//	node        192.168.100.<n>/24    fd00:192:168:100::<n>/64
//	client      192.168.100.<c>/24    fd00:192:168:100::<c>/64
//	the wire    192.168.100.254/24    fd00:192:168:100::fe/64    default route of nodes; drops packets
//	pods of n   10.244.<n>.0/24       fd00:10:244:<n>::/64
//	pod         10.244.<n>.<p>/32     fd00:10:244:<n>::<p>/128
//	node's end  10.244.<n>.1/32       fd00:10:244:<n>::1/128     of each of its pods' veth pairs; on a bridge /24 and /64
//	tunnel      10.244.<n>.0/32       fd00:10:244:<n>::/128      of flannel.1 and flannel-v6.1, with VXLAN
//	link        192.168.101.<n|c>/24  fd00:192:168:101::<n|c>/64 beside the wire, see Node.Link
//
// Addresses that pods of several nodes may have at once, each node with a route to
// its own pod only (Pod.AddAddr): 10.245.0.0/16.
//
// Reserved for services (nothing answers there by itself): 10.96.0.0/16 and
// fd00:10:96::/112 for cluster IPs, 198.51.100.0/24 and fd00:198:51:100::/112
// for load-balancer and external IPs.
//
// # The line protocol
//
// A server of a pod (Pod.Serve) reads one line, the token, and answers with one line
// of four words: over TCP on a connection that remains open for more requests, over
// UDP in a datagram whose source is the destination address of the request:
//
//	TOKEN
//	TOKEN SERVER CLIENT-ADDRESS:PORT OWN-ADDRESS:PORT
//
// The server reads data that begins with a zero byte and does not answer (Pod.Pour).
//
// CLIENT is the source of the request as the server received it, OWN the destination.
// If the token is empty, the first word of the answer is "-". Over TCP, a client that
// sends the token "!take N" then sends N bytes, which the server reads before it
// answers; after "!give N" the server sends N bytes before its answer. The first word
// of these answers is SUM/MTU: the CRC-32C of the bytes, in hexadecimal, and the
// server's path MTU for the connection.
package lab
