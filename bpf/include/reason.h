// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* reason.h: why a program ended. Every run of every program ends by exactly one
 * of these, counted in `counters` (hook.h); lower-cased and without the prefix it
 * is the metric's label and the command line's word. New ones go to the end: the
 * numbers are part of the pinned map. */
#pragma once

enum reason {
	REASON_UNSPEC,
	/* connect and sendmsg */
	REASON_PROTOCOL,          /* neither TCP nor UDP: not ours */
	REASON_NO_FRONTEND,       /* no service has this address: not ours */
	REASON_TRANSLATED,        /* to a backend chosen now */
	REASON_AFFINITY_KEPT,     /* to the client's backend, by session affinity */
	REASON_FLOW_KEPT,         /* to where this socket's flow goes */
	REASON_UNRECORDED,        /* translated, but no memory to remember the frontend */
	REASON_NO_ENDPOINT,       /* refused: nobody serves */
	REASON_NO_LOCAL_ENDPOINT, /* dropped: policy Local, and nobody here serves */
	REASON_UNDEFINED_PORT,    /* refused: a cluster IP's port that no service has */
	REASON_ENTRY_CHANGED,     /* refused: the entry changed under each of our look-ups */
	/* recvmsg */
	REASON_REPLY_RESTORED,    /* a backend's datagram, shown as the frontend's */
	REASON_REPLY_PASSED,      /* not from a backend of this socket: shown as it is */
	/* getpeername */
	REASON_PEER_RESTORED,
	REASON_PEER_PASSED,
	/* tc: packets. Those above that are about a choice are used there, too. */
	REASON_MALFORMED,         /* passed: headers that are cut short or make no sense */
	REASON_NO_FLOW,           /* passed: TCP to a frontend, not the first packet, and of no flow */
	REASON_OWN_FLOW,          /* passed: an answer to a socket of this node; sendmsg too */
	REASON_EGRESS_PASSED,     /* passed: leaves, and is of no flow */
	REASON_SOURCE_KEPT,       /* passed: to a backend, and needs no other source */
	REASON_SOURCE_TRANSLATED, /* to a backend of another node, from an address of this one */
	REASON_UNCONFIRMED,       /* as FLOW_KEPT, but map flows has no room for the flow */
	REASON_SOURCE_RANGE,      /* dropped: not in loadBalancerSourceRanges; connect and sendmsg too */
	REASON_FLOW_UNRECORDED,   /* dropped: no memory for the flow */
	REASON_PORTS_EXHAUSTED,   /* dropped: no free source port to the backend was found */
	REASON_NO_NODE_ADDRESS,   /* dropped: the device has no address to be the source */
	REASON_FRAGMENT_UNKNOWN,  /* dropped: to a frontend's address, before the first piece */
	REASON_FRAGMENT_PASSED,   /* passed: a piece of nothing that is ours */
	REASON_ICMP_TRANSLATED,   /* an error about a packet of a flow */
	REASON_ICMP_PASSED,       /* passed: ICMP that is about no flow */
	REASON_SOURCE_RESTORED,   /* a reply from another node, back to the client's address */
	REASON_FLOW_OVER,         /* dropped: late, of a flow that has ended and whose port another has */
	REASON_WRITE_FAILED,      /* dropped: the packet could not be changed, or made an answer of */
	/* connect, sendmsg and tc */
	REASON_UNALLOCATED,       /* dropped: in a service CIDR, and no service has the address */
	/* tc */
	REASON_ANSWER_WITHHELD,   /* dropped: refused, but a reset or from no host's address */
	REASON_ANSWER_LIMITED,    /* dropped: refused, but too many ICMP errors were sent lately */
	REASON_CONNECTION_UNKNOWN, /* refused: as NO_FLOW, to an address that is not the node's, and
				    * nobody else translates connections here */
	REASON_DIRECT_DISPLACED,  /* to a backend itself, from another port: a flow has the client's */
	/* connect and sendmsg */
	REASON_PROBE,             /* refused: the daemon's own question whether the hooks act */
	REASON_SOURCE_UNKNOWN,    /* dropped: loadBalancerSourceRanges bind the address, and which source
				   * address the socket would have is not known */
	REASON_MAX,
};
