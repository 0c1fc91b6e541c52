// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* abi.h: the types that maps share with user space.
 *
 * Byte order: an address or a port is in network order, everything else in the
 * machine's. Every layout is asserted here; Go's side of it is generated from
 * this file (maps/abi_bpfel.go). SHUNT_ABI goes up whenever a daemon could no
 * longer work with the maps that an older one left: it then builds new ones
 * beside them and switches.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#define SHUNT_ABI 4

/* An IPv6 address, or an IPv4 one as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2): one
 * form, so that there is one code path and one set of maps for both families. */
struct addr {
	__u8 b[16];
} __attribute__((aligned(4)));
_Static_assert(sizeof(struct addr) == 16, "struct addr");

/* Key of `services`. Two shapes:
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
	/* A cluster IP as a whole, of which the ports that no service has are refused.
	 * It has no entry in `services` but a flag in `addrs`. */
	FRONTEND_KIND_UNDEFINED_PORT,
};

enum service_flag {
	SERVICE_FLAG_INSIDE_LOCAL = 1,  /* `inside` holds endpoints of this node only */
	SERVICE_FLAG_OUTSIDE_LOCAL = 2, /* `outside` does */
	SERVICE_FLAG_ELSEWHERE = 4,     /* usable endpoints exist, here or elsewhere:
					 * where a Local range is empty, drop, don't refuse */
	SERVICE_FLAG_SOURCE_RANGES = 8, /* only clients that `sources` has */
};

/* `count` slots from `base` on. */
struct slot_range {
	__u32 base;
	__u32 count;
};

/* Value of `services`: one frontend of a service port. */
struct service {
	struct frontend_key key; /* the entry's own: it may be another's by the time that it is read */
	__u32 id;               /* of the service port and family, never 0 */
	__u32 affinity_seconds; /* 0: no session affinity */
	struct slot_range inside;  /* for clients on this node */
	struct slot_range outside; /* for packets from a network */
	__u16 flags;            /* enum service_flag */
	__u8 kind;              /* enum frontend_kind */
	__u8 pad;
};
_Static_assert(sizeof(struct service) == 48, "struct service");

enum backend_flag {
	BACKEND_FLAG_CLUSTER_SET = 1, /* new connections may take it: cluster set */
	BACKEND_FLAG_LOCAL_SET = 2,   /* the same: local set */
	BACKEND_FLAG_ON_NODE = 4,     /* the endpoint is on this node */
	BACKEND_FLAG_TERMINATING = 8,
	BACKEND_FLAG_UNREADY = 16,    /* of TCP: serves nobody, but is not gone: connections go on */
	BACKEND_FLAG_RENAMED = 32,    /* serves, under the name of another port: in no set, for a
				       * moment */
};

/* Element of `backends`, one per endpoint of a service port. service_id 0: the
 * record is free, and whoever still names its id must choose again. */
struct backend {
	struct addr addr;
	__be16 port;
	__u8 protocol;
	__u8 flags; /* enum backend_flag */
	__u32 service_id;
};
_Static_assert(sizeof(struct backend) == 24, "struct backend");

/* One flow of a socket: what the program that owns it called its peer, and
 * what that was translated to. */
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

/* How many services one unconnected UDP socket can speak to at once and still
 * have every reply come from the address that it wrote to. */
#define SOCK_FLOWS 16

struct sock_flows {
	struct bpf_spin_lock lock; /* two threads may send on one socket */
	__u32 clock; /* counts uses */
	__u32 hand;  /* where the last flow that had to go was looked for */
	__u32 pad;
	struct sock_flow flow[SOCK_FLOWS];
};
_Static_assert(sizeof(struct sock_flows) == 16 + SOCK_FLOWS * 48, "struct sock_flows");

/* Key of `own_ports`: the two ports of a datagram from a socket in the node's own network
 * namespace. */
struct own_port_key {
	__be16 own;   /* the socket's, which is a node port's number too */
	__be16 other; /* of who it was sent to */
};
_Static_assert(sizeof(struct own_port_key) == 4, "struct own_port_key");

/* Key of `affinity`. A client of this node is its network namespace's cookie
 * in the last 8 bytes, machine order, after 8 zero bytes; one from outside is
 * its address. No host has an address below ::/64 but ::1, which no packet from
 * outside can carry: the two can't be mistaken for one another. */
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

/* Key of `sources`: loadBalancerSourceRanges of a service port, and, with service
 * id 0, which is nobody's, the service CIDRs. */
struct source_key {
	__u32 prefix_bits; /* 32 for service_id and those of the range, as of an IPv6 one */
	__u32 service_id;
	struct addr addr;
};
_Static_assert(sizeof(struct source_key) == 24, "struct source_key");

/* Key of `client_addrs`: a network namespace, and
 *
 *   the address of a family that it has only one of   :: or ::ffff:0.0.0.0
 *   an address that it has                             that address
 *   an address that source ranges bind                 that address, where it has several
 *
 * The value is what sockets there have for their source: the only address, the address itself,
 * or the one that the kernel chooses for packets to there. */
struct client_key {
	__u64 netns; /* its cookie */
	struct addr addr;
};
_Static_assert(sizeof(struct client_key) == 24, "struct client_key");

struct client_addr {
	__u64 netns; /* the entry's own: it may be another's by the time that it is read */
	struct addr addr;
};
_Static_assert(sizeof(struct client_addr) == 24, "struct client_addr");

/* The flows of the packet path. A client speaks to a frontend; between the two
 * ends of this node's stack the same packets are between `client`, with
 * inner_port, and `backend`; on the wire to a backend of another node they are
 * between `node`, with node_port, and `backend`. So a flow is found by
 *
 *   FLOW_KEY_IN   a packet as it arrives: client → frontend, or, where the source
 *                 is translated, backend → node. Source and destination are the
 *                 packet's.
 *   FLOW_KEY_OUT  a packet as it leaves the stack, in either direction: client,
 *                 inner_port and backend. The lower of the two ends, byte by byte
 *                 and then by port, is src.
 *
 * Every entry holds the whole flow: one that was lost is made again from another. */
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
	FLOW_FLAG_SNAT = 1,      /* to the backend, the source becomes node:node_port */
	FLOW_FLAG_CONFIRMED = 2, /* the client has answered the backend; in `flows`, not in
				  * `flows_new` */
	FLOW_FLAG_OWN = 4,       /* of a socket of this node or a client that its netfilter
				  * masquerades, not to be translated: client is the other host,
				  * frontend this node's end */
	FLOW_FLAG_DISPLACED = 8, /* the same, but from a port that another flow has on the wire,
				  * and gets another: client is this node's end, frontend the
				  * other host, as is backend */
	FLOW_FLAG_DIRECT = 16,   /* the client speaks to the backend itself, frontend is backend:
				  * another flow has, or had, the client's port there */
};

/* What one side of a flow has said. Each side has a byte of its own, and a note changes
 * only its own bits there, so that packets of both directions can be noted at once. */
enum flow_said {
	FLOW_SAID_FIN = 1,       /* its last byte is sent */
	FLOW_SAID_FIN_LATER = 2, /* and the other's was before */
	FLOW_SAID_RST = 4,
	FLOW_SAID_ANYTHING = 8,  /* noted of the backend */
	FLOW_SAID_SYN = 16,      /* noted of the client: a SYN, after one side had sent its last
				  * byte, and nothing else since */
	FLOW_SAID_ASKED = 32,    /* noted of the client: a SYN, and the backend has said nothing since */
	FLOW_SAID_ASKED_AGAIN = 64, /* and another SYN, FLOW_ANSWER or more after that */
};

/* Where a side was with its last packet but resets: in its own bytes, and in those that it
 * has got of the other. Zero: not known. Aligned, to be copied at once. */
struct tcp_point {
	__be32 seq, ack;
} __attribute__((aligned(8)));

/* Value of `flows` and `flows_new`. */
struct flow {
	struct addr client, frontend, backend;
	struct addr node;          /* source on the wire; zero until it is chosen */
	__be16 client_port, frontend_port, backend_port;
	__be16 inner_port;         /* the client's port as the backend's side has it: its own,
				    * unless two flows of it would be one there */
	__be16 node_port;          /* 0 until it is chosen */
	__u8 protocol;
	__u8 flags;                /* enum flow_flag */
	__u32 service_id;
	__u32 backend_id;
	__u8 client_said, backend_said; /* enum flow_said */
	__u16 pad;
	__u64 used;                /* ns, CLOCK_MONOTONIC, to within FLOW_TOUCH */
	/* TCP. Written with each packet, only in the entry that it is found by, and not copied with
	 * the others. */
	struct tcp_point client_at, backend_at;
};
_Static_assert(sizeof(struct flow) == 112, "struct flow");

/* Key of `fragments`: a datagram in pieces (RFC 791; RFC 8200 4.5, which knows no
 * protocol here), by hook, as both see the pieces and with other addresses. */
struct fragment_key {
	struct addr src, dst;
	__u32 id; /* network order; of IPv4 in the last two bytes */
	__u8 protocol; /* of IPv4 */
	__u8 egress;
	__u16 pad;
};
_Static_assert(sizeof(struct fragment_key) == 40, "struct fragment_key");

/* Value of `fragments`: what only the first piece says. */
struct fragment {
	__be16 sport, dport;
	__u8 protocol;
	__u8 pad[3];
	__u64 noted; /* ns, CLOCK_MONOTONIC */
};
_Static_assert(sizeof(struct fragment) == 16, "struct fragment");

enum device_flag {
	DEVICE_FLAG_RESETS = 1, /* conntrack and IPVS translate no connection to a frontend: TCP of
				 * a connection that has no flow is nobody's */
};

/* Value of `devices`, by interface index: what packets that leave there may have
 * for their source. Zero: the device has no address of that family. */
struct device {
	struct addr addr4, addr6;
	__u32 flags; /* enum device_flag */
};
_Static_assert(sizeof(struct device) == 36, "struct device");

enum addr_flag {
	ADDR_FLAG_FRONTEND = 1,   /* frontends have this address */
	ADDR_FLAG_CLUSTER_IP = 2, /* a cluster IP: ports that no service has are refused */
	ADDR_FLAG_NODE_PORTS = 4, /* an address of this node that takes node ports, */
	ADDR_FLAG_OWN_NETNS = 8,  /* but for sockets of the node's own network namespace
				   * only: loopback, which a pod has for itself */
	ADDR_FLAG_BACKEND = 16,   /* backends have this address, or had it lately */
	ADDR_FLAG_PROBE = 32,     /* with CLUSTER_IP: the address at which the daemon asks whether
				   * the hooks act. A refusal is counted by a reason of its own */
};

/* Value of `addrs`. */
struct addr_info {
	__u32 flags; /* enum addr_flag */
};

/* Value of `names`: what a service id stands for, so that a new daemon adopts
 * ids by name and the command line has names without a daemon. Zero-padded;
 * the lengths are those that the API allows (RFC 1123 labels). */
struct service_name {
	__u8 namespace[64];
	__u8 name[64];
	__u8 port[64];
	__u8 protocol;
	__u8 family; /* 4 or 6 */
	__u8 pad[2];
};
_Static_assert(sizeof(struct service_name) == 196, "struct service_name");

/* Element 0 of `meta`: what the daemon says of itself, for `shunt status`, and of
 * the maps as a whole, for the programs. */
struct meta_value {
	__u32 abi;      /* SHUNT_ABI */
	__u32 pid;      /* in the daemon's pid namespace */
	__s64 started;  /* ns, Unix time */
	__s64 synced;   /* ns, Unix time, of the last reconcile that left nothing; 0: none */
	__u32 pending;  /* services whose change is not in the maps */
	__u32 service_cidrs; /* how many `sources` has; programs look there only if any */
	__u32 problems; /* how many there are; `problems` has the first of them */
	__u32 problems_version; /* odd while `problems` is written */
	/* ns, CLOCK_MONOTONIC. Programs write them, and look into a map only if it can have
	 * something that is new enough. The last two are precise to a second. */
	__u64 direct;          /* when a TCP flow with FLOW_FLAG_DIRECT last began */
	__u64 direct_noted;    /* when an entry of `directs` was last written */
	__u64 own_port_noted;  /* when an entry of `own_ports` was last written */
};
_Static_assert(sizeof(struct meta_value) == 64, "struct meta_value");

enum problem_kind {
	PROBLEM_KIND_NONE,
	PROBLEM_KIND_CONFLICT, /* another service has the frontend */
	PROBLEM_KIND_CUT,      /* the service asks for more frontends than one may have */
	PROBLEM_KIND_NO_ROOM,  /* a map is full */
	PROBLEM_KIND_FAILED,   /* a write to a map failed for another reason */
	PROBLEM_KIND_REFUSED,  /* the frontend is one that is never programmed */
};

/* Value of `problems`: a service that is not served as its object asks. No program
 * reads it: it is there for `shunt status` after the daemon has died. */
struct problem {
	struct service_name service; /* of no certain port: port, protocol and family are zero */
	struct service_name owner;   /* of a conflict: the namespace and name of who has it */
	struct frontend_key frontend; /* of no certain frontend: zero */
	__u8 kind; /* enum problem_kind; PROBLEM_KIND_NONE: the element is not used */
	__u8 pad[3];
	__u32 attempts;
	__u32 more; /* problems of this service that have no element */
	__s64 since; /* ns, Unix time */
	__u8 text[256]; /* zero-padded, cut */
};
_Static_assert(sizeof(struct problem) == 688, "struct problem");
