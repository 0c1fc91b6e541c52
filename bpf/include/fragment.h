// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* fragment.h: the ports of datagrams in fragments. Only the first fragment has them. The others
 * are found by the datagram's id (RFC 791, RFC 8200 4.5). Both hooks see fragments: ingress before
 * the stack has reassembled the datagram, and egress after the stack has fragmented it again, with
 * other addresses. */
#pragma once

#include "pkt.h"

/* How long the note of a first fragment is valid, in ns. */
#define FRAGMENT_AGE (NOTE_AGE_FRAGMENT * 1000000000LL)

static __always_inline void fragment_key_set(struct fragment_key *key, const struct pkt *pkt,
					     int egress)
{
	key->src = pkt->src;
	key->dst = pkt->dst;
	key->id = pkt->fragment_id;
	key->protocol = pkt->is_v4 ? pkt->protocol : 0;
	key->egress = egress;
	key->pad = 0;
}

/* Notes the ports and the protocol of a first fragment. */
static __noinline void fragment_note(const struct pkt *pkt, int egress, __u64 now)
{
	struct fragment value = {
		.sport = pkt->sport, .dport = pkt->dport, .protocol = pkt->protocol,
		.noted = now,
	};
	struct fragment_key key;

	if (!pkt->first_fragment)
		return;
	fragment_key_set(&key, pkt, egress);
	bpf_map_update_elem(&fragments, &key, &value, BPF_ANY);
}

/* Sets a later fragment's ports and protocol to those of its first fragment. Returns 1, or 0 if the
 * first fragment was not seen within FRAGMENT_AGE. */
static __noinline int fragment_find(struct pkt *pkt, int egress, __u64 now)
{
	struct fragment_key key;
	struct fragment *value;

	fragment_key_set(&key, pkt, egress);
	value = bpf_map_lookup_elem(&fragments, &key);
	if (!value || (__s64)(now - value->noted) >= FRAGMENT_AGE)
		return 0;
	pkt->sport = value->sport;
	pkt->dport = value->dport;
	pkt->protocol = value->protocol;
	return 1;
}
