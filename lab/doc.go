// SPDX-License-Identifier: Apache-2.0

// Package lab makes nodes and pods out of network namespaces and cgroups, with
// real processes and real sockets in them, for tests, `shunt demo` and `shunt
// bench`. It owns everything it makes and removes it; it never touches the
// machine's own network and knows nothing of Services or eBPF. Start reading at
// Lab, then Node and Pod; what runs inside a pod is in agent.go.
//
// # Shape
//
// Every node is a network namespace with a cgroup (v2) of its own. Every pod is
// a namespace joined to its node by a veth pair, with a host route per pod on
// the node's side and a default route by the node (what the CNI plugin "ptp"
// and kindnet make), and a cgroup below its node's. The nodes' uplinks end in
// one bridge, in a namespace of its own: the wire. Outside clients sit on the
// wire too. Lab.Use makes it the bridge of a node instead, or VXLAN devices between
// nodes.
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
// The same in every lab, since no packet leaves it. <n> counts nodes, <p> the
// pods of a node (from 2), <c> outside clients (from 201); hexadecimal in IPv6.
//
//	node        192.168.100.<n>/24    fd00:192:168:100::<n>/64
//	client      192.168.100.<c>/24    fd00:192:168:100::<c>/64
//	the wire    192.168.100.254/24    fd00:192:168:100::fe/64    default route of nodes; leads nowhere
//	pods of n   10.244.<n>.0/24       fd00:10:244:<n>::/64
//	pod         10.244.<n>.<p>/32     fd00:10:244:<n>::<p>/128
//	node's end  10.244.<n>.1/32       fd00:10:244:<n>::1/128     of each of its pods' veth pairs; on a bridge /24 and /64
//	tunnel      10.244.<n>.0/32       fd00:10:244:<n>::/128      of flannel.1 and flannel-v6.1, with VXLAN
//	link        192.168.101.<n|c>/24  fd00:192:168:101::<n|c>/64 beside the wire, see Node.Link
//
// Addresses that a pod of every node may have at once, each node knowing its own
// only (Pod.AddAddr): 10.245.0.0/16.
//
// Reserved for services (nothing answers there by itself): 10.96.0.0/16 and
// fd00:10:96::/112 for cluster IPs, 198.51.100.0/24 and fd00:198:51:100::/112
// for load-balancer and external IPs.
//
// # The line protocol
//
// A server of a pod (Pod.Serve) reads one line, the token, and answers one line
// of four words, over TCP on a connection that stays open for more, over UDP in
// a datagram from the address that it was asked at:
//
//	TOKEN
//	TOKEN SERVER CLIENT-ADDRESS:PORT OWN-ADDRESS:PORT
//
// What begins with a zero byte is read and not answered (Pod.Pour).
//
// CLIENT is who the server saw, OWN where it was reached. An empty token comes
// back as "-". Over TCP, a token "!take N" is followed by N bytes of any kind, which
// the server reads before it answers, "!give N" by nothing: the server sends N bytes
// before its answer. TOKEN is then SUM/MTU: the CRC-32C of the bytes, in hexadecimal,
// and the path MTU that the server's kernel has for the connection.
package lab
