/* sock.h: what a socket was told and what it really speaks to. Knows socket
 * storage; knows neither services nor how a hook spells an address. */
#pragma once

#include "lb.h"
#include "maps.h"

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

/* Whether the flow's backend still serves. The record may be another endpoint's of
 * the same service by now: its id alone does not tell. Id 0, which is nobody's, is
 * in the flow of an address that is not translated. */
static __always_inline int sock_flow_serves(const struct sock_flow *flow)
{
	struct backend *be;

	if (!flow->backend_id)
		return 1;
	be = lb_backend(flow->backend_id, flow->service_id);
	return be && be->port == flow->backend_port && lb_addr_equal(&be->addr, &flow->backend_addr);
}

/* Whether the UDP flow's address still leads to its service. */
static __always_inline int sock_flow_leads(const struct sock_flow *flow, int own_netns)
{
	struct frontend_key key = { .addr = flow->frontend_addr, .port = flow->frontend_port,
				    .protocol = IPPROTO_UDP };

	return !flow->backend_id || lb_leads(&key, own_netns, flow->service_id);
}

/* Whether a datagram of the flow may go where the one before went. */
static __always_inline int sock_flow_holds(const struct sock_flow *flow, int own_netns)
{
	return sock_flow_serves(flow) && sock_flow_leads(flow, own_netns);
}

/* The backend that the connected UDP socket's peer stands for, if dst is what it
 * was connected to and that holds. Returns 1 with *out filled. */
static __always_inline int sock_peer_keep(struct bpf_sock *sk, const struct frontend_key *dst,
					  int own_netns, struct lb_choice *out)
{
	struct sock_flow *peer = bpf_sk_storage_get(&sock_peer, sk, NULL, 0);

	if (!peer || !sock_flow_is_to(peer, dst) || !sock_flow_holds(peer, own_netns))
		return 0;
	sock_flow_choice(peer, out);
	return 1;
}

/* Remember a connected socket's flow. Returns 0, or -1 without memory. */
static __always_inline int sock_peer_store(struct bpf_sock *sk, const struct frontend_key *dst,
					   const struct lb_choice *to)
{
	struct sock_flow flow = { .used = 1 };
	struct sock_flow *peer;

	sock_flow_fill(&flow, dst, to);
	peer = bpf_sk_storage_get(&sock_peer, sk, &flow, BPF_SK_STORAGE_GET_F_CREATE);
	if (!peer)
		return -1;
	*peer = flow; /* it may have been there: a UDP socket can connect again */
	return 0;
}

/* The socket connects to somebody that is not ours: what it had is over. */
static __always_inline void sock_peer_forget(struct bpf_sock *sk)
{
	struct sock_flow *peer = bpf_sk_storage_get(&sock_peer, sk, NULL, 0);

	if (peer)
		peer->used = 0;
}

/* The backend of the unconnected socket's flow to dst, if it has one that holds.
 * Returns 1 with *out filled. */
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
	if (!found.used || !sock_flow_holds(&found, own_netns)) /* no helper under the lock */
		return 0;
	sock_flow_choice(&found, out);
	return 1;
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

/* What the socket's owner calls the sender of a datagram. Returns 1 with *addr
 * and *port replaced, 0 where the sender is no backend of this socket. Where two
 * frontends share the backend, it is the one that was written to last. */
static __always_inline int sock_reply_restore(struct bpf_sock *sk, struct addr *addr, __be16 *port)
{
	struct sock_flow *peer = bpf_sk_storage_get(&sock_peer, sk, NULL, 0);
	struct addr frontend = {};
	struct sock_flows *flows;
	__be16 frontend_port = 0;
	__u32 newest = 0;

	if (peer && sock_flow_is_from(peer, addr, *port)) {
		*port = peer->frontend_port;
		*addr = peer->frontend_addr;
		return 1;
	}
	flows = bpf_sk_storage_get(&sock_flows, sk, NULL, 0);
	if (!flows)
		return 0;
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
		return 0;
	*addr = frontend;
	*port = frontend_port;
	return 1;
}
