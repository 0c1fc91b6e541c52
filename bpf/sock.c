//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* sock.c: the socket path. cgroup hooks on connect, sendmsg, recvmsg and getpeername: a backend's
 * address replaces a frontend's before the kernel makes a packet, so that no packet has to be
 * translated.
 *
 * The four hooks of each family only convert addresses. The functions above them do the work. A
 * hook returns 1 (the system call proceeds) or 0 (the system call fails). */
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "config.h"
#include "hook.h"
#include "lb.h"
#include "localport.h"
#include "sock.h"
#include "stays.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define SOCK_PASS 1
#define SOCK_REFUSE 0

/* Sets the errno for a refusal. Where the packet path would drop a packet, a socket has no packet
 * yet that could time out. So the call fails with EHOSTUNREACH, which differs from the error of a
 * service without endpoints. */
static __always_inline int sock_refuse(enum reason reason)
{
	int dropped = reason == REASON_NO_LOCAL_ENDPOINT || reason == REASON_UNALLOCATED ||
		      reason == REASON_SOURCE_RANGE || reason == REASON_SOURCE_UNKNOWN;

	if (config_has_set_retval)
		bpf_set_retval(dropped ? -EHOSTUNREACH : -ECONNREFUSED);
	return SOCK_REFUSE;
}

static __always_inline int sock_is_ours(const struct bpf_sock_addr *ctx)
{
	return ctx->protocol == IPPROTO_TCP || ctx->protocol == IPPROTO_UDP;
}

static __always_inline int sock_in_host_netns(__u64 cookie)
{
	__u64 own = config_netns_cookie;

	return cookie == (own ? own : bpf_get_netns_cookie(NULL));
}

/* Fills *client. Affinity identifies a client by its network namespace (abi.h, affinity_key).
 * Source ranges use the network namespace and `bound`. */
static __always_inline void sock_client(struct bpf_sock_addr *ctx, const struct addr *bound,
					struct lb_client *client)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);

	__builtin_memset(client, 0, sizeof(*client));
	*(__u32 *)&client->addr.b[8] = (__u32)(cookie >> 32);
	*(__u32 *)&client->addr.b[12] = (__u32)cookie;
	client->bound = *bound;
	client->side = LB_INSIDE;
	client->host_netns = sock_in_host_netns(cookie);
}

/* Reports whether a UDP socket without a flow to dst answers a process of the node, which has sent
 * from dst's address and port. */
static __always_inline int sock_is_answer(struct bpf_sock_addr *ctx, const struct frontend_key *dst,
					  enum reason reason)
{
	return dst->protocol == IPPROTO_UDP && reason != REASON_NO_FRONTEND &&
	       reason != REASON_FLOW_KEPT && local_port_may_be_noted() &&
	       local_port_answers(bpf_get_netns_cookie(ctx), ctx->sk->src_port, dst);
}

/* Notes that a UDP socket sends to dst, if its source port may be a node port's number
 * (local_port_note). `port` is the destination port after translation. */
static __always_inline void sock_sends(struct bpf_sock_addr *ctx, const struct frontend_key *dst,
				       __be16 port)
{
	__u32 own = ctx->sk->src_port;

	if (!own || (own >= config_ephemeral_first && own <= config_ephemeral_last))
		return;
	if (sock_in_host_netns(bpf_get_netns_cookie(ctx)))
		local_port_note(own, &dst->addr, port);
}

/* Reports whether a flow to dst that is no longer valid (sock_flow_holds) can still keep its
 * endpoint, which is in *to. */
static __always_inline int sock_flow_stays(const struct frontend_key *dst,
					   const struct lb_client *client, struct lb_choice *to)
{
	return to->port && stays_with(dst, client, to);
}

/* Reports whether a frontend can have this address. For most connections none can: then neither the
 * client nor a random number is computed. */
static __always_inline int sock_may_lead(const struct addr *addr)
{
	struct addr_info *info = bpf_map_lookup_elem(&addrs, addr);

	return info && info->flags & (ADDR_FLAG_FRONTEND | ADDR_FLAG_CLUSTER_IP | ADDR_FLAG_NODE_PORTS);
}

/* connect(): chooses a backend and records the frontend. Returns the reason, with *to filled if it
 * is one of translation. */
static __always_inline enum reason sock_connect(struct bpf_sock_addr *ctx,
						const struct frontend_key *dst,
						const struct addr *bound, struct lb_choice *to)
{
	enum reason reason;
	struct lb_client client;

	if (!sock_may_lead(&dst->addr)) {
		reason = lb_unallocated(&dst->addr) ? REASON_UNALLOCATED : REASON_NO_FRONTEND;
	} else {
		sock_client(ctx, bound, &client);
		if (dst->protocol == IPPROTO_UDP && (sock_flow_keep(ctx->sk, dst, client.host_netns, to) ||
						     sock_flow_stays(dst, &client, to)))
			reason = REASON_FLOW_KEPT;
		else
			reason = lb_select(dst, &client, bpf_get_prandom_u32(), to);
	}
	if (sock_is_answer(ctx, dst, reason))
		reason = REASON_LOCAL_FLOW;
	switch (reason) {
	case REASON_TRANSLATED:
	case REASON_AFFINITY_KEPT:
		lb_count(to->backend_id);
		break;
	case REASON_FLOW_KEPT:
		break;
	case REASON_LOCAL_FLOW:
	case REASON_NO_FRONTEND:
		sock_peer_forget(ctx->sk, dst);
		return reason;
	default: /* a refused connect() leaves the socket with its peer */
		return reason;
	}
	bpf_get_socket_cookie(ctx); /* makes the kernel assign a cookie, by which a sweep
				     * identifies the socket */
	return sock_peer_store(ctx->sk, dst, to) ? REASON_UNRECORDED : reason;
}

/* Begins a flow of an unconnected socket. The first pick is computed from socket and destination: a
 * flow whose record was replaced gets the same backend again, while the service does not change. If
 * another flow of this socket has that backend already, the next slots are tried. */
static __always_inline enum reason sock_flow_begin(struct bpf_sock_addr *ctx,
						   const struct frontend_key *dst,
						   const struct lb_client *client,
						   struct lb_choice *to)
{
	__u64 pick = bpf_get_socket_cookie(ctx);
	enum reason reason = REASON_UNSPEC;
	int empty = 0;

	pick ^= lb_word(&dst->addr, 2) ^ ((__u64)lb_word(&dst->addr, 3) << 16) ^ dst->port;
	pick *= 0x9e3779b97f4a7c15ULL; /* 2^64 / golden ratio: spreads the bits upwards */
	for (int i = 0; i < LB_TRIES; i++) {
		reason = lb_try(dst, client, (__u32)(pick >> 32) + i, &empty, to);
		if (reason == REASON_ENTRY_CHANGED)
			continue;
		if (reason != REASON_TRANSLATED || !sock_flow_taken(ctx->sk, dst, to))
			break;
	}
	return reason;
}

/* sendmsg() to an address that frontends may have. Returns as sock_connect. */
static __always_inline enum reason sock_sendmsg_to(struct bpf_sock_addr *ctx,
						   const struct frontend_key *dst,
						   const struct addr *bound, struct lb_choice *to)
{
	int host_netns = sock_in_host_netns(bpf_get_netns_cookie(ctx));
	struct lb_client client;
	enum reason reason;

	if (sock_peer_keep(ctx->sk, dst, host_netns, to) ||
	    sock_flow_keep(ctx->sk, dst, host_netns, to))
		return REASON_FLOW_KEPT;
	sock_client(ctx, bound, &client);
	if (sock_peer_resume(ctx->sk, dst, host_netns, to) || sock_flow_stays(dst, &client, to)) {
		reason = REASON_FLOW_KEPT;
	} else {
		reason = sock_flow_begin(ctx, dst, &client, to);
		if (sock_is_answer(ctx, dst, reason))
			return REASON_LOCAL_FLOW;
		if (reason != REASON_TRANSLATED && reason != REASON_AFFINITY_KEPT)
			return reason;
		lb_count(to->backend_id);
	}
	return sock_flow_store(ctx->sk, dst, to) ? REASON_UNRECORDED : reason;
}

/* sendmsg() with an address on a UDP socket, connected or not. Returns as sock_connect. */
static __always_inline enum reason sock_sendmsg(struct bpf_sock_addr *ctx,
						const struct frontend_key *dst,
						const struct addr *bound, struct lb_choice *to)
{
	enum reason reason;

	if (sock_may_lead(&dst->addr))
		reason = sock_sendmsg_to(ctx, dst, bound, to);
	else
		reason = lb_unallocated(&dst->addr) ? REASON_UNALLOCATED : REASON_NO_FRONTEND;
	if (reason == REASON_NO_FRONTEND || reason == REASON_LOCAL_FLOW)
		sock_flow_direct(ctx->sk, dst);
	return reason;
}

/* Reports whether a reason is one of translation: *to is the destination. */
static __always_inline int sock_is_translated(enum reason reason)
{
	return reason == REASON_TRANSLATED || reason == REASON_AFFINITY_KEPT ||
	       reason == REASON_FLOW_KEPT || reason == REASON_UNRECORDED;
}

/* Reports whether this is the daemon's hook check (ADDR_FLAG_HOOK_CHECK). It runs every few
 * seconds, and must not be counted as a client with a wrong port. */
static __always_inline int sock_is_hook_check(const struct frontend_key *dst)
{
	struct addr_info *info = bpf_map_lookup_elem(&addrs, &dst->addr);

	return info && info->flags & ADDR_FLAG_HOOK_CHECK;
}

/* Does the work of connect and sendmsg, for both families. `bound` is the source address that the
 * socket or the datagram already has. Returns the hook's verdict. *translated says whether `to` has
 * to be written to the context. */
static __always_inline int sock_forward(struct bpf_sock_addr *ctx, const struct frontend_key *dst,
					const struct addr *bound, int is_connect,
					struct lb_choice *to, int *translated)
{
	enum reason reason;

	reason = !sock_is_ours(ctx) ? REASON_PROTOCOL :
		 is_connect	    ? sock_connect(ctx, dst, bound, to) :
				      sock_sendmsg(ctx, dst, bound, to);
	if (reason == REASON_UNDEFINED_PORT && sock_is_hook_check(dst))
		reason = REASON_HOOK_CHECK;
	hook_count(reason);
	*translated = sock_is_translated(reason);
	if (!*translated && reason != REASON_PROTOCOL && reason != REASON_NO_FRONTEND &&
	    reason != REASON_LOCAL_FLOW)
		return sock_refuse(reason);
	if (dst->protocol == IPPROTO_UDP)
		sock_sends(ctx, dst, *translated ? to->port : dst->port);
	return SOCK_PASS;
}

/* recvmsg(): replaces the sender by the address that the process sent to. A received datagram makes
 * no new record, since it can be forged. */
static __always_inline int sock_reply(struct bpf_sock_addr *ctx, struct addr *addr, __be16 *port)
{
	int restored = sock_reply_restore(ctx->sk, addr, port);

	if (!restored && local_port_may_be_noted())
		local_port_heard(bpf_get_netns_cookie(ctx), ctx->sk->src_port, addr, *port);
	hook_count(restored ? REASON_REPLY_RESTORED : REASON_REPLY_PASSED);
	return restored;
}

/* getpeername(): replaces the peer by the address that the process connected to. */
static __always_inline int sock_peername(struct bpf_sock_addr *ctx, struct addr *addr,
					 __be16 *port)
{
	int restored = sock_reply_of(sock_peer_find(ctx->sk), addr, port);

	hook_count(restored ? REASON_PEER_RESTORED : REASON_PEER_PASSED);
	return restored;
}

/* IPv4: the context's address is one word. */

static __always_inline void sock4_addr(__u32 ip4, struct addr *addr)
{
	__builtin_memset(addr, 0, sizeof(*addr));
	*(__u32 *)&addr->b[8] = bpf_htonl(0xffff);
	*(__u32 *)&addr->b[12] = ip4;
}

static __always_inline void sock4_read(const struct bpf_sock_addr *ctx, struct addr *addr)
{
	sock4_addr(ctx->user_ip4, addr);
}

static __always_inline void sock4_write(struct bpf_sock_addr *ctx, const struct addr *addr,
					__be16 port)
{
	ctx->user_ip4 = lb_word(addr, 3);
	ctx->user_port = port;
}

static __always_inline int sock4_forward(struct bpf_sock_addr *ctx, int is_connect)
{
	struct frontend_key dst = { .port = ctx->user_port, .protocol = ctx->protocol };
	struct lb_choice to = {};
	struct addr bound;
	int translated, verdict;

	sock4_read(ctx, &dst.addr);
	sock4_addr(is_connect ? ctx->sk->src_ip4 : ctx->msg_src_ip4, &bound);
	verdict = sock_forward(ctx, &dst, &bound, is_connect, &to, &translated);
	if (translated)
		sock4_write(ctx, &to.addr, to.port);
	return verdict;
}

SEC("cgroup/connect4")
int shunt_connect4(struct bpf_sock_addr *ctx)
{
	return sock4_forward(ctx, 1);
}

SEC("cgroup/sendmsg4")
int shunt_sendmsg4(struct bpf_sock_addr *ctx)
{
	return sock4_forward(ctx, 0);
}

SEC("cgroup/recvmsg4")
int shunt_recvmsg4(struct bpf_sock_addr *ctx)
{
	__be16 port = ctx->user_port;
	struct addr addr;

	sock4_read(ctx, &addr);
	if (sock_reply(ctx, &addr, &port))
		sock4_write(ctx, &addr, port);
	return SOCK_PASS;
}

SEC("cgroup/getpeername4")
int shunt_getpeername4(struct bpf_sock_addr *ctx)
{
	__be16 port = ctx->user_port;
	struct addr addr;

	sock4_read(ctx, &addr);
	if (sock_peername(ctx, &addr, &port))
		sock4_write(ctx, &addr, port);
	return SOCK_PASS;
}

/* IPv6, and IPv4 on an IPv6 socket: four words, as in struct addr. */

static __always_inline void sock6_read(const struct bpf_sock_addr *ctx, struct addr *addr)
{
	*(__u32 *)&addr->b[0] = ctx->user_ip6[0];
	*(__u32 *)&addr->b[4] = ctx->user_ip6[1];
	*(__u32 *)&addr->b[8] = ctx->user_ip6[2];
	*(__u32 *)&addr->b[12] = ctx->user_ip6[3];
}

static __always_inline void sock6_write(struct bpf_sock_addr *ctx, const struct addr *addr,
					__be16 port)
{
	ctx->user_ip6[0] = lb_word(addr, 0);
	ctx->user_ip6[1] = lb_word(addr, 1);
	ctx->user_ip6[2] = lb_word(addr, 2);
	ctx->user_ip6[3] = lb_word(addr, 3);
	ctx->user_port = port;
}

/* Reads the source address that a socket or a datagram already has. The unspecified address:
 * none. */
static __always_inline void sock6_bound(const struct bpf_sock_addr *ctx, int is_connect,
					struct addr *addr)
{
	*(__u32 *)&addr->b[0] = is_connect ? ctx->sk->src_ip6[0] : ctx->msg_src_ip6[0];
	*(__u32 *)&addr->b[4] = is_connect ? ctx->sk->src_ip6[1] : ctx->msg_src_ip6[1];
	*(__u32 *)&addr->b[8] = is_connect ? ctx->sk->src_ip6[2] : ctx->msg_src_ip6[2];
	*(__u32 *)&addr->b[12] = is_connect ? ctx->sk->src_ip6[3] : ctx->msg_src_ip6[3];
}

static __always_inline int sock6_forward(struct bpf_sock_addr *ctx, int is_connect)
{
	struct frontend_key dst = { .port = ctx->user_port, .protocol = ctx->protocol };
	struct lb_choice to = {};
	struct addr bound;
	int translated, verdict;

	sock6_read(ctx, &dst.addr);
	sock6_bound(ctx, is_connect, &bound);
	verdict = sock_forward(ctx, &dst, &bound, is_connect, &to, &translated);
	if (translated)
		sock6_write(ctx, &to.addr, to.port);
	return verdict;
}

SEC("cgroup/connect6")
int shunt_connect6(struct bpf_sock_addr *ctx)
{
	return sock6_forward(ctx, 1);
}

SEC("cgroup/sendmsg6")
int shunt_sendmsg6(struct bpf_sock_addr *ctx)
{
	return sock6_forward(ctx, 0);
}

SEC("cgroup/recvmsg6")
int shunt_recvmsg6(struct bpf_sock_addr *ctx)
{
	__be16 port = ctx->user_port;
	struct addr addr;

	sock6_read(ctx, &addr);
	if (sock_reply(ctx, &addr, &port))
		sock6_write(ctx, &addr, port);
	return SOCK_PASS;
}

SEC("cgroup/getpeername6")
int shunt_getpeername6(struct bpf_sock_addr *ctx)
{
	__be16 port = ctx->user_port;
	struct addr addr;

	sock6_read(ctx, &addr);
	if (sock_peername(ctx, &addr, &port))
		sock6_write(ctx, &addr, port);
	return SOCK_PASS;
}
