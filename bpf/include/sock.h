// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* sock.h: records the frontend that a socket's process sends to, and the backend that the socket
 * sends to in its place. Knows socket storage; knows neither services nor how a hook represents an
 * address. */
#pragma once

#include "lb.h"
#include "maps.h"

#define SOCK_AF_INET 2

/* Fills a sock_flow for a choice, but not `used`. */
static __always_inline void sock_flow_fill(struct sock_flow *flow, const struct frontend_key *dst,
					   const struct lb_choice *to)
{
	flow->frontend_addr = dst->addr;
	flow->frontend_port = dst->port;
	flow->backend_addr = to->addr;
	flow->backend_port = to->port;
	flow->backend_id = to->backend_id;
	flow->service_id = to->service_id;
}

static __always_inline int sock_flow_is_to(const struct sock_flow *flow,
					   const struct frontend_key *dst)
{
	return flow->used && flow->frontend_port == dst->port &&
	       lb_addr_equal(&flow->frontend_addr, &dst->addr);
}

static __always_inline int sock_flow_is_from(const struct sock_flow *flow,
					     const struct addr *addr, __be16 port)
{
	return flow->used && flow->backend_port == port &&
	       lb_addr_equal(&flow->backend_addr, addr);
}

static __always_inline void sock_flow_choice(const struct sock_flow *flow, struct lb_choice *out)
{
	out->addr = flow->backend_addr;
	out->port = flow->backend_port;
	out->backend_id = flow->backend_id;
	out->service_id = flow->service_id;
}

/* Returns the record of the flow's backend; NULL if the endpoint is gone. By now another endpoint
 * of the same service may have the record, so address and port are compared too. */
static __always_inline struct backend *sock_flow_backend(const struct sock_flow *flow)
{
	struct backend *be = lb_backend(flow->backend_id, flow->service_id);
	int same = be && be->port == flow->backend_port &&
		   lb_addr_equal(&be->addr, &flow->backend_addr);

	return same ? be : NULL;
}

/* Reports whether the flow's backend still serves. */
static __always_inline int sock_flow_serves(const struct sock_flow *flow)
{
	struct backend *be = sock_flow_backend(flow);

	return be && !(be->flags & BACKEND_FLAG_UNREADY);
}

/* Reports whether the UDP flow's frontend still belongs to its service. */
static __always_inline int sock_flow_leads(const struct sock_flow *flow, int host_netns)
{
	struct frontend_key key = { .addr = flow->frontend_addr, .port = flow->frontend_port,
				    .protocol = IPPROTO_UDP };

	return lb_leads(&key, host_netns, flow->service_id);
}

/* Reports whether a datagram of the flow may go to the same backend as the one before. */
static __always_inline int sock_flow_holds(const struct sock_flow *flow, int host_netns)
{
	return sock_flow_serves(flow) && sock_flow_leads(flow, host_netns);
}

/* Reports whether this address and port are the socket's peer in the kernel. */
static __always_inline int sock_peer_is(const struct bpf_sock *sk, const struct addr *addr,
					__be16 port)
{
	if (!port || sk->dst_port != port)
		return 0;
	if (sk->family == SOCK_AF_INET)
		return sk->dst_ip4 == lb_word(addr, 3) && lb_addr_is_v4(addr);
	return sk->dst_ip6[3] == lb_word(addr, 3) && sk->dst_ip6[2] == lb_word(addr, 2) &&
	       sk->dst_ip6[1] == lb_word(addr, 1) && sk->dst_ip6[0] == lb_word(addr, 0);
}

static __always_inline int sock_flow_is_peer(const struct sock_flow *flow,
					     const struct bpf_sock *sk)
{
	return flow->used && sock_peer_is(sk, &flow->backend_addr, flow->backend_port);
}

/* Returns the record of the connect() by which the socket got its peer. NULL: there is none, or
 * the socket has no peer. */
static __always_inline struct sock_flow *sock_peer_find(struct bpf_sock *sk)
{
	struct sock_flow *flow;

	if (!sk->dst_port)
		return NULL;
	flow = bpf_sk_storage_get(&sock_peer, sk, NULL, 0);
	if (!flow || sock_flow_is_peer(flow, sk))
		return flow;
	flow = bpf_sk_storage_get(&sock_before, sk, NULL, 0);
	return flow && sock_flow_is_peer(flow, sk) ? flow : NULL;
}

/* Finds the backend of a UDP socket's peer, if the socket was connected to dst and the flow is
 * still valid (sock_flow_holds). Returns 1 with *out filled. If the flow is not valid, returns 0
 * and sets *out to the peer's backend, for stays_with. If the socket was not connected to dst,
 * returns 0 and leaves *out unchanged. */
static __always_inline int sock_peer_keep(struct bpf_sock *sk, const struct frontend_key *dst,
					  int host_netns, struct lb_choice *out)
{
	struct sock_flow *peer = sock_peer_find(sk);

	if (!peer || !sock_flow_is_to(peer, dst))
		return 0;
	sock_flow_choice(peer, out);
	return sock_flow_holds(peer, host_netns);
}

/* The same for a UDP socket whose peer was removed (connect() to AF_UNSPEC): a later sendmsg() to
 * dst continues the flow of the last connect(). If *out already has an endpoint, that is from a
 * later flow. Then *out changes only if the flow of the connect() is still valid. */
static __always_inline int sock_peer_resume(struct bpf_sock *sk, const struct frontend_key *dst,
					    int host_netns, struct lb_choice *out)
{
	struct sock_flow *peer = bpf_sk_storage_get(&sock_peer, sk, NULL, 0);

	int holds;

	if (!peer || !sock_flow_is_to(peer, dst))
		return 0;
	holds = sock_flow_holds(peer, host_netns);
	if (holds || !out->port)
		sock_flow_choice(peer, out);
	return holds;
}

/* Called before a connect() overwrites the record of the last one. If that record is of the current
 * peer, it is saved, because the socket retains the peer if this connect() fails. If old and new
 * backend are the same, the two records cannot be distinguished later, and only the new one is
 * valid. Returns 0, or -1 without memory. */
static __always_inline int sock_peer_save(struct bpf_sock *sk, const struct sock_flow *peer,
					  const struct lb_choice *to)
{
	struct sock_flow *before;

	if (sock_peer_is(sk, &to->addr, to->port)) {
		before = bpf_sk_storage_get(&sock_before, sk, NULL, 0);
		if (before)
			before->used = 0;
		return 0;
	}
	if (!sock_flow_is_peer(peer, sk))
		return 0;
	before = bpf_sk_storage_get(&sock_before, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!before)
		return -1;
	*before = *peer;
	return 0;
}

/* Records what a socket is connected to. Returns 0, or -1 without memory. */
static __always_inline int sock_peer_store(struct bpf_sock *sk, const struct frontend_key *dst,
					   const struct lb_choice *to)
{
	struct sock_flow flow = { .used = 1 };
	struct sock_flow *peer;
	int err = 0;

	sock_flow_fill(&flow, dst, to);
	peer = bpf_sk_storage_get(&sock_peer, sk, &flow, BPF_SK_STORAGE_GET_F_CREATE);
	if (!peer)
		return -1;
	if (sk->dst_port)
		err = sock_peer_save(sk, peer, to);
	*peer = flow; /* the record may have existed: a UDP socket can connect again */
	return err;
}

/* Called when the socket connects to an address of no service. A record of another backend is not
 * valid once the socket has the new peer. A record of a backend with this very address would be,
 * and is removed. */
static __always_inline void sock_peer_forget(struct bpf_sock *sk, const struct frontend_key *dst)
{
	struct sock_flow *peer = bpf_sk_storage_get(&sock_peer, sk, NULL, 0);

	if (!peer)
		return;
	if (sock_flow_is_from(peer, &dst->addr, dst->port))
		peer->used = 0;
	peer = bpf_sk_storage_get(&sock_before, sk, NULL, 0);
	if (peer && sock_flow_is_from(peer, &dst->addr, dst->port))
		peer->used = 0;
}

/* Finds the backend of an unconnected socket's flow to dst, if the flow is still valid
 * (sock_flow_holds). Returns 1 with *out filled. If the flow is not valid, returns 0 and sets *out
 * to its backend, for stays_with. If there is no flow to dst, returns 0 and leaves *out
 * unchanged. */
static __always_inline int sock_flow_keep(struct bpf_sock *sk, const struct frontend_key *dst,
					  int host_netns, struct lb_choice *out)
{
	struct sock_flows *flows = bpf_sk_storage_get(&sock_flows, sk, NULL, 0);
	struct sock_flow found = {};

	if (!flows)
		return 0;
	bpf_spin_lock(&flows->lock);
	for (int i = 0; i < SOCK_FLOWS; i++) {
		struct sock_flow *flow = &flows->flow[i];

		if (!sock_flow_is_to(flow, dst))
			continue;
		flow->used = ++flows->clock;
		found = *flow;
		break;
	}
	bpf_spin_unlock(&flows->lock);
	if (!found.used)
		return 0;
	sock_flow_choice(&found, out);
	return sock_flow_holds(&found, host_netns); /* no helper may be called under the lock */
}

/* Returns 0 if both ends are equal, else another number. */
static __always_inline __u64 sock_end_differs(const struct addr *a, __be16 aport,
					      const struct addr *b, __be16 bport)
{
	return (lb_word(a, 0) ^ lb_word(b, 0)) | (lb_word(a, 1) ^ lb_word(b, 1)) |
	       (lb_word(a, 2) ^ lb_word(b, 2)) | (lb_word(a, 3) ^ lb_word(b, 3)) |
	       (__u32)(aport ^ bport);
}

/* Returns 1 for a number below 2^63 that is not 0, else 0, without a branch. */
static __always_inline __u64 sock_is_set(__u64 n)
{
	n = -n;
	asm volatile("" : "+r"(n));
	return n >> 63;
}

/* Reports whether the socket already has a flow to the same backend by another frontend. Replies of
 * the two flows could not be distinguished. The loop has no branch. With one, the verifier follows each of its
 * sixteen ends in each of LB_TRIES rounds: 690,616 instructions for sendmsg6 on 6.18, now 417,286. */
static __always_inline int sock_flow_taken(struct bpf_sock *sk, const struct frontend_key *dst,
					   const struct lb_choice *to)
{
	struct sock_flows *flows = bpf_sk_storage_get(&sock_flows, sk, NULL, 0);
	__u64 taken = 0;

	if (!flows)
		return 0;
	bpf_spin_lock(&flows->lock);
	for (int i = 0; i < SOCK_FLOWS; i++) {
		struct sock_flow *flow = &flows->flow[i];
		__u64 backend = sock_end_differs(&flow->backend_addr, flow->backend_port,
						 &to->addr, to->port);
		__u64 frontend = sock_end_differs(&flow->frontend_addr, flow->frontend_port,
						  &dst->addr, dst->port);

		taken |= sock_is_set(flow->used) & sock_is_set(frontend) & ~sock_is_set(backend);
	}
	bpf_spin_unlock(&flows->lock);
	return taken & 1;
}

/* Returns the record for a new flow to dst: the record of an earlier flow to dst, a free record, or
 * one that was not used lately. A search for the oldest record would make the verifier follow every
 * order of sixteen ages (6.18: over a million instructions). The clock algorithm (second chance)
 * avoids that: a hand goes round and skips records in use, and the verifier sees equal steps. Call
 * it with the lock held. */
static __always_inline struct sock_flow *sock_flow_place(struct sock_flows *flows,
							 const struct frontend_key *dst)
{
	struct sock_flow *flow;

	for (int i = 0; i < SOCK_FLOWS; i++) {
		flow = &flows->flow[i];
		if (sock_flow_is_to(flow, dst))
			return flow;
	}
	for (int i = 0; i < SOCK_FLOWS; i++) {
		flow = &flows->flow[flows->hand++ % SOCK_FLOWS];
		if (!flow->used || flows->clock - flow->used >= SOCK_FLOWS)
			return flow;
	}
	return &flows->flow[flows->hand++ % SOCK_FLOWS];
}

/* Records an unconnected socket's flow. Returns 0, or -1 without memory. */
static __always_inline int sock_flow_store(struct bpf_sock *sk, const struct frontend_key *dst,
					   const struct lb_choice *to)
{
	struct sock_flows *flows = bpf_sk_storage_get(&sock_flows, sk, NULL,
						      BPF_SK_STORAGE_GET_F_CREATE);
	struct sock_flow *flow;

	if (!flows)
		return -1;
	bpf_spin_lock(&flows->lock);
	flow = sock_flow_place(flows, dst);
	sock_flow_fill(flow, dst, to);
	flow->used = ++flows->clock;
	bpf_spin_unlock(&flows->lock);
	return 0;
}

/* Reports whether the unconnected socket has a record of that backend. */
static __always_inline int sock_knows(struct bpf_sock *sk, const struct addr *addr, __be16 port)
{
	struct sock_flows *flows = bpf_sk_storage_get(&sock_flows, sk, NULL, 0);
	struct sock_flow *peer;
	int known = 0;

	if (flows) {
		bpf_spin_lock(&flows->lock);
		for (int i = 0; i < SOCK_FLOWS; i++) {
			if (sock_flow_is_from(&flows->flow[i], addr, port)) {
				known = 1;
				break;
			}
		}
		bpf_spin_unlock(&flows->lock);
		if (known)
			return 1;
	}
	peer = bpf_sk_storage_get(&sock_peer, sk, NULL, 0);
	if (!peer)
		return 0;
	if (sock_flow_is_from(peer, addr, port))
		return 1;
	peer = bpf_sk_storage_get(&sock_before, sk, NULL, 0);
	return peer && sock_flow_is_from(peer, addr, port);
}

/* Called when an unconnected socket sends to an address that is no frontend's. If that is the
 * address of one of the socket's backends, later datagrams from there are shown with that address,
 * until the socket sends to the frontend again. So a flow is recorded whose frontend is the backend
 * itself. */
static __always_inline void sock_flow_direct(struct bpf_sock *sk, const struct frontend_key *dst)
{
	struct lb_choice self = { .addr = dst->addr, .port = dst->port };

	if (!sk->dst_port && sock_knows(sk, &dst->addr, dst->port))
		sock_flow_store(sk, dst, &self);
}

/* Replaces a sender by the frontend of the flow, if the flow's backend is the sender. Returns 1
 * with *addr and *port replaced, else 0. */
static __always_inline int sock_reply_of(const struct sock_flow *flow, struct addr *addr,
					 __be16 *port)
{
	if (!flow || !sock_flow_is_from(flow, addr, *port))
		return 0;
	*addr = flow->frontend_addr;
	*port = flow->frontend_port;
	return 1;
}

enum sock_sender {
	SOCK_UNKNOWN,
	SOCK_FRONTEND,
	SOCK_DIRECT, /* the socket has sent to the address itself */
};

/* Replaces a sender by the frontend of an unconnected socket's flow to that sender. If two
 * frontends share the backend, the frontend that the socket sent to last is used. Returns
 * SOCK_FRONTEND with *addr and *port replaced. */
static __always_inline enum sock_sender sock_reply_of_flows(struct bpf_sock *sk,
							    struct addr *addr, __be16 *port)
{
	struct addr frontend = {};
	struct sock_flows *flows;
	__be16 frontend_port = 0;
	__u32 newest = 0;

	flows = bpf_sk_storage_get(&sock_flows, sk, NULL, 0);
	if (!flows)
		return SOCK_UNKNOWN;
	bpf_spin_lock(&flows->lock);
	for (int i = 0; i < SOCK_FLOWS; i++) {
		struct sock_flow *flow = &flows->flow[i];

		if (sock_flow_is_from(flow, addr, *port) && flow->used > newest) {
			newest = flow->used;
			frontend = flow->frontend_addr;
			frontend_port = flow->frontend_port;
		}
	}
	bpf_spin_unlock(&flows->lock);
	if (!newest)
		return SOCK_UNKNOWN;
	if (frontend_port == *port && lb_addr_equal(&frontend, addr))
		return SOCK_DIRECT;
	*addr = frontend;
	*port = frontend_port;
	return SOCK_FRONTEND;
}

/* Replaces the sender of a datagram by the address that the process sent to. Returns 1 with *addr
 * and *port replaced, or 0 if the sender is no backend of this socket. For the socket's peer, the
 * record of the connect() that set the peer is used. For any other sender, the socket has no peer,
 * or got the datagram before it had that peer. Then the last used flow to the sender decides, and
 * without one the record of an earlier connect(). */
static __always_inline int sock_reply_restore(struct bpf_sock *sk, struct addr *addr, __be16 *port)
{
	enum sock_sender sender;
	struct sock_flow *last;

	if (sock_peer_is(sk, addr, *port))
		return sock_reply_of(sock_peer_find(sk), addr, port);
	sender = sock_reply_of_flows(sk, addr, port);
	if (sender != SOCK_UNKNOWN)
		return sender == SOCK_FRONTEND;
	last = bpf_sk_storage_get(&sock_peer, sk, NULL, 0);
	if (!last)
		return 0;
	return sock_reply_of(last, addr, port) ||
	       sock_reply_of(bpf_sk_storage_get(&sock_before, sk, NULL, 0), addr, port);
}
