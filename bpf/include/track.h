// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* track.h: keeps the entries of flows. Knows nothing of how packets are changed.
 *
 * A flow's entries are written in this order: what the stack sees (it decides
 * which port the client has there), what the client's packets look for, and what
 * replies of another node look for, once there is a source. An entry in `flows`
 * replaces one in `flows_new`, which is looked at second. */
#pragma once

#include <linux/errno.h>

#include "direct.h"

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

/* Claims a place that was found free, for a flow that is not confirmed. Returns 0, or -1
 * where somebody else has it. Where `flows` has somebody, it must not be tried: another
 * CPU may be replacing him, and would find us there. */
static __noinline int track_claim(const struct flow_key *key, const struct flow *flow)
{
	if (bpf_map_update_elem(&flows_new, key, flow, BPF_NOEXIST))
		return -1;
	/* A flow is in `flows` before it leaves `flows_new`: if it was confirmed
	 * between our looking there and our writing, it shows now. */
	if (!bpf_map_lookup_elem(&flows, key))
		return 0;
	bpf_map_delete_elem(&flows_new, key);
	return -1;
}

/* Which flows may be replaced. */
enum track_replace {
	TRACK_OVER,       /* such that are over, or the same client's same connection */
	TRACK_FORGOTTEN,  /* such that the backend has forgotten */
};

/* A backend forgets a connection that its client ended first, or that was reset;
 * where it ended first, it waits for late packets (TIME_WAIT) and might take a new
 * connection for the old one. One that is half open it does not forget, but its
 * answer to another's SYN makes that one's client reset it, and try again: a flood
 * with false sources must not keep all ports for a minute. UDP has nothing that
 * would keep a late answer from the wrong client. */
static __always_inline int track_is_forgotten(const struct flow *flow, __u64 now)
{
	if (flow->protocol == IPPROTO_TCP && !(flow->flags & (FLOW_FLAG_CONFIRMED | FLOW_FLAG_OWN)) &&
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
	if (what == TRACK_FORGOTTEN)
		return track_is_forgotten(old, flow->used);
	return flow_is_closed(old) || flow_same_client(old, flow);
}

/* Claims a place from the flow that has it, if that may be replaced. Two CPUs may
 * find the same old flow at once: the one whose key is in `claims` looks again, and
 * no other replaces it meanwhile. Returns 0, or -1. */
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

/* Notes that what comes back is for nobody but this node's stack (FLOW_FLAG_OWN). Returns
 * 0, or -1 where a flow has that place. */
static __noinline int track_own(const struct flow_key *key, const struct flow *own)
{
	struct flow *old = flow_peek(key);

	if (!old)
		return track_claim(key, own);
	if (!(old->flags & FLOW_FLAG_OWN))
		return track_may_replace(old, own, TRACK_FORGOTTEN) ?
			       track_replace(key, own, TRACK_FORGOTTEN) : -1;
	if ((__s64)(own->used - old->used) >= FLOW_TOUCH)
		old->used = own->used;
	return 0;
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

/* Takes the flow's place before the stack, if it can be had from who has it. Returns 0,
 * or -1. */
static __always_inline int track_take_out(const struct flow_key *key, const struct flow *flow)
{
	struct flow *old = flow_peek(key);

	if (!old)
		return track_claim(key, flow);
	if (!track_may_replace(old, flow, TRACK_OVER))
		return -1;
	if (flow_same_client(old, flow))
		track_drop_wire(old);
	return track_replace(key, flow, TRACK_OVER);
}

/* Tries the i-th port for the client between itself and the backend: its own is the first. No other
 * flow may have it there, and no connection without a flow: two frontends may share a backend, and
 * the client may use one port for both, and for the backend itself. Sets flow->inner_port. Returns
 * whether the flow's FLOW_KEY_OUT entry is claimed. */
static __always_inline int track_try_out(struct flow *flow, __u32 hash, __u32 i)
{
	struct flow_key key;

	flow->inner_port = i ? flow_source_port(hash, i) : flow->client_port;
	/* A backend that is its own client can't use the backend's port for both ends. */
	if (flow->inner_port == flow->backend_port && lb_addr_equal(&flow->client, &flow->backend))
		return 0;
	flow_key_out(&key, flow);
	if (track_take_out(&key, flow))
		return 0;
	/* After the claim: a connection that is noted later finds the flow. */
	if ((!i && flow->flags & FLOW_FLAG_DIRECT) || !direct_is_there(flow))
		return 1;
	track_delete(&key);
	return 0;
}

/* Adds the FLOW_KEY_IN entry of a new flow that has claimed its other one. `found` says whether its
 * client had one. Returns 0, or -1 without room. */
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

/* What a packet changes in what is noted of both sides: bits. */
struct track_note {
	__u8 client_set, client_clear, backend_set, backend_clear;
};

/* Notes in an entry, or a copy. Of a byte only what changes is written: both directions' packets
 * may note something at once. */
static __always_inline void track_write(struct flow *to, const struct track_note *note, __u64 now)
{
	to->used = now;
	if (note->client_set | note->client_clear)
		to->client_said = (to->client_said & ~note->client_clear) | note->client_set;
	if (note->backend_set | note->backend_clear)
		to->backend_said = (to->backend_said & ~note->backend_clear) | note->backend_set;
}

/* One entry of a flow that was used now: made anew if it was lost. An entry of another flow is
 * let alone. While the flow is confirmed (track_confirm), the entry that was found may have been
 * copied to `flows` already: then the copy gets the note as well. */
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

/* Notes in all entries what a packet changes. */
static __noinline void track_note(struct flow *flow, const struct track_note *note, __u64 now)
{
	struct flow_key key;

	track_write(flow, note, now);
	flow_key_out(&key, flow);
	track_refresh(&key, flow, note);
	flow_key_client(&key, flow);
	track_refresh(&key, flow, note);
	if (!flow->node_port)
		return;
	flow_key_wire(&key, flow);
	track_refresh(&key, flow, note);
}

/* So far can a side be ahead of what the other has acknowledged: what a receive window is. And
 * so many bytes can the other's last packet have. */
#define TRACK_WINDOW (1 << 24)
#define TRACK_SEGMENT (1 << 19)

/* Returns the point of the other side than `from`, from the entry that its packets are found by, or
 * zero where it is not known. */
static __always_inline struct tcp_point track_other(const struct flow *flow, enum flow_side from)
{
	int displaced = flow->flags & FLOW_FLAG_DISPLACED;
	struct tcp_point unknown = {};
	struct flow_key key;
	struct flow *there;

	if (from == FLOW_FROM_CLIENT && displaced)
		flow_key_wire(&key, flow);
	else if (from == FLOW_FROM_CLIENT || displaced)
		flow_key_out(&key, flow);
	else
		flow_key_client(&key, flow);
	there = flow_peek(&key);
	if (!there || !flow_same_ends(there, flow))
		return unknown;
	return from == FLOW_FROM_CLIENT ? there->backend_at : there->client_at;
}

/* Whether a packet of an established connection, whose numbers are far from those of its side's last
 * one, is within both windows of what the other side has shown. A SYN never is: its numbers are
 * another connection's. The SYN-ACK that follows shows that the backend has that other one. */
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

/* Whether a number is at most one packet's bytes from another. */
static __always_inline int track_is_near(__be32 a, __be32 b)
{
	return bpf_ntohl(a) - bpf_ntohl(b) + TRACK_SEGMENT <= 2 * TRACK_SEGMENT;
}

/* Notes where a side is, in the entry that its packet was found by. Anybody can send a packet with
 * the side's address: its numbers are noted only if they can be the connection's, or the other
 * side's end would not be believed afterwards. */
static __always_inline void track_point(struct flow *entry, const struct flow *flow,
					const struct pkt *pkt, enum flow_side from)
{
	struct tcp_point *at = from == FLOW_FROM_CLIENT ? &entry->client_at : &entry->backend_at;

	if (pkt->protocol != IPPROTO_TCP || pkt->piece || pkt->tcp_flags & TCP_RST)
		return;
	if ((track_is_near(pkt->at.seq, at->seq) && track_is_near(pkt->at.ack, at->ack)) ||
	    track_is_within(flow, pkt, from))
		*at = pkt->at;
}

/* Whether the end of an established connection is to be believed. Anybody can send a FIN or a
 * reset with the client's address, but has to guess where the connection is: a reset has to be
 * at the very byte that the other side expects (RFC 5961, 3.2), or within the window and with
 * an acknowledgement of the other's last packet, as from a sender that gives up; a FIN within
 * both windows. A backend that knows nothing of the connection resets a SYN with number 0 (RFC
 * 9293, 3.10.7.1). */
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

/* Returns what a packet says of its side's end that is news and to be believed. */
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

/* The client's SYNs on an established connection that the backend has not answered yet. */
#define TRACK_ASKED (FLOW_SAID_ASKED | FLOW_SAID_ASKED_AGAIN)

/* What a client's packet changes. A client can use its port again while the flow of the last
 * connection is half closed, or established as far as we know. Its SYN alone proves nothing:
 * anybody can send one, and a backend that still has the connection does not accept it. */
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

/* What a backend's packet changes. Its SYN-ACK after a SYN on a half-closed connection proves
 * that a new one has replaced that, of whose end nothing is kept. */
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

/* Notes what a packet says, if that is news, or if nothing was noted for a while. */
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
		/* A side that goes on after a reset did not believe it: it was not of this
		 * connection. What was under way when it came is here within FLOW_TOUCH. */
		if (pkt->tcp_flags & TCP_RST)
			;
		else if (from == FLOW_FROM_CLIENT)
			note.client_clear = flow->client_said & FLOW_SAID_RST;
		else
			note.backend_clear = flow->backend_said & FLOW_SAID_RST;
	}
	track_note(flow, &note, now);
}

/* Two functions: in one that is told the side, clang chooses the address of a note's byte by
 * arithmetic on pointers to the stack, which no verifier lets pass. */
static __noinline void track_from_client(struct flow *flow, const struct pkt *pkt, __u64 now)
{
	track_hear(flow, pkt, FLOW_FROM_CLIENT, now);
}

static __noinline void track_from_backend(struct flow *flow, const struct pkt *pkt, __u64 now)
{
	track_hear(flow, pkt, FLOW_FROM_BACKEND, now);
}

/* track_hear, for the packets that can be news: most cannot, and cost no more than to see that. */
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

/* Whether a client's packet shows that it has heard the backend: after an answer it
 * goes on, and does not begin. An answer alone would not do: anybody gets one for
 * an address that he does not have. */
static __always_inline int track_is_confirmation(const struct flow *flow, const struct pkt *pkt)
{
	return !(flow->flags & FLOW_FLAG_CONFIRMED) && flow->backend_said & FLOW_SAID_ANYTHING &&
	       !pkt_is_syn(pkt);
}

/* How many bytes a SYN can have, and itself. */
#define TRACK_SYN_SIZE (1 << 16)

/* TCP: whether what leaves is the backend's answer to the flow, which has none yet: a SYN-ACK or a
 * reset that acknowledges its SYN. Else it is of a connection that the backend has between the
 * same ends: one that no note tells of. What a backend with such a connection sends on a SYN is an
 * ACK (RFC 9293, 3.10.7.4). `entry` is the one that the packet was found by. */
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

/* The flow's port is another connection's at the backend: its client's next SYN gets the flow
 * another one. */
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

/* Removes a direct flow that is over. */
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

/* Whether nobody else has the flow's port on the wire: a handshake that went on too
 * late may have lost it. */
static __noinline int track_is_wire(const struct flow *flow)
{
	struct flow_key key;
	struct flow *there;

	flow_key_wire(&key, flow);
	there = flow_peek(&key);
	return !there || flow_same(there, flow);
}

/* Says a flow's source on the wire in an entry that has none yet. In place, which
 * costs a fifth of an update and keeps what was noted meanwhile: should an entry of `flows_new` be
 * pushed out and another flow's at this very moment, that one finds the port on the
 * wire not to be its own, and chooses again. Returns 0, or what the kernel says. */
static __always_inline long track_put_source(const struct flow_key *key, const struct flow *flow)
{
	struct flow *there;

	if (flow->flags & FLOW_FLAG_CONFIRMED)
		there = bpf_map_lookup_elem(&flows, key);
	else
		there = bpf_map_lookup_elem(&flows_new, key);
	if (!there || !flow_same_ends(there, flow))
		return track_put(key, flow, BPF_ANY);
	there->node = flow->node;
	there->node_port = flow->node_port;
	return 0;
}

/* Moves an entry of a flow to `flows`, with what is noted in it until it is gone where it was.
 * Returns 0, or -1 without room. */
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

/* The client has heard the backend: from now on nothing but the flow's own end, its
 * time or want of room removes it. The client's entry goes first: if that has no room, all
 * stay where they are. Returns 0, or -1 without room. */
static __noinline int track_confirm(struct flow *flow)
{
	struct flow_key key;

	if (!track_is_out(flow))
		return 0;
	if (flow->node_port && !track_is_wire(flow))
		flow->node_port = 0;
	flow_key_client(&key, flow);
	if (!track_is_clients(&key, flow))
		return 0;
	flow->flags |= FLOW_FLAG_CONFIRMED;
	if (track_move(&key, flow)) {
		flow->flags &= ~FLOW_FLAG_CONFIRMED;
		return -1;
	}
	flow_key_out(&key, flow);
	track_move(&key, flow);
	if (!flow->node_port)
		return 0;
	flow_key_wire(&key, flow);
	track_move(&key, flow);
	return 0;
}

/* Whether a TCP client's packet acknowledges what the backend sent last, or nearly. A sender with
 * a false source address has not seen the backend's sequence number. A SYN that comes again may be
 * another connection's: it is the one that the backend's answer has to acknowledge. */
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

/* A client's packet of a flow that is not confirmed. Returns 0, or -1 where it confirms the flow
 * and there is no room. */
static __always_inline int track_advance(struct flow *flow, const struct pkt *pkt)
{
	if (pkt->protocol == IPPROTO_TCP && !track_acknowledges(flow, pkt))
		return 0;
	return track_is_confirmation(flow, pkt) ? track_confirm(flow) : 0;
}
