/* track.h: keeps the entries of flows. Knows nothing of how packets are changed.
 *
 * A flow's entries are written in this order: what the stack sees (it decides
 * which port the client has there), what the client's packets look for, and what
 * replies of another node look for, once there is a source. An entry in `flows`
 * replaces one in `flows_new`, which is looked at second. */
#pragma once

#include <linux/errno.h>

#include "flow.h"

/* Writes an entry to the map where the flow belongs. Returns 0, or what the kernel
 * says (-E2BIG: full). */
static __always_inline long track_put(const struct flow_key *key, const struct flow *flow,
				      __u64 flags)
{
	if (flow->flags & FLOW_FLAG_CONFIRMED)
		return bpf_map_update_elem(&flows, key, flow, flags);
	return bpf_map_update_elem(&flows_new, key, flow, flags);
}

static __always_inline void track_delete(const struct flow_key *key)
{
	bpf_map_delete_elem(&flows, key);
	bpf_map_delete_elem(&flows_new, key);
}

/* Claims key for a flow that is not confirmed: a place that is free, or whose flow
 * may be `replaced`. Returns 0, or -1 where somebody else has it. */
static __noinline int track_claim(const struct flow_key *key, const struct flow *flow,
				  int replaced)
{
	if (replaced) {
		bpf_map_update_elem(&flows_new, key, flow, BPF_ANY);
		bpf_map_delete_elem(&flows, key);
		return 0;
	}
	if (bpf_map_update_elem(&flows_new, key, flow, BPF_NOEXIST))
		return -1;
	/* A flow is in `flows` before it leaves `flows_new`: if it was confirmed
	 * between our looking there and our writing, it shows now. */
	if (!bpf_map_lookup_elem(&flows, key))
		return 0;
	bpf_map_delete_elem(&flows_new, key);
	return -1;
}

/* The port of an earlier connection between the same ends is free again. */
static __noinline void track_drop_wire(const struct flow *old)
{
	struct flow_key key;
	struct flow *there;

	if (!old->node_port)
		return;
	flow_key_wire(&key, old);
	there = flow_peek(&key);
	if (there && flow_same(there, old))
		track_delete(&key);
}

/* Finds the client a port between itself and the backend at which no other flow of
 * it is: its own, if it can be. Two frontends may share a backend, and the client
 * may use one port for both. Fills flow->inner_port and claims the key. Returns 0,
 * or -1 where none was found. */
static __noinline int track_claim_out(struct flow *flow, __u32 hash)
{
	struct flow_key key;
	struct flow *old;
	int ours;

	for (int i = 0; i < FLOW_PORT_TRIES; i++) {
		flow->inner_port = i ? flow_source_port(hash + i) : flow->client_port;
		/* Through its own backend's port nobody speaks to himself. */
		if (flow->inner_port == flow->backend_port &&
		    lb_addr_equal(&flow->client, &flow->backend))
			continue;
		flow_key_out(&key, flow);
		old = flow_peek(&key);
		ours = old && flow_same_client(old, flow);
		if (old && !ours && !flow_is_closed(old) && !flow_is_expired(old, flow->used))
			continue;
		if (ours)
			track_drop_wire(old);
		if (!track_claim(&key, flow, old != NULL))
			return 0;
	}
	return -1;
}

/* Remembers a new flow. Returns 0, or -1 without room. */
static __noinline int track_begin(struct flow *flow, __u32 hash)
{
	struct flow_key key;

	if (track_claim_out(flow, hash))
		return -1;
	flow_key_client(&key, flow);
	if (bpf_map_update_elem(&flows_new, &key, flow, BPF_ANY))
		return -1;
	bpf_map_delete_elem(&flows, &key);
	return 0;
}

/* One entry of a flow that was used now: made anew if it was lost. An entry of
 * another flow is let alone. */
static __noinline void track_refresh(const struct flow_key *key, const struct flow *flow)
{
	struct flow *there = flow_peek(key);

	if (!there) {
		track_put(key, flow, BPF_NOEXIST);
		return;
	}
	if (!flow_same(there, flow))
		return;
	there->used = flow->used;
	there->client_said = flow->client_said;
	there->backend_said = flow->backend_said;
}

/* Notes in all entries what a flow's packet says, if that is news, or if nothing
 * was noted for a while. */
static __noinline void track_touch(struct flow *flow, const struct pkt *pkt, enum flow_side from,
				   __u64 now)
{
	__u8 said = from == FLOW_FROM_CLIENT ? flow->client_said : flow->backend_said;
	__u8 other = from == FLOW_FROM_CLIENT ? flow->backend_said : flow->client_said;
	__u8 was = said;
	struct flow_key key;

	if (pkt->tcp_flags & TCP_FIN && !(said & FLOW_SAID_FIN))
		said |= FLOW_SAID_FIN | (other & FLOW_SAID_FIN ? FLOW_SAID_FIN_LATER : 0);
	if (pkt->tcp_flags & TCP_RST)
		said |= FLOW_SAID_RST;
	if (said == was && (__s64)(now - flow->used) < FLOW_TOUCH)
		return;
	/* Whoever goes on after a reset did not believe it: it was not of this
	 * connection. What was under way when it came is here within FLOW_TOUCH. */
	if (said == was && !(pkt->tcp_flags & TCP_RST))
		said &= ~FLOW_SAID_RST;
	if (from == FLOW_FROM_CLIENT)
		flow->client_said = said;
	else
		flow->backend_said = said;
	flow->used = now;
	flow_key_out(&key, flow);
	track_refresh(&key, flow);
	flow_key_client(&key, flow);
	track_refresh(&key, flow);
	if (!flow->node_port)
		return;
	flow_key_wire(&key, flow);
	track_refresh(&key, flow);
}

/* Whether the client's packets follow this flow, or may: it can have gone on to
 * another backend, and what the first one says late is no news then. */
static __always_inline int track_is_clients(const struct flow_key *key, const struct flow *flow)
{
	struct flow *there = flow_peek(key);

	return !there || flow_same_ends(there, flow);
}

/* Whether the flow's place before the stack is still its own: where the client had
 * its port from this one, it has the same for a newer flow by now. */
static __noinline int track_is_out(const struct flow *flow)
{
	struct flow_key key;
	struct flow *there;

	flow_key_out(&key, flow);
	there = flow_peek(&key);
	return !there || flow_same_client(there, flow);
}

/* The backend has answered: from now on nobody but the flow's own end, its time or
 * want of room removes it. The client's entry goes first: if that has no room, all
 * stay where they are. Returns 0, or -1 without room. */
static __noinline int track_confirm(struct flow *flow)
{
	struct flow_key key;

	flow_key_client(&key, flow);
	if (!track_is_clients(&key, flow))
		return 0;
	flow->flags |= FLOW_FLAG_CONFIRMED;
	if (bpf_map_update_elem(&flows, &key, flow, BPF_ANY)) {
		flow->flags &= ~FLOW_FLAG_CONFIRMED;
		return -1;
	}
	bpf_map_delete_elem(&flows_new, &key);
	flow_key_out(&key, flow);
	if (!bpf_map_update_elem(&flows, &key, flow, BPF_ANY))
		bpf_map_delete_elem(&flows_new, &key);
	if (!flow->node_port)
		return 0;
	flow_key_wire(&key, flow);
	if (!bpf_map_update_elem(&flows, &key, flow, BPF_ANY))
		bpf_map_delete_elem(&flows_new, &key);
	return 0;
}
