// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* track.h: writes, updates and removes the entries of flows. It changes no packet.
 *
 * A flow's entries are written in this order: FLOW_KEY_OUT, which decides the client's inner port;
 * FLOW_KEY_IN of the client's packets; and FLOW_KEY_IN of the backend's replies to the SNAT port,
 * once the flow has one. An entry in `flows` takes precedence over one in `flows_new`: look-ups
 * try `flows` first. */
#pragma once

#include <linux/errno.h>

#include "direct.h"

/* Writes an entry to `flows` if the flow is confirmed, else to `flows_new`. Returns 0, or the
 * helper's error (-E2BIG: the map is full). */
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

/* Inserts an entry of an unconfirmed flow under a key that has none. Returns 0, or -1 if the key
 * has an entry. Callers have to know that `flows` has no entry of that key: another CPU may be
 * replacing that entry, and both would write the same key of `flows_new`. */
static __noinline int track_insert(const struct flow_key *key, const struct flow *flow)
{
	if (bpf_map_update_elem(&flows_new, key, flow, BPF_NOEXIST))
		return -1;
	/* track_move writes `flows` before it deletes from `flows_new`. So if a flow was confirmed
	 * between the caller's look-up and this insert, its entry is in `flows` now. */
	if (!bpf_map_lookup_elem(&flows, key))
		return 0;
	bpf_map_delete_elem(&flows_new, key);
	return -1;
}

/* Which flows may be replaced. */
enum track_replace {
	TRACK_OVER,       /* closed or expired ones, and one with the same client and frontend */
	TRACK_REUSABLE,  /* expired ones, and those whose port is reusable (track_is_reusable) */
};

/* Reports whether a flow's port is reusable: the backend no longer has the connection. That is so
 * after a reset, and after a close that the client began. If the backend closed first, it waits for
 * late packets (TIME_WAIT), and might mistake a new connection for the old one.
 *
 * The port of a half-open connection (unconfirmed and not local) is reusable after FLOW_TOUCH,
 * though the backend still has that connection. If another client gets the port, the backend's
 * answer to that client's SYN does not fit, so the client resets the old connection and repeats its
 * SYN. Otherwise a flood of SYNs with forged sources would occupy all ports for a minute. In UDP
 * nothing keeps a late answer from the wrong client. So a UDP flow's port is not reusable before
 * the flow expires. */
static __always_inline int track_is_reusable(const struct flow *flow, __u64 now)
{
	if (flow->protocol == IPPROTO_TCP && !(flow->flags & (FLOW_FLAG_CONFIRMED | FLOW_FLAG_LOCAL)) &&
	    (__s64)(now - flow->used) >= FLOW_TOUCH)
		return 1;
	return (flow->client_said | flow->backend_said) & FLOW_SAID_RST ||
	       (flow->client_said & FLOW_SAID_FIN && flow->backend_said & FLOW_SAID_FIN_LATER);
}

static __always_inline int track_may_replace(const struct flow *old, const struct flow *flow,
					     enum track_replace what)
{
	if (flow_is_expired(old, flow->used))
		return 1;
	if (what == TRACK_REUSABLE)
		return track_is_reusable(old, flow->used);
	return flow_is_closed(old) || flow_same_client(old, flow);
}

/* Replaces the entry of `key` with one of `flow`, if track_may_replace allows it. Two CPUs may find
 * the same old flow at once. Only the CPU that locks the key in `claims` replaces the entry, after
 * it has checked the entry again. Returns 0, or -1. */
static __noinline int track_replace(const struct flow_key *key, const struct flow *flow,
				    enum track_replace what)
{
	struct flow *old;
	__u8 mine = 1;
	int err = -1;

	if (bpf_map_update_elem(&claims, key, &mine, BPF_NOEXIST))
		return -1;
	old = flow_peek(key);
	if (!old || track_may_replace(old, flow, what)) {
		err = bpf_map_update_elem(&flows_new, key, flow, BPF_ANY) ? -1 : 0;
		bpf_map_delete_elem(&flows, key);
	}
	bpf_map_delete_elem(&claims, key);
	return err;
}

/* Inserts or refreshes a local flow (FLOW_FLAG_LOCAL): packets that arrive with this key are for
 * this node's stack. Returns 0, or -1 if the key remains another flow's. */
static __noinline int track_local(const struct flow_key *key, const struct flow *own)
{
	struct flow *old = flow_peek(key);

	if (!old)
		return track_insert(key, own);
	if (!(old->flags & FLOW_FLAG_LOCAL))
		return track_may_replace(old, own, TRACK_REUSABLE) ?
			       track_replace(key, own, TRACK_REUSABLE) : -1;
	if ((__s64)(own->used - old->used) >= FLOW_TOUCH)
		old->used = own->used;
	return 0;
}

/* Deletes an old flow's entry for replies to its SNAT port. That frees the port. */
static __noinline void track_drop_wire(const struct flow *old)
{
	struct flow_key key;
	struct flow *there;

	if (!old->snat_port)
		return;
	flow_key_wire(&key, old);
	there = flow_peek(&key);
	if (there && flow_same(there, old))
		track_delete(&key);
}

/* Inserts the flow's FLOW_KEY_OUT entry, or replaces another flow's where TRACK_OVER allows it.
 * Returns 0, or -1. */
static __always_inline int track_take_out(const struct flow_key *key, const struct flow *flow)
{
	struct flow *old = flow_peek(key);

	if (!old)
		return track_insert(key, flow);
	if (!track_may_replace(old, flow, TRACK_OVER))
		return -1;
	if (flow_same_client(old, flow))
		track_drop_wire(old);
	return track_replace(key, flow, TRACK_OVER);
}

/* Tries the i-th candidate for flow->inner_port. The first (i == 0) is the client's own port.
 * Neither another flow nor a direct connection may use the candidate between this client and this
 * backend: a client may use one port for two frontends that share a backend, and for the backend's
 * own address. Returns 1 if the flow's FLOW_KEY_OUT entry is inserted, else 0. */
static __always_inline int track_try_out(struct flow *flow, __u32 hash, __u32 i)
{
	struct flow_key key;

	flow->inner_port = i ? flow_snat_port(hash, i) : flow->client_port;
	/* Client and backend have one address: their ports must differ. */
	if (flow->inner_port == flow->backend_port && lb_addr_equal(&flow->client, &flow->backend))
		return 0;
	flow_key_out(&key, flow);
	if (track_take_out(&key, flow))
		return 0;
	/* Checked after the insert, so that a direct connection that is noted later finds the
	 * flow. */
	if ((!i && flow->flags & FLOW_FLAG_DIRECT) || !direct_is_there(flow))
		return 1;
	track_delete(&key);
	return 0;
}

/* Writes the client's FLOW_KEY_IN entry of a new flow, which has its FLOW_KEY_OUT entry already.
 * `found` says whether an earlier flow had that key. Returns 0, or -1 without room. */
static __noinline int track_begin(const struct flow *flow, int found)
{
	struct flow_key key;

	flow_key_client(&key, flow);
	if (bpf_map_update_elem(&flows_new, &key, flow, BPF_ANY))
		return -1;
	if (found)
		bpf_map_delete_elem(&flows, &key);
	return 0;
}

/* The bits of client_said and backend_said that a packet sets and clears. */
struct track_note {
	__u8 client_set, client_clear, backend_set, backend_clear;
};

/* Applies a note to an entry, or to a copy of one. An unchanged byte is not written, because
 * another CPU may note a packet of the other direction at the same time. */
static __always_inline void track_write(struct flow *to, const struct track_note *note, __u64 now)
{
	to->used = now;
	if (note->client_set | note->client_clear)
		to->client_said = (to->client_said & ~note->client_clear) | note->client_set;
	if (note->backend_set | note->backend_clear)
		to->backend_said = (to->backend_said & ~note->backend_clear) | note->backend_set;
}

/* Applies a note to one entry of a flow, and sets `used`. A lost entry is made again; an entry of
 * another flow is left alone. While another CPU confirms the flow (track_confirm), it may have
 * copied the entry to `flows` already. Then the copy gets the note as well. */
static __noinline void track_refresh(const struct flow_key *key, const struct flow *flow,
				     const struct track_note *note)
{
	struct flow *there = flow_peek(key);

	if (!there) {
		track_put(key, flow, BPF_NOEXIST);
		return;
	}
	if (!flow_same(there, flow))
		return;
	track_write(there, note, flow->used);
	if (there->flags & FLOW_FLAG_CONFIRMED)
		return;
	there = bpf_map_lookup_elem(&flows, key);
	if (there && flow_same(there, flow))
		track_write(there, note, flow->used);
}

/* Applies a note to the flow and to all of its entries. */
static __noinline void track_note(struct flow *flow, const struct track_note *note, __u64 now)
{
	struct flow_key key;

	track_write(flow, note, now);
	flow_key_out(&key, flow);
	track_refresh(&key, flow, note);
	flow_key_client(&key, flow);
	track_refresh(&key, flow, note);
	if (!flow->snat_port)
		return;
	flow_key_wire(&key, flow);
	track_refresh(&key, flow, note);
}

/* In bytes. TRACK_WINDOW: how far a side's sequence number can be ahead of the number that the
 * other side has acknowledged (a receive window). TRACK_SEGMENT: how long a packet can be. */
#define TRACK_WINDOW (1 << 24)
#define TRACK_SEGMENT (1 << 19)

/* Returns the last known sequence and acknowledgement numbers of the side opposite to `from`. They
 * are in the entry by which that side's packets are found. Zero: not known. */
static __always_inline struct tcp_point track_other(const struct flow *flow, enum flow_side from)
{
	int remapped = flow->flags & FLOW_FLAG_REMAPPED;
	struct tcp_point unknown = {};
	struct flow_key key;
	struct flow *there;

	if (from == FLOW_FROM_CLIENT && remapped)
		flow_key_wire(&key, flow);
	else if (from == FLOW_FROM_CLIENT || remapped)
		flow_key_out(&key, flow);
	else
		flow_key_client(&key, flow);
	there = flow_peek(&key);
	if (!there || !flow_same_ends(there, flow))
		return unknown;
	return from == FLOW_FROM_CLIENT ? there->backend_at : there->client_at;
}

/* Reports whether the numbers of a packet fit its established connection. The sequence number must
 * be within TRACK_WINDOW of the number that the other side last acknowledged. The acknowledged
 * number must be at most TRACK_WINDOW before the other side's last sequence number, and at most
 * TRACK_SEGMENT after it. track_point calls this for a packet whose numbers are far from the last
 * ones of its side. Returns 0 for a SYN, whose numbers are another connection's. Returns 1 for the
 * SYN-ACK that answers such a SYN, since the backend then has that other connection. Also returns 1
 * for an unconfirmed flow, and where the other side's numbers are not known. */
static __noinline int track_is_within(const struct flow *flow, const struct pkt *pkt,
				      enum flow_side from)
{
	struct tcp_point other;
	__u32 ahead, acked;

	if (!(flow->flags & FLOW_FLAG_CONFIRMED))
		return 1;
	if (pkt_is_syn(pkt))
		return 0;
	if (from == FLOW_FROM_BACKEND && pkt_is_syn_ack(pkt) &&
	    flow->client_said & (FLOW_SAID_SYN | FLOW_SAID_ASKED))
		return 1;
	other = track_other(flow, from);
	if (!(other.seq | other.ack))
		return 1;
	ahead = bpf_ntohl(pkt->at.seq) - bpf_ntohl(other.ack);
	acked = bpf_ntohl(pkt->at.ack) - bpf_ntohl(other.seq);
	return pkt->tcp_flags & TCP_ACK && ahead + TRACK_WINDOW <= 2 * TRACK_WINDOW &&
	       acked + TRACK_WINDOW <= TRACK_WINDOW + TRACK_SEGMENT;
}

/* Reports whether two numbers are at most one packet (TRACK_SEGMENT) apart. */
static __always_inline int track_is_near(__be32 a, __be32 b)
{
	return bpf_ntohl(a) - bpf_ntohl(b) + TRACK_SEGMENT <= 2 * TRACK_SEGMENT;
}

/* Notes a side's sequence and acknowledgement numbers in the entry by which its packet was found.
 * Packets can be forged, so only numbers that fit the connection are noted. After wrong numbers, a
 * genuine FIN or reset of the other side would not be believed (track_believes). */
static __always_inline void track_point(struct flow *entry, const struct flow *flow,
					const struct pkt *pkt, enum flow_side from)
{
	struct tcp_point *at = from == FLOW_FROM_CLIENT ? &entry->client_at : &entry->backend_at;

	if (pkt->protocol != IPPROTO_TCP || pkt->later_fragment || pkt->tcp_flags & TCP_RST)
		return;
	if ((track_is_near(pkt->at.seq, at->seq) && track_is_near(pkt->at.ack, at->ack)) ||
	    track_is_within(flow, pkt, from))
		*at = pkt->at;
}

/* Reports whether a FIN or a reset of an established connection is believed. A forged one has to
 * guess the sequence number. A reset is believed if its sequence number is exactly the one that the
 * other side expects (RFC 5961, 3.2). Within the window, a reset is believed if it acknowledges the
 * other side's last packet, as does a sender that gives up. A FIN has to be within both windows. A
 * reset with sequence number 0 is believed if the client has sent a SYN: a backend that does not
 * know the connection answers so (RFC 9293, 3.10.7.1). Returns 1 for an unconfirmed flow, and 0
 * where the other side's numbers are not known. */
static __noinline int track_believes(const struct flow *flow, const struct pkt *pkt, enum flow_side from)
{
	struct tcp_point other;
	__u32 ahead, acked;

	if (!(flow->flags & FLOW_FLAG_CONFIRMED))
		return 1;
	if (from == FLOW_FROM_BACKEND && flow->client_said & FLOW_SAID_ASKED && !pkt->at.seq &&
	    (pkt->tcp_flags & (TCP_RST | TCP_ACK)) == (TCP_RST | TCP_ACK))
		return 1;
	other = track_other(flow, from);
	if (!(other.seq | other.ack))
		return 0;
	ahead = bpf_ntohl(pkt->at.seq) - bpf_ntohl(other.ack);
	acked = bpf_ntohl(pkt->at.ack) - bpf_ntohl(other.seq);
	if (pkt->tcp_flags & TCP_RST && !ahead)
		return 1;
	if (!(pkt->tcp_flags & TCP_ACK) || ahead >= TRACK_WINDOW)
		return 0;
	if (pkt->tcp_flags & TCP_RST)
		return acked <= TRACK_SEGMENT;
	return acked + TRACK_WINDOW <= TRACK_WINDOW + TRACK_SEGMENT;
}

/* Returns the bits of enum flow_said that a FIN or a reset newly sets for its side, or 0 if it sets
 * none or is not believed. */
static __noinline __u8 track_end(const struct flow *flow, const struct pkt *pkt, enum flow_side from)
{
	__u8 said = from == FLOW_FROM_CLIENT ? flow->client_said : flow->backend_said;
	__u8 other = from == FLOW_FROM_CLIENT ? flow->backend_said : flow->client_said;
	__u8 end = 0;

	if (pkt->tcp_flags & TCP_FIN && !(said & FLOW_SAID_FIN))
		end = FLOW_SAID_FIN | (other & FLOW_SAID_FIN ? FLOW_SAID_FIN_LATER : 0);
	if (pkt->tcp_flags & TCP_RST && !(said & FLOW_SAID_RST))
		end |= FLOW_SAID_RST;
	return end && track_believes(flow, pkt, from) ? end : 0;
}

/* Bits that are set while the backend has not answered the client's SYNs on an established
 * connection. */
#define TRACK_ASKED (FLOW_SAID_ASKED | FLOW_SAID_ASKED_AGAIN)

/* Fills the note for a client's packet. A client can reuse its port while shunt still has the last
 * connection as half closed or established. The client's SYN is no proof that the last connection
 * has ended: the SYN can be forged, and a backend that still has the connection does not accept it.
 * So the SYN is only noted. */
static __always_inline void track_hear_client(const struct flow *flow, const struct pkt *pkt,
					      struct track_note *note, __u64 now)
{
	__u8 said = flow->client_said, set = 0;

	if (!pkt_is_syn(pkt))
		note->client_clear = said & (FLOW_SAID_SYN | TRACK_ASKED);
	else if (flow->flags & FLOW_FLAG_CONFIRMED)
		set = FLOW_SAID_ASKED;
	if (set & said && (__s64)(now - flow->used) >= FLOW_ANSWER)
		set |= FLOW_SAID_ASKED_AGAIN;
	if (pkt_is_syn(pkt) && (said | flow->backend_said) & FLOW_SAID_FIN)
		set |= FLOW_SAID_SYN;
	if (pkt->tcp_flags & (TCP_FIN | TCP_RST))
		set |= track_end(flow, pkt, FLOW_FROM_CLIENT);
	note->client_set = set & ~said;
}

/* Fills the note for a backend's packet. A SYN-ACK after the client's SYN on a half-closed
 * connection proves that a new connection has replaced the old one. Then the FINs and resets that
 * were noted of the old one are cleared. */
static __always_inline void track_hear_backend(const struct flow *flow, const struct pkt *pkt,
					       struct track_note *note)
{
	__u8 said = flow->backend_said, set = FLOW_SAID_ANYTHING;

	if (pkt_is_syn_ack(pkt) && flow->client_said & FLOW_SAID_SYN) {
		note->client_clear = flow->client_said & ~FLOW_SAID_SYN;
		note->backend_clear = said & ~FLOW_SAID_ANYTHING;
	} else {
		if (!(pkt->tcp_flags & TCP_RST))
			note->client_clear = flow->client_said & TRACK_ASKED;
		if (pkt->tcp_flags & (TCP_FIN | TCP_RST))
			set |= track_end(flow, pkt, FLOW_FROM_BACKEND);
	}
	note->backend_set = set & ~said;
}

/* Notes what a packet says of its connection, if that is new, or if nothing was noted for
 * FLOW_TOUCH. */
static __always_inline void track_hear(struct flow *flow, const struct pkt *pkt,
				       enum flow_side from, __u64 now)
{
	struct track_note note = {};

	if (from == FLOW_FROM_CLIENT)
		track_hear_client(flow, pkt, &note, now);
	else
		track_hear_backend(flow, pkt, &note);
	if (!(note.client_set | note.client_clear | note.backend_set | note.backend_clear)) {
		if ((__s64)(now - flow->used) < FLOW_TOUCH)
			return;
		/* This side still sends after its reset: the reset was not of this connection.
		 * Packets that were under way when the reset came arrive within FLOW_TOUCH. */
		if (pkt->tcp_flags & TCP_RST)
			;
		else if (from == FLOW_FROM_CLIENT)
			note.client_clear = flow->client_said & FLOW_SAID_RST;
		else
			note.backend_clear = flow->backend_said & FLOW_SAID_RST;
	}
	track_note(flow, &note, now);
}

/* Two functions: in one with the side as an argument, clang chooses the address of a note's byte
 * by arithmetic on pointers to the stack, which no verifier accepts. */
static __noinline void track_from_client(struct flow *flow, const struct pkt *pkt, __u64 now)
{
	track_hear(flow, pkt, FLOW_FROM_CLIENT, now);
}

static __noinline void track_from_backend(struct flow *flow, const struct pkt *pkt, __u64 now)
{
	track_hear(flow, pkt, FLOW_FROM_BACKEND, now);
}

/* Calls track_hear for a packet that can change the flow's state, or if `used` is older than
 * FLOW_TOUCH. Most packets cost only this check. */
static __always_inline void track_touch(struct flow *flow, const struct pkt *pkt,
					enum flow_side from, __u64 now)
{
	__u8 news = pkt->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST);

	if (from == FLOW_FROM_CLIENT)
		news |= flow->client_said & (FLOW_SAID_SYN | FLOW_SAID_ASKED);
	else
		news |= (flow->client_said & FLOW_SAID_ASKED) |
			(~flow->backend_said & FLOW_SAID_ANYTHING);
	if (!news && (__s64)(now - flow->used) < FLOW_TOUCH)
		return;
	if (from == FLOW_FROM_CLIENT)
		track_from_client(flow, pkt, now);
	else
		track_from_backend(flow, pkt, now);
}

/* Reports whether the client's FLOW_KEY_IN entry belongs to this flow, or is missing. The client
 * may have begun a newer flow, to another backend. A late packet of this flow must not change the
 * newer flow's entry. */
static __always_inline int track_is_clients(const struct flow_key *key, const struct flow *flow)
{
	struct flow *there = flow_peek(key);

	return !there || flow_same_ends(there, flow);
}

/* Reports whether the FLOW_KEY_OUT entry has the flow's client and frontend, or is missing.
 * Otherwise a newer flow has taken the entry, and the inner port with it. */
static __noinline int track_is_out(const struct flow *flow)
{
	struct flow_key key;
	struct flow *there;

	flow_key_out(&key, flow);
	there = flow_peek(&key);
	return !there || flow_same_client(there, flow);
}

/* Reports whether a client's packet proves that the client has received the backend's answer: the
 * packet is no SYN, and the backend has sent a packet. The backend's answer alone is no proof, as a
 * forged source address causes one too. */
static __always_inline int track_is_confirmation(const struct flow *flow, const struct pkt *pkt)
{
	return !(flow->flags & FLOW_FLAG_CONFIRMED) && flow->backend_said & FLOW_SAID_ANYTHING &&
	       !pkt_is_syn(pkt);
}

/* The most sequence numbers that a SYN and its data can occupy. */
#define TRACK_SYN_SIZE (1 << 16)

/* Reports whether a TCP packet that leaves is the backend's answer to the flow's SYN: a SYN-ACK or
 * a reset that acknowledges the SYN. Any other packet is of a direct connection between the same
 * ends whose note is missing: a backend with such a connection answers a SYN with an ACK (RFC 9293,
 * 3.10.7.4). `entry` is the entry by which the packet was found. Returns 1 for UDP, and for a flow
 * that is confirmed or whose backend has answered. */
static __always_inline int track_is_answer(const struct flow *entry, const struct flow *flow,
					   const struct pkt *pkt)
{
	__be32 asked;

	if (flow->protocol != IPPROTO_TCP || flow->flags & FLOW_FLAG_CONFIRMED ||
	    flow->backend_said & FLOW_SAID_ANYTHING)
		return 1;
	if (!(pkt->tcp_flags & TCP_ACK) || !(pkt->tcp_flags & (TCP_SYN | TCP_RST)))
		return 0;
	asked = entry->client_at.seq;
	return !asked || bpf_ntohl(pkt->at.ack) - bpf_ntohl(asked) - 1 < TRACK_SYN_SIZE;
}

/* Leaves the port at the backend to a direct connection between the same ends: notes the direct
 * connection and removes the flow. The client's next SYN then gets another port. */
static __noinline void track_yield(const struct flow *flow, __u64 now)
{
	struct flow_key key;

	direct_key(&key, flow);
	direct_note(&key, now);
	flow_key_out(&key, flow);
	track_delete(&key);
	flow_key_client(&key, flow);
	if (track_is_clients(&key, flow))
		track_delete(&key);
}

/* Removes the flow of a direct connection that has ended. */
static __noinline void track_drop_direct(const struct flow *flow)
{
	struct flow_key key;

	track_drop_wire(flow);
	if (track_is_out(flow)) {
		flow_key_out(&key, flow);
		track_delete(&key);
	}
	flow_key_client(&key, flow);
	track_delete(&key);
}

/* Reports whether the flow's SNAT port is still its own, or unused. If the client completed the
 * handshake late, another flow may have taken the port. */
static __noinline int track_is_wire(const struct flow *flow)
{
	struct flow_key key;
	struct flow *there;

	flow_key_wire(&key, flow);
	there = flow_peek(&key);
	return !there || flow_same(there, flow);
}

/* Writes a flow's SNAT address and SNAT port to an entry that has none yet. The entry is changed in
 * place: that costs a fifth of an update, and retains notes that were written meanwhile. If an
 * entry of `flows_new` is evicted and reused for another flow at this very moment, that flow gets a
 * SNAT port that is not its own. It finds that out, and chooses another (snat_hold). Returns 0, or
 * the helper's error. */
static __always_inline long track_put_snat(const struct flow_key *key, const struct flow *flow)
{
	struct flow *there;

	if (flow->flags & FLOW_FLAG_CONFIRMED)
		there = bpf_map_lookup_elem(&flows, key);
	else
		there = bpf_map_lookup_elem(&flows_new, key);
	if (!there || !flow_same_ends(there, flow))
		return track_put(key, flow, BPF_ANY);
	there->snat = flow->snat;
	there->snat_port = flow->snat_port;
	return 0;
}

/* Moves a flow's entry from `flows_new` to `flows`, with the notes that are written to the old
 * entry meanwhile. Returns 0, or -1 without room. */
static __noinline int track_move(const struct flow_key *key, const struct flow *flow)
{
	struct flow *old = bpf_map_lookup_elem(&flows_new, key), *there;

	if (bpf_map_update_elem(&flows, key, flow, BPF_ANY))
		return -1;
	there = bpf_map_lookup_elem(&flows, key);
	if (there && old && flow_same_ends(old, flow)) {
		there->client_at = old->client_at;
		there->backend_at = old->backend_at;
		there->client_said |= old->client_said;
		there->backend_said |= old->backend_said;
	}
	bpf_map_delete_elem(&flows_new, key);
	return 0;
}

/* Confirms a flow: its client has answered the backend. From now on its entries are removed only
 * when the flow ends or expires, or when room is needed. The client's entry is moved first: if
 * there is no room for it, all entries remain in `flows_new`. Returns 0, or -1 without room. */
static __noinline int track_confirm(struct flow *flow)
{
	struct flow_key key;

	if (!track_is_out(flow))
		return 0;
	flow_key_client(&key, flow);
	if (!track_is_clients(&key, flow))
		return 0;
	if (flow->snat_port && !track_is_wire(flow))
		flow->snat_port = 0;
	flow->flags |= FLOW_FLAG_CONFIRMED;
	if (track_move(&key, flow)) {
		flow->flags &= ~FLOW_FLAG_CONFIRMED;
		return -1;
	}
	flow_key_out(&key, flow);
	track_move(&key, flow);
	if (!flow->snat_port)
		return 0;
	flow_key_wire(&key, flow);
	track_move(&key, flow);
	return 0;
}

/* Reports whether a TCP client's packet acknowledges the backend's last packet, to within
 * TRACK_SEGMENT. A sender with a forged source address does not know the backend's sequence number.
 * Returns 0 for a SYN. A repeated SYN may be of another connection. While the backend has not
 * answered, its numbers replace those of the first, since the answer has to acknowledge the last
 * SYN. */
static __noinline int track_acknowledges(const struct flow *flow, const struct pkt *pkt)
{
	struct flow_key key;
	struct flow *there;
	__u32 acked;

	flow_key_out(&key, flow);
	there = flow_peek(&key);
	if (!there || !flow_same_ends(there, flow))
		return 0;
	if (pkt_is_syn(pkt)) {
		if (!(flow->backend_said & FLOW_SAID_ANYTHING))
			there->client_at = pkt->at;
		return 0;
	}
	acked = bpf_ntohl(pkt->at.ack) - bpf_ntohl(there->backend_at.seq);
	return pkt->tcp_flags & TCP_ACK && there->backend_at.seq | there->backend_at.ack &&
	       acked + TRACK_SEGMENT <= 2 * TRACK_SEGMENT;
}

/* Handles a client's packet of an unconfirmed flow. Returns 0, or -1 where it confirms the flow
 * and there is no room. */
static __always_inline int track_advance(struct flow *flow, const struct pkt *pkt)
{
	if (pkt->protocol == IPPROTO_TCP && !track_acknowledges(flow, pkt))
		return 0;
	return track_is_confirmation(flow, pkt) ? track_confirm(flow) : 0;
}
