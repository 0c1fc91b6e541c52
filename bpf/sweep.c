//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* sweep.c: finds connected sockets whose backend no longer serves, or whose frontend belongs to
 * another service. It has iterators over the socket storage that connect() wrote, of all network
 * namespaces at once: their cost depends on the number of translated sockets only.
 *
 * sock_diag can report a socket's storage too, but omits it for UDP (6.18: for a socket that is not
 * connection-oriented, inet_sk_diag_fill returns before it reports storage). */
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lb.h"
#include "sock.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define AF_INET 2

/* States of a socket that has a peer (net/tcp_states.h). UDP has only the first. Half-closed
 * connections are included: either side can wait for the other without end. */
#define STATE_ESTABLISHED 1
#define STATE_SYN_SENT 2
#define STATE_FIN_WAIT1 4
#define STATE_FIN_WAIT2 5
#define STATE_CLOSE_WAIT 8
#define STATE_CLOSING 11

/* The fields of the kernel's structures that are read; the loader finds their offsets (CO-RE). */
#define KERNEL __attribute__((preserve_access_index))

struct in6_addr___k {
	__u32 s6_addr32[4];
};

struct ns_common {
	unsigned int inum;
} KERNEL;

struct net {
	struct ns_common ns;
} KERNEL;

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	struct in6_addr___k skc_v6_daddr;
	struct in6_addr___k skc_v6_rcv_saddr;
	struct {
		__s64 counter;
	} skc_cookie;
} KERNEL;

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
} KERNEL;

struct seq_file;

struct bpf_iter_meta {
	__bpf_md_ptr(struct seq_file *, seq);
} KERNEL;

struct bpf_iter__bpf_sk_storage_map {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct bpf_map *, map);
	__bpf_md_ptr(struct sock *, sk);
	__bpf_md_ptr(void *, value);
} KERNEL;

/* A socket that shunt_stale has found, with the fields by which sock_diag finds it. */
struct stale_socket {
	struct addr local, peer; /* an IPv4 address is in the last word alone */
	__be16 local_port, peer_port;
	__u32 device; /* SO_BINDTODEVICE; 0: none */
	__u64 cookie; /* 0: the socket has none yet */
	__u32 netns;  /* inode number of /proc/PID/ns/net */
	__u16 family;
	__u8 protocol;
	__u8 pad;
	/* The frontend that it was connected to, and that frontend's service. */
	struct addr frontend;
	__be16 frontend_port;
	__u16 pad2;
	__u32 service_id;
};
_Static_assert(sizeof(struct stale_socket) == 80, "struct stale_socket");

struct stale_socket sweep_stale_socket; /* for Go: see abi.c */

static __always_inline void sweep_addrs(struct sock *sk, struct stale_socket *out)
{
	if (out->family == AF_INET) {
		*(__u32 *)&out->local.b[12] = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
		*(__u32 *)&out->peer.b[12] = BPF_CORE_READ(sk, __sk_common.skc_daddr);
		return;
	}
	BPF_CORE_READ_INTO(&out->local, sk, __sk_common.skc_v6_rcv_saddr);
	BPF_CORE_READ_INTO(&out->peer, sk, __sk_common.skc_v6_daddr);
}

/* Reports whether the socket's peer still is the flow's backend. */
static __always_inline int sweep_is_peer(const struct stale_socket *s, const struct sock_flow *flow)
{
	struct addr peer = s->peer;

	if (s->family == AF_INET)
		*(__u32 *)&peer.b[8] = bpf_htonl(0xffff);
	return sock_flow_is_from(flow, &peer, s->peer_port);
}

static __always_inline int sweep_is_open(__u8 state)
{
	return state == STATE_SYN_SENT || state == STATE_FIN_WAIT1 || state == STATE_FIN_WAIT2 ||
	       state == STATE_CLOSE_WAIT || state == STATE_CLOSING;
}

/* Describes the socket if it has a peer, and this is the flow's backend. Returns 1 with *out
 * filled, else 0. */
static __always_inline int sweep_socket(struct sock *sk, const struct sock_flow *flow,
					struct stale_socket *out)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	out->protocol = BPF_CORE_READ(sk, sk_protocol);
	if (state != STATE_ESTABLISHED &&
	    (out->protocol != IPPROTO_TCP || !sweep_is_open(state)))
		return 0;
	out->family = BPF_CORE_READ(sk, __sk_common.skc_family);
	out->peer_port = BPF_CORE_READ(sk, __sk_common.skc_dport);
	sweep_addrs(sk, out);
	if (!sweep_is_peer(out, flow))
		return 0;
	out->local_port = bpf_htons(BPF_CORE_READ(sk, __sk_common.skc_num));
	out->device = BPF_CORE_READ(sk, __sk_common.skc_bound_dev_if);
	out->cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	out->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	out->frontend = flow->frontend_addr;
	out->frontend_port = flow->frontend_port;
	out->service_id = flow->service_id;
	return 1;
}

/* Reports whether the socket's flow is still valid. A TCP flow is valid as long as its backend
 * exists. A UDP flow has no end of its own: it is valid as long as the backend serves and the
 * frontend belongs to the same service. */
static __always_inline int sweep_holds(struct sock *sk, const struct sock_flow *flow)
{
	if (BPF_CORE_READ(sk, sk_protocol) != IPPROTO_UDP)
		return sock_flow_backend(flow) != NULL;
	return sock_flow_serves(flow) && sock_flow_leads(flow, 1);
}

/* Writes the sockets whose flow is no longer valid. The check is by backend id: an endpoint that
 * got another record has another id, and user space has to compare addresses. */
SEC("iter/bpf_sk_storage_map")
int shunt_stale(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock_flow *value = ctx->value;
	struct sock *sk = ctx->sk;
	struct stale_socket out = {};
	struct sock_flow flow;

	if (!sk || !value)
		return 0; /* the iterator's last call */
	flow = *value;
	if (flow.used && !sweep_holds(sk, &flow) && sweep_socket(sk, &flow, &out))
		bpf_seq_write(ctx->meta->seq, &out, sizeof(out));
	return 0;
}

/* Writes the cookies of all translated UDP sockets. A backend can have the address of a frontend.
 * Sockets that were translated to it must not be mistaken for sockets that send to the frontend
 * untranslated. */
SEC("iter/bpf_sk_storage_map")
int shunt_translated(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock_flow *value = ctx->value;
	struct sock *sk = ctx->sk;
	struct stale_socket out = {};
	struct sock_flow flow;

	if (!sk || !value)
		return 0;
	flow = *value;
	if (flow.used && sweep_socket(sk, &flow, &out) && out.protocol == IPPROTO_UDP)
		bpf_seq_write(ctx->meta->seq, &out.cookie, sizeof(out.cookie));
	return 0;
}
