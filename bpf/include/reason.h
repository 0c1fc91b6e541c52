// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* reason.h: why a program ended. Every run of every program ends with exactly one of these
 * reasons, which is counted in `counters` (hook.h). Lower-cased and without the prefix, it is the
 * metric's label and the command line's word. New ones go to the end: the numbers are part of the
 * pinned map.
 *
 * To refuse is to fail with ECONNREFUSED, or to answer a packet with a reset or an ICMP error. To
 * drop is to fail with EHOSTUNREACH, or to drop a packet. Before Linux 5.18 both fail with
 * EPERM. */
#pragma once

enum reason {
	REASON_UNSPEC,
	/* connect and sendmsg */
	REASON_PROTOCOL,          /* passed: neither TCP nor UDP; tc: nor ICMP, or a frame that is
				   * not addressed to this host */
	REASON_NO_FRONTEND,       /* passed: no service has this address and port */
	REASON_TRANSLATED,        /* to a backend chosen now */
	REASON_AFFINITY_KEPT,     /* to the client's backend, by session affinity */
	REASON_FLOW_KEPT,         /* to the backend that the flow has */
	REASON_UNRECORDED,        /* translated, but there was no memory to record the frontend */
	REASON_NO_ENDPOINT,       /* refused: no endpoint serves */
	REASON_NO_LOCAL_ENDPOINT, /* dropped: policy Local, and no endpoint on this node serves */
	REASON_UNDEFINED_PORT,    /* refused: a cluster IP's port that no service has */
	REASON_ENTRY_CHANGED,     /* refused, and packets dropped: the entry changed during each
				   * look-up */
	/* recvmsg */
	REASON_REPLY_RESTORED,    /* a backend's datagram, shown as the frontend's */
	REASON_REPLY_PASSED,      /* passed: not from a backend of this socket */
	/* getpeername */
	REASON_PEER_RESTORED,
	REASON_PEER_PASSED,
	/* tc: packets. The reasons above that are about a choice are used there, too. */
	REASON_MALFORMED,         /* passed: headers that are cut short or invalid */
	REASON_NO_FLOW,           /* passed: TCP to a frontend, not the first packet, and of no
				   * flow */
	REASON_LOCAL_FLOW,        /* passed: of a local flow; connect and sendmsg: an answer to a
				   * process of this node */
	REASON_EGRESS_PASSED,     /* passed: leaves, and is of no flow */
	REASON_SOURCE_KEPT,       /* passed: to a backend, and its source need not be translated */
	REASON_SOURCE_TRANSLATED, /* to a backend of another node, from the SNAT address */
	REASON_UNCONFIRMED,       /* as FLOW_KEPT, but map flows has no room for the flow */
	REASON_SOURCE_RANGE,      /* dropped: not in loadBalancerSourceRanges; connect and sendmsg
				   * too */
	REASON_FLOW_UNRECORDED,   /* dropped: no room for the flow */
	REASON_PORTS_EXHAUSTED,   /* dropped: no free SNAT port to the backend was found */
	REASON_NO_NODE_ADDRESS,   /* dropped: neither route nor device has an address for the
				   * source */
	REASON_FRAGMENT_UNKNOWN,  /* dropped: a later fragment to a frontend's address, of no known
				   * datagram or flow */
	REASON_FRAGMENT_PASSED,   /* passed: such a fragment to any other address or to the node's,
				   * or on egress */
	REASON_ICMP_TRANSLATED,   /* an error about a packet of a flow */
	REASON_ICMP_PASSED,       /* passed: ICMP that is no error about a packet of a flow */
	REASON_SOURCE_RESTORED,   /* a reply to a SNAT port, back to the client */
	REASON_FLOW_OVER,         /* dropped: a late packet of a flow that has ended, and whose port
				   * another flow has */
	REASON_WRITE_FAILED,      /* dropped: the packet could not be changed, or turned into an
				   * answer */
	/* connect, sendmsg and tc */
	REASON_UNALLOCATED,       /* dropped: in a service CIDR, and no service has the address */
	/* tc */
	REASON_ANSWER_WITHHELD,   /* dropped, not refused: the packet is a reset, or its source must
				   * not be answered */
	REASON_ANSWER_LIMITED,    /* dropped, not refused: this CPU has sent too many ICMP errors
				   * lately */
	REASON_CONNECTION_UNKNOWN, /* refused: as NO_FLOW, to an address that is not the node's,
				    * where nothing else translates connections */
	REASON_DIRECT_REMAPPED,   /* a direct connection to a backend, as a flow: another flow has,
				   * or had, the client's port there */
	/* connect and sendmsg */
	REASON_HOOK_CHECK,        /* refused: the daemon's hook check */
	REASON_SOURCE_UNKNOWN,    /* dropped: loadBalancerSourceRanges bind the address, and the
				   * socket's source address is not known */
	/* tc */
	REASON_COLLISION,         /* dropped: would collide with a flow at the backend, and no
				   * other port is free there */
	REASON_MAX,
};
