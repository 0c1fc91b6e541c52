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
	REASON_MAX,
};
