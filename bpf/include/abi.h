// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* abi.h: the types that maps share with user space.
 *
 * Byte order: addresses and ports are in network order, everything else is in the machine's,
 * unless its comment says otherwise. Every layout is asserted here; the Go types are generated
 * from this file (maps/abi_bpfel.go). SHUNT_ABI goes up whenever a daemon could no longer work
 * with the maps that an older one left. The daemon then makes new maps beside them and switches. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#define SHUNT_ABI 4

/* An IPv6 address, or an IPv4 one as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2). With one form there is
 * one code path and one set of maps for both families. */
struct addr {
	__u8 b[16];
} __attribute__((aligned(4)));
_Static_assert(sizeof(struct addr) == 16, "struct addr");

/* Key of `services`: a frontend. Two shapes:
 *   address, port, protocol   a cluster IP, external IP or load-balancer IP
 *   any,     port, protocol   a node port: `any` is :: or ::ffff:0.0.0.0 */
struct frontend_key {
	struct addr addr;
	__be16 port;
	__u8 protocol; /* IPPROTO_TCP, IPPROTO_UDP */
	__u8 pad;
};
_Static_assert(sizeof(struct frontend_key) == 20, "struct frontend_key");

enum frontend_kind {
	FRONTEND_KIND_UNSPEC,
	FRONTEND_KIND_CLUSTER_IP,
	FRONTEND_KIND_NODE_PORT,
	FRONTEND_KIND_LOAD_BALANCER_IP,
	FRONTEND_KIND_EXTERNAL_IP,
	/* All ports of a cluster IP that no service has: they are refused. They have no entry in
	 * `services`, but the cluster IP has a flag in `addrs`. */
	FRONTEND_KIND_UNDEFINED_PORT,
};

enum frontend_flag {
	FRONTEND_FLAG_INSIDE_LOCAL = 1, /* `inside` holds endpoints of this node only */
	FRONTEND_FLAG_OUTSIDE_LOCAL = 2, /* `outside` holds endpoints of this node only */
	FRONTEND_FLAG_ELSEWHERE = 4,    /* usable endpoints exist, here or elsewhere: where a Local
					 * range is empty, drop, don't refuse */
	FRONTEND_FLAG_SOURCE_RANGES = 8, /* only clients in a source range */
};

/* `count` slots from `base` on. */
struct slot_range {
	__u32 base;
	__u32 count;
};

/* Value of `services`: one frontend of a service port. */
struct frontend {
	struct frontend_key key; /* compared last: the entry may be reused while it is read */
	__u32 id;               /* service id: of the service port and family, never 0 */
	__u32 affinity_seconds; /* 0: no session affinity */
	struct slot_range inside;  /* for clients on this node, and packets from cluster CIDRs */
	struct slot_range outside; /* for all other packets */
	__u16 flags;            /* enum frontend_flag */
	__u8 kind;              /* enum frontend_kind */
	__u8 pad;
};
_Static_assert(sizeof(struct frontend) == 48, "struct frontend");

enum backend_flag {
	BACKEND_FLAG_CLUSTER_SET = 1, /* in the cluster set: new connections with policy Cluster
				       * may take it */
	BACKEND_FLAG_LOCAL_SET = 2,   /* in the local set: those with policy Local may */
	BACKEND_FLAG_ON_NODE = 4,     /* the endpoint is on this node */
	BACKEND_FLAG_TERMINATING = 8,
	BACKEND_FLAG_UNREADY = 16,    /* TCP: gets no new connections. Its established connections
				       * remain */
	BACKEND_FLAG_RENAMED = 32,    /* serves under the name of another port: in no set, for a
				       * moment */
};

/* Element of `backends`, one per endpoint of a service port. With service_id 0 the record is free,
 * and a reader that still has its id must choose again. */
struct backend {
	struct addr addr;
	__be16 port;
	__u8 protocol;
	__u8 flags; /* enum backend_flag */
	__u32 service_id;
};
_Static_assert(sizeof(struct backend) == 24, "struct backend");

/* One flow of a socket: the frontend that its process sends to, and the backend that the frontend
 * was translated to. */
struct sock_flow {
	struct addr frontend_addr;
	struct addr backend_addr;
	__be16 frontend_port;
	__be16 backend_port;
	__u32 backend_id;
	__u32 service_id;
	__u32 used; /* sock_flows.clock at its last use; 0: the record is free */
};
_Static_assert(sizeof(struct sock_flow) == 48, "struct sock_flow");

/* How many flows of an unconnected UDP socket are recorded at once, so that the process sees the
 * frontend as the sender of every reply. */
#define SOCK_FLOWS 16

struct sock_flows {
	struct bpf_spin_lock lock; /* two threads may send on one socket */
	__u32 clock; /* counts uses */
	__u32 hand;  /* where the search for a flow to replace stopped */
	__u32 pad;
	struct sock_flow flow[SOCK_FLOWS];
};
_Static_assert(sizeof(struct sock_flows) == 16 + SOCK_FLOWS * 48, "struct sock_flows");

/* Key of `local_ports`: source port and destination port of a datagram that a socket of the node's
 * own network namespace sent. Where a socket received such a datagram, a second entry has the
 * cookie of that socket's network namespace: answers are accepted only from sockets there. */
struct local_port_key {
	__u64 netns;  /* cookie of the receiver's network namespace; 0: noted when the datagram was
		       * sent */
	__be16 own;   /* the sender's, which is the number of a node port too */
	__be16 other; /* the destination's */
	__u32 pad;
};
_Static_assert(sizeof(struct local_port_key) == 16, "struct local_port_key");

/* Key of `affinity`. For a client on this node, `client` is 8 zero bytes and the cookie of the
 * client's network namespace: the cookie's upper half comes first, and each half is in the
 * machine's order. For a client outside, `client` is its address. The two cannot be confused. ::/64
 * contains one IPv6 address of a host, ::1, which no packet from outside can have. It also contains
 * the IPv4 addresses (::ffff:a.b.c.d), but ::ffff would be the upper half of a cookie, and the
 * kernel counts cookies from 1. */
struct affinity_key {
	__u32 service_id;
	struct addr client;
};
_Static_assert(sizeof(struct affinity_key) == 20, "struct affinity_key");

struct affinity_value {
	__u64 last_used; /* ns, CLOCK_MONOTONIC */
	__u32 backend_id;
	__u32 pad;
};
_Static_assert(sizeof(struct affinity_value) == 16, "struct affinity_value");

/* Key of `sources`: source ranges (loadBalancerSourceRanges) of a service port. Service id 0,
 * which no service has, stands for the service CIDRs. */
struct source_range_key {
	__u32 prefix_bits; /* 32 (service_id), plus the prefix length of the range; 96 more for
			    * IPv4 */
	__u32 service_id;
	struct addr addr;
};
_Static_assert(sizeof(struct source_range_key) == 24, "struct source_range_key");

/* Key of `client_addrs`: a network namespace, and one of
 *
 *   ::, or ::ffff:0.0.0.0   if the namespace has only one address of that family
 *   an address              of the namespace
 *   a frontend's address    with source ranges, if the namespace has several addresses
 *
 * The value is the source address of packets from sockets of the namespace. In this order: the only
 * address; the address itself; the address that the kernel chooses for that destination. */
struct client_key {
	__u64 netns; /* cookie of the network namespace */
	struct addr addr;
};
_Static_assert(sizeof(struct client_key) == 24, "struct client_key");

struct client_addr {
	__u64 netns; /* compared last: the entry may be reused while it is read */
	struct addr addr;
};
_Static_assert(sizeof(struct client_addr) == 24, "struct client_addr");

/* The flows of the packet path. A client sends to a frontend. Between the ingress and the egress
 * program the same packets are between `client`, with inner_port, and `backend`. On the network to
 * a backend of another node they are between `snat`, with snat_port (SNAT address and SNAT port),
 * and `backend`. So a flow has entries with these keys:
 *
 *   FLOW_KEY_IN   for packets as they arrive: client → frontend, and with SNAT also
 *                 backend → snat. Source and destination are the packet's.
 *   FLOW_KEY_OUT  for packets of both directions as they leave the stack: between
 *                 client with inner_port, and backend. The lower of the two ends,
 *                 byte by byte and then by port, is src.
 *
 * Every entry contains the whole flow, so that a lost entry is made again from another one. */
enum flow_key_kind {
	FLOW_KEY_UNSPEC,
	FLOW_KEY_IN,
	FLOW_KEY_OUT,
};

struct flow_key {
	struct addr src, dst;
	__be16 sport, dport;
	__u8 protocol;
	__u8 kind; /* enum flow_key_kind */
	__u16 pad;
};
_Static_assert(sizeof(struct flow_key) == 40, "struct flow_key");

enum flow_flag {
	FLOW_FLAG_SNAT = 1,      /* SNAT: to the backend, the source becomes snat:snat_port */
	FLOW_FLAG_CONFIRMED = 2, /* the client has answered the backend; in `flows`, not in
				  * `flows_new` */
	FLOW_FLAG_LOCAL = 4,     /* a local flow: of a socket of this node, or of a client that its
				  * netfilter masquerades. It is not translated. client is the
				  * other host, frontend this node's end */
	FLOW_FLAG_REMAPPED = 8,  /* a local flow that is remapped, as its port is another flow's
				  * SNAT port. client is this node's end, frontend and backend are
				  * the other host */
	FLOW_FLAG_DIRECT = 16,   /* a direct connection, frontend is backend: another flow has, or
				  * had, the client's port there */
};

/* What one side of a flow has sent. Each side has its own byte, and a byte without a change is not
 * written. So two CPUs can note packets of both directions at once. */
enum flow_said {
	FLOW_SAID_FIN = 1,       /* a FIN */
	FLOW_SAID_FIN_LATER = 2, /* with FIN: it came after the other side's FIN */
	FLOW_SAID_RST = 4,
	FLOW_SAID_ANYTHING = 8,  /* of the backend: any packet */
	FLOW_SAID_SYN = 16,      /* of the client: a SYN after a FIN of either side, and nothing
				  * else since */
	FLOW_SAID_ASKED = 32,    /* of the client: a SYN on a confirmed flow, and no answer of the
				  * backend since */
	FLOW_SAID_ASKED_AGAIN = 64, /* and another SYN, FLOW_ANSWER or more after that */
};

/* Sequence number and acknowledged number of a side's last packet that was no reset. Zero: not
 * known. Aligned, so that both are copied at once. */
struct tcp_point {
	__be32 seq, ack;
} __attribute__((aligned(8)));

/* Value of `flows` and `flows_new`. */
struct flow {
	struct addr client, frontend, backend;
	struct addr snat;          /* SNAT address; zero until it is chosen */
	__be16 client_port, frontend_port, backend_port;
	__be16 inner_port;         /* the client's port between the two programs: client_port,
				    * unless two flows would collide at the backend */
	__be16 snat_port;          /* SNAT port; 0 until it is chosen */
	__u8 protocol;
	__u8 flags;                /* enum flow_flag */
	__u32 service_id;
	__u32 backend_id;
	__u8 client_said, backend_said; /* enum flow_said */
	__u16 pad;
	__u64 used;                /* ns, CLOCK_MONOTONIC, to within FLOW_TOUCH */
	/* TCP. Every packet writes the numbers of its side, but only in the entry by which the
	 * packet is found. They are not copied with the other fields (flow_copy). */
	struct tcp_point client_at, backend_at;
};
_Static_assert(sizeof(struct flow) == 112, "struct flow");

/* How long notes without a configured timeout are valid, in seconds. */
enum note_age {
	NOTE_AGE_FRAGMENT = 31,    /* a second longer than Linux waits for the missing fragments of
				    * an IPv4 datagram. No longer, as ids are reused */
	NOTE_AGE_LOCAL_PORT = 120, /* after the last datagram of either direction, as for UDP in
				    * `flows` */
};

/* Key of `fragments`: a datagram in fragments (RFC 791; RFC 8200 4.5, where the protocol is no
 * part of the key). `egress` is the hook: both hooks see the fragments, with different
 * addresses. */
struct fragment_key {
	struct addr src, dst;
	__u32 id; /* network order; of IPv4 in the last two bytes */
	__u8 protocol; /* IPv4's; 0 for IPv6 */
	__u8 egress;
	__u16 pad;
};
_Static_assert(sizeof(struct fragment_key) == 40, "struct fragment_key");

/* Value of `fragments`: what only the first fragment has. */
struct fragment {
	__be16 sport, dport;
	__u8 protocol;
	__u8 pad[3];
	__u64 noted; /* ns, CLOCK_MONOTONIC */
};
_Static_assert(sizeof(struct fragment) == 16, "struct fragment");

enum device_flag {
	DEVICE_FLAG_RESETS = 1, /* neither conntrack nor IPVS translates connections to frontends.
				 * So TCP to a frontend, after the SYN and of no flow, belongs to no
				 * connection of this node */
};

/* Value of `devices`, by interface index: the source addresses of packets that leave there. Zero:
 * the device has no address of that family. */
struct device {
	struct addr addr4, addr6;
	__u32 flags; /* enum device_flag */
};
_Static_assert(sizeof(struct device) == 36, "struct device");

enum addr_flag {
	ADDR_FLAG_FRONTEND = 1,   /* frontends have this address */
	ADDR_FLAG_CLUSTER_IP = 2, /* a cluster IP: ports that no service has are refused */
	ADDR_FLAG_NODE_PORTS = 4, /* an address of this node that takes node ports */
	ADDR_FLAG_HOST_NETNS = 8, /* with NODE_PORTS: only for sockets of the node's own network
				   * namespace, as each pod has a loopback of its own */
	ADDR_FLAG_BACKEND = 16,   /* backends have this address, or had it lately */
	ADDR_FLAG_HOOK_CHECK = 32, /* hook check: the daemon connects to this cluster IP to see
				   * whether the hooks act. Its refusals have a reason of their
				   * own */
};

/* Value of `addrs`. */
struct addr_info {
	__u32 flags; /* enum addr_flag */
};

/* Value of `names`: what a service id stands for. A new daemon adopts ids by name, and the command
 * line has names without a daemon. Zero-padded. The lengths are those that the API allows (RFC
 * 1123 labels). */
struct service_name {
	__u8 namespace[64];
	__u8 name[64];
	__u8 port[64];
	__u8 protocol;
	__u8 family; /* 4 or 6 */
	__u8 pad[2];
};
_Static_assert(sizeof(struct service_name) == 196, "struct service_name");

/* Element 0 of `meta`: the state of the daemon, for `shunt status`, and of the maps as a whole,
 * for the programs. */
struct meta_value {
	__u32 abi;      /* SHUNT_ABI */
	__u32 pid;      /* in the daemon's pid namespace */
	__s64 started;  /* ns, Unix time */
	__s64 synced;   /* ns, Unix time, of the last reconcile that left nothing to do; 0: none */
	__u32 pending;  /* services with a change that is not in the maps yet */
	__u32 service_cidrs; /* service CIDRs in `sources`; programs search it for them only if
			      * there are any */
	__u32 problems; /* how many there are; `problems` holds the first of them */
	__u32 problems_version; /* odd while `problems` is written */
	/* ns, CLOCK_MONOTONIC. Programs write them, and search a map only if it can have an entry
	 * that is new enough. The last two are precise to a second. */
	__u64 direct;          /* when a TCP flow with FLOW_FLAG_DIRECT last began */
	__u64 direct_noted;    /* when an entry of `directs` was last written */
	__u64 local_port_noted; /* when an entry of `local_ports` was last written */
};
_Static_assert(sizeof(struct meta_value) == 64, "struct meta_value");

enum problem_kind {
	PROBLEM_KIND_NONE,
	PROBLEM_KIND_CONFLICT, /* another service has the frontend */
	PROBLEM_KIND_CUT,      /* the service asks for more frontends than it may have */
	PROBLEM_KIND_NO_ROOM,  /* a map is full */
	PROBLEM_KIND_FAILED,   /* a write to a map failed for another reason */
	PROBLEM_KIND_REFUSED,  /* the frontend is one that is never programmed */
};

/* Value of `problems`: a service that is not served as its object asks. No program reads it: it is
 * for `shunt status` after the daemon has died. */
struct problem {
	struct service_name service; /* port, protocol and family are zero if the problem is not of
				      * one port */
	struct service_name owner;   /* of a conflict: namespace and name of the service that has
				      * the frontend */
	struct frontend_key frontend; /* zero if the problem is not of one frontend */
	__u8 kind; /* enum problem_kind; PROBLEM_KIND_NONE: the element is not used */
	__u8 pad[3];
	__u32 attempts;
	__u32 more; /* problems of this service that have no element */
	__s64 since; /* ns, Unix time */
	__u8 text[256]; /* zero-padded, cut */
};
_Static_assert(sizeof(struct problem) == 688, "struct problem");
