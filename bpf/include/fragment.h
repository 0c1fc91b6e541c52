// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* fragment.h: the ports of datagrams in pieces. Only the first piece has them, and
 * the others are known by the datagram's id (RFC 791, RFC 8200 4.5). Both hooks see
 * pieces: before the stack has put them together, and after it has taken them apart
 * again, with other addresses. */
#pragma once

#include "pkt.h"

/* How long a first piece is remembered, in ns: a second longer than Linux waits for the missing
 * pieces of an IPv4 datagram. Ids are used again. */
#define FRAGMENT_AGE 31000000000LL

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

/* Notes what a first piece says. */
static __noinline void fragment_note(const struct pkt *pkt, int egress, __u64 now)
{
	struct fragment value = {
		.sport = pkt->sport, .dport = pkt->dport, .protocol = pkt->protocol,
		.noted = now,
	};
	struct fragment_key key;

	if (!pkt->first_piece)
		return;
	fragment_key_set(&key, pkt, egress);
	bpf_map_update_elem(&fragments, &key, &value, BPF_ANY);
}

/* Fills a later piece's ports and protocol from its first. Returns 1, or 0 where that was not
 * seen, or too long ago. */
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
