// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* sock.h: what a socket was told and what it really speaks to. Knows socket
 * storage; knows neither services nor how a hook spells an address. */
#pragma once

#include "lb.h"
#include "maps.h"

#define SOCK_AF_INET 2

/* Words of a sock_flow for a choice. */
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

/* The record of the flow's backend; NULL if the endpoint is gone. The record may be another
 * endpoint's of the same service by now: its id alone does not tell. */
static __always_inline struct backend *sock_flow_backend(const struct sock_flow *flow)
{
	struct backend *be = lb_backend(flow->backend_id, flow->service_id);
	int same = be && be->port == flow->backend_port &&
		   lb_addr_equal(&be->addr, &flow->backend_addr);

	return same ? be : NULL;
}

/* Whether the flow's backend still serves. */
static __always_inline int sock_flow_serves(const struct sock_flow *flow)
{
	struct backend *be = sock_flow_backend(flow);

	return be && !(be->flags & BACKEND_FLAG_UNREADY);
}

/* Whether the UDP flow's address still leads to its service. */
static __always_inline int sock_flow_leads(const struct sock_flow *flow, int own_netns)
{
	struct frontend_key key = { .addr = flow->frontend_addr, .port = flow->frontend_port,
				    .protocol = IPPROTO_UDP };

	return lb_leads(&key, own_netns, flow->service_id);
}

/* Whether a datagram of the flow may go where the one before went. */
static __always_inline int sock_flow_holds(const struct sock_flow *flow, int own_netns)
{
	return sock_flow_serves(flow) && sock_flow_leads(flow, own_netns);
}

/* Whether the kernel has this for the socket's peer. */
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

/* What connect() was told of the peer that the socket has. NULL: nothing, or it has none. */
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

/* The backend of the UDP socket's peer, if dst is what it was connected to and that
 * holds. Returns 1 with *out filled. Else *out has the address and port of the peer's backend
 * (stays_with), zero where the flow is not to dst. */
static __always_inline int sock_peer_keep(struct bpf_sock *sk, const struct frontend_key *dst,
					  int own_netns, struct lb_choice *out)
{
	struct sock_flow *peer = sock_peer_find(sk);

	if (!peer || !sock_flow_is_to(peer, dst))
		return 0;
	sock_flow_choice(peer, out);
	return sock_flow_holds(peer, own_netns);
}

/* The same for a UDP socket whose peer was taken away (connect() to AF_UNSPEC): its flow to
 * dst goes on. An endpoint that *out has is of a later flow, and stays unless this one holds. */
static __always_inline int sock_peer_resume(struct bpf_sock *sk, const struct frontend_key *dst,
					    int own_netns, struct lb_choice *out)
{
	struct sock_flow *peer = bpf_sk_storage_get(&sock_peer, sk, NULL, 0);

	int holds;

	if (!peer || !sock_flow_is_to(peer, dst))
		return 0;
	holds = sock_flow_holds(peer, own_netns);
	if (holds || !out->port)
		sock_flow_choice(peer, out);
	return holds;
}

/* Before the record of the last connect() is overwritten: keep it if it is of the peer that
 * the socket has, which it keeps if this connect() fails. If both have one backend, nobody can
 * tell them apart later, and the new one counts. Returns 0, or -1 without memory. */
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

/* Remember what a socket is connected to. Returns 0, or -1 without memory. */
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
	*peer = flow; /* it may have been there: a UDP socket can connect again */
	return err;
}

/* The socket connects to an address that is no service's. Records of another backend are not
 * believed once it has that peer; one of this backend would be. */
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

/* The backend of the unconnected socket's flow to dst, if it has one that holds. Returns 1 with
 * *out filled. Else *out has the address and port of the flow's backend (stays_with), and is left
 * as it is where there is no flow to dst. */
static __always_inline int sock_flow_keep(struct bpf_sock *sk, const struct frontend_key *dst,
					  int own_netns, struct lb_choice *out)
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
	return sock_flow_holds(&found, own_netns); /* no helper under the lock */
}

/* Whether this socket's datagrams to another frontend go to the same backend
 * already: its replies could then not be told apart. */
static __always_inline int sock_flow_taken(struct bpf_sock *sk, const struct frontend_key *dst,
					   const struct lb_choice *to)
{
	struct sock_flows *flows = bpf_sk_storage_get(&sock_flows, sk, NULL, 0);
	int taken = 0;

	if (!flows)
		return 0;
	bpf_spin_lock(&flows->lock);
	for (int i = 0; i < SOCK_FLOWS; i++) {
		struct sock_flow *flow = &flows->flow[i];

		if (sock_flow_is_from(flow, &to->addr, to->port) && !sock_flow_is_to(flow, dst)) {
			taken = 1;
			break;
		}
	}
	bpf_spin_unlock(&flows->lock);
	return taken;
}

/* The place for a new flow to dst: its own, or that of one that was not used
 * lately. Looking for the very oldest would have the verifier follow every order
 * of sixteen ages (6.18: over a million instructions); a hand that goes round and
 * passes over what is in use is a clock instead (second chance), and one step of
 * it is like the other. Call with the lock held. */
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

/* Remember an unconnected socket's flow. Returns 0, or -1 without memory. */
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

/* Whether the unconnected socket has a record of that backend. */
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

/* A datagram of an unconnected socket goes to an address that is no frontend's. If that is a
 * backend of the socket, what comes from there answers this datagram, until one is sent to the
 * frontend again: a flow of which the frontend is the backend itself says so. */
static __always_inline void sock_flow_direct(struct bpf_sock *sk, const struct frontend_key *dst)
{
	struct lb_choice self = { .addr = dst->addr, .port = dst->port };

	if (!sk->dst_port && sock_knows(sk, &dst->addr, dst->port))
		sock_flow_store(sk, dst, &self);
}

/* The frontend of a connect() that led to the sender. Returns 1 with *addr and *port
 * replaced. */
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

/* The frontend of the flow of an unconnected socket that led to the sender. Where two
 * frontends share the backend, it is the one that was written to last. Returns SOCK_FRONTEND
 * with *addr and *port replaced. */
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

/* What the socket's owner calls the sender of a datagram. Returns 1 with *addr and *port
 * replaced, 0 where the sender is no backend of this socket. A datagram of the socket's peer
 * answers what the peer was connected by. Others came before the socket had that peer, or it has
 * none: then what it wrote last counts, and after that an earlier connect(). */
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
