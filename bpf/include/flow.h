// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* flow.h: which flow a packet is of. Knows the maps of flows and what packets say;
 * changes no packet.
 *
 * An entry of `flows_new` can be pushed out and its memory be another flow's while
 * we read it, so what a packet follows is a copy, compared with the packet. */
#pragma once

#include <stddef.h>

#include "pkt.h"
#include "stays.h"
#include "timeout.h"

/* How long a backend has to answer a SYN: a little less than its client waits (1 s) until it
 * sends it again. */
#define FLOW_ANSWER (FLOW_TOUCH / 10 * 9)

/* Ports that are tried where two flows would be one. */
#define FLOW_PORT_TRIES 16

/* Ports of a range that is tried one after the other: no more than are tried. */
#define FLOW_PORTS_WHOLE 64

enum flow_side {
	FLOW_NONE,
	FLOW_FROM_CLIENT,
	FLOW_FROM_BACKEND,
};

static __always_inline void flow_key_set(struct flow_key *key, enum flow_key_kind kind,
					 __u8 protocol, const struct addr *src, __be16 sport,
					 const struct addr *dst, __be16 dport)
{
	key->src = *src;
	key->dst = *dst;
	key->sport = sport;
	key->dport = dport;
	key->protocol = protocol;
	key->kind = kind;
	key->pad = 0;
}

/* A packet as it arrives. */
static __always_inline void flow_key_in(struct flow_key *key, const struct pkt *pkt)
{
	flow_key_set(key, FLOW_KEY_IN, pkt->protocol, &pkt->src, pkt->sport, &pkt->dst, pkt->dport);
}

/* Both directions of what the stack sees, under one key. */
static __always_inline void flow_key_ends(struct flow_key *key, __u8 protocol,
					  const struct addr *a, __be16 aport,
					  const struct addr *b, __be16 bport)
{
	if (lb_end_below(a, aport, b, bport))
		flow_key_set(key, FLOW_KEY_OUT, protocol, a, aport, b, bport);
	else
		flow_key_set(key, FLOW_KEY_OUT, protocol, b, bport, a, aport);
}

/* The keys of a flow: as its client's packets arrive, as the stack sees it, and as
 * replies of another node's backend arrive. */
static __always_inline void flow_key_client(struct flow_key *key, const struct flow *flow)
{
	flow_key_set(key, FLOW_KEY_IN, flow->protocol, &flow->client, flow->client_port,
		     &flow->frontend, flow->frontend_port);
}

static __always_inline void flow_key_out(struct flow_key *key, const struct flow *flow)
{
	flow_key_ends(key, flow->protocol, &flow->client, flow->inner_port, &flow->backend,
		      flow->backend_port);
}

static __always_inline void flow_key_wire(struct flow_key *key, const struct flow *flow)
{
	flow_key_set(key, FLOW_KEY_IN, flow->protocol, &flow->backend, flow->backend_port,
		     &flow->node, flow->node_port);
}

/* The entry of that key itself, to compare with. */
static __always_inline struct flow *flow_peek(const struct flow_key *key)
{
	struct flow *flow = bpf_map_lookup_elem(&flows, key);

	return flow ? flow : bpf_map_lookup_elem(&flows_new, key);
}

static __always_inline void flow_copy(struct flow *out, const struct flow *flow)
{
	__builtin_memcpy(out, flow, offsetof(struct flow, client_at));
}

/* Copies the entry of that key, which is returned. NULL: there is none. */
static __always_inline struct flow *flow_find_in(void *map, const struct flow_key *key,
						 struct flow *out)
{
	struct flow *flow = bpf_map_lookup_elem(map, key);

	if (flow)
		flow_copy(out, flow);
	return flow;
}

static __always_inline struct flow *flow_find(const struct flow_key *key, struct flow *out)
{
	struct flow *flow = flow_peek(key);

	if (flow)
		flow_copy(out, flow);
	return flow;
}

static __always_inline int flow_is_between(const struct addr *a, __be16 aport, const struct addr *b,
					   __be16 bport, const struct pkt *pkt)
{
	return pkt->sport == aport && pkt->dport == bport && lb_addr_equal(&pkt->src, a) &&
	       lb_addr_equal(&pkt->dst, b);
}

/* Which side's packet it is, as it arrives. */
static __always_inline enum flow_side flow_side_in(const struct flow *flow, const struct pkt *pkt)
{
	if (flow_is_between(&flow->client, flow->client_port, &flow->frontend, flow->frontend_port,
			    pkt))
		return FLOW_FROM_CLIENT;
	if (flow->node_port &&
	    flow_is_between(&flow->backend, flow->backend_port, &flow->node, flow->node_port, pkt))
		return FLOW_FROM_BACKEND;
	return FLOW_NONE;
}

/* Which side's packet it is, as it leaves the stack. */
static __always_inline enum flow_side flow_side_out(const struct flow *flow, const struct pkt *pkt)
{
	if (flow_is_between(&flow->backend, flow->backend_port, &flow->client, flow->inner_port, pkt))
		return FLOW_FROM_BACKEND;
	if (flow_is_between(&flow->client, flow->inner_port, &flow->backend, flow->backend_port, pkt))
		return FLOW_FROM_CLIENT;
	return FLOW_NONE;
}

/* Whether the client means the same connection, wherever it led to. */
static __always_inline int flow_same_client(const struct flow *a, const struct flow *b)
{
	return a->client_port == b->client_port && a->frontend_port == b->frontend_port &&
	       lb_addr_equal(&a->client, &b->client) && lb_addr_equal(&a->frontend, &b->frontend);
}

/* Whether it also leads to the same backend, with the same ports before the stack. */
static __always_inline int flow_same_ends(const struct flow *a, const struct flow *b)
{
	return a->inner_port == b->inner_port && a->backend_port == b->backend_port &&
	       flow_same_client(a, b) && lb_addr_equal(&a->backend, &b->backend);
}

/* Whether two entries are of one flow. */
static __always_inline int flow_same(const struct flow *a, const struct flow *b)
{
	return a->node_port == b->node_port && flow_same_ends(a, b);
}

/* Whether the backend still is one: serving, in the sets or not. */
static __always_inline int flow_serves(const struct flow *flow)
{
	struct backend *be = lb_backend(flow->backend_id, flow->service_id);

	return be && !(be->flags & BACKEND_FLAG_UNREADY) && be->port == flow->backend_port &&
	       lb_addr_equal(&be->addr, &flow->backend);
}

/* Whether the flow's frontend still is its service's. */
static __noinline int flow_leads(const struct flow *flow)
{
	struct frontend_key key = { .addr = flow->frontend, .port = flow->frontend_port,
				    .protocol = flow->protocol };

	return lb_leads(&key, 0, flow->service_id);
}

/* Whether the service that has the frontend now has the flow's backend, by another record. */
static __always_inline int flow_stays(const struct flow *flow)
{
	struct frontend_key key = { .addr = flow->frontend, .port = flow->frontend_port,
				    .protocol = flow->protocol };
	struct lb_client client = { .addr = flow->client, .by_packet = 1 };
	struct lb_choice to = { .addr = flow->backend, .port = flow->backend_port };

	return stays_with(&key, &client, &to);
}

/* Whether a client's packet goes where the flow's went, or begins a new one. After its
 * timeout a flow is no more, though its entries may still be there. TCP
 * ends by itself, so that only a SYN can be new: the client has its port from a
 * connection that is over, or its backend or its service is gone. A UDP flow must not
 * lead to what serves no more, nor from an address that is another's by now.
 *
 * Anybody can send a SYN, so that it ends no established connection: a backend that left its
 * service gets the SYN, and the flow goes on if it answers. The SYN begins another flow if the
 * client had ended the connection, or if two SYNs got no answer for FLOW_ANSWER each. One would
 * not do: Linux answers a SYN on an established connection at most every 500 ms, and a packet
 * that was sent before can have used that up. The first SYN's silence shows that for the second
 * it was not. */
static __always_inline int flow_goes_on(const struct flow *flow, const struct pkt *pkt, __u64 now)
{
	if (flow_is_expired(flow, now))
		return 0;
	if (!pkt_begins(pkt))
		return 1;
	if (pkt->protocol == IPPROTO_TCP && flow_is_closed(flow))
		return 0;
	if (flow->flags & FLOW_FLAG_DIRECT || (flow_serves(flow) && flow_leads(flow)) ||
	    flow_stays(flow))
		return 1;
	if (pkt->protocol != IPPROTO_TCP || !(flow->flags & FLOW_FLAG_CONFIRMED) ||
	    flow->client_said & FLOW_SAID_FIN)
		return 0;
	return !(flow->client_said & FLOW_SAID_ASKED_AGAIN) || (__s64)(now - flow->used) < FLOW_ANSWER;
}

/* The i-th port to try of the range for translated sources, in network order. One
 * has nothing to do with the next: ports that were taken together, or that a client
 * has in a row itself, are not tried in a row. A range that can be tried whole, is. */
static __always_inline __be16 flow_source_port(__u32 hash, __u32 i)
{
	__u32 count = config_source_port_count, port;

	if (!count)
		return 0;
	if (count > FLOW_PORTS_WHOLE)
		port = pkt_mix(hash, (__u64)i << 32) % count;
	else
		port = (hash % count + i) % count;
	port += config_source_port_first;
	if (port > 65535)
		port -= 65536 - 1024;
	return bpf_htons(port);
}

static __always_inline int flow_is_source_port(__be16 port)
{
	__u32 p = bpf_ntohs(port), first = config_source_port_first;

	if (p < first)
		p += 65536 - 1024;
	return p - first < config_source_port_count;
}
