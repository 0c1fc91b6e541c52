// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* flow.h: finds the flow of a packet. It reads the maps of flows, and changes no packet.
 *
 * An entry of `flows_new` can be evicted and reused for another flow while it is read. So programs
 * copy an entry first, and then compare the copy's addresses and ports with the packet's. */
#pragma once

#include <stddef.h>

#include "pkt.h"
#include "stays.h"
#include "timeout.h"

/* How long a backend has to answer a SYN, in ns. It is a little less than the second after which a
 * client repeats its SYN. */
#define FLOW_ANSWER (FLOW_TOUCH / 10 * 9)

/* How many ports are tried for a flow that collides with another at the backend. */
#define FLOW_PORT_TRIES 16

/* The largest range of SNAT ports whose ports are tried one after the other, each once. At most
 * SNAT_TRIES. */
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

/* The key of a packet that arrives. */
static __always_inline void flow_key_in(struct flow_key *key, const struct pkt *pkt)
{
	flow_key_set(key, FLOW_KEY_IN, pkt->protocol, &pkt->src, pkt->sport, &pkt->dst, pkt->dport);
}

/* The key of a packet that leaves the stack. It is the same for both directions. */
static __always_inline void flow_key_ends(struct flow_key *key, __u8 protocol,
					  const struct addr *a, __be16 aport,
					  const struct addr *b, __be16 bport)
{
	if (lb_end_below(a, aport, b, bport))
		flow_key_set(key, FLOW_KEY_OUT, protocol, a, aport, b, bport);
	else
		flow_key_set(key, FLOW_KEY_OUT, protocol, b, bport, a, aport);
}

/* The three keys of a flow. flow_key_client: for the client's packets as they arrive. flow_key_out:
 * for packets of both directions as they leave the stack. flow_key_wire: for the backend's replies
 * to the SNAT port as they arrive. */
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
		     &flow->snat, flow->snat_port);
}

/* Returns the entry itself, not a copy: another flow may reuse it at any time. NULL: there is
 * none. */
static __always_inline struct flow *flow_peek(const struct flow_key *key)
{
	struct flow *flow = bpf_map_lookup_elem(&flows, key);

	return flow ? flow : bpf_map_lookup_elem(&flows_new, key);
}

static __always_inline void flow_copy(struct flow *out, const struct flow *flow)
{
	__builtin_memcpy(out, flow, offsetof(struct flow, client_at));
}

/* Copies the entry of `key` to *out, without client_at and backend_at. Returns the entry itself.
 * NULL: there is none. */
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

/* Returns which side sent a packet that arrives. */
static __always_inline enum flow_side flow_side_in(const struct flow *flow, const struct pkt *pkt)
{
	if (flow_is_between(&flow->client, flow->client_port, &flow->frontend, flow->frontend_port,
			    pkt))
		return FLOW_FROM_CLIENT;
	if (flow->snat_port &&
	    flow_is_between(&flow->backend, flow->backend_port, &flow->snat, flow->snat_port, pkt))
		return FLOW_FROM_BACKEND;
	return FLOW_NONE;
}

/* Returns which side sent a packet that leaves the stack. */
static __always_inline enum flow_side flow_side_out(const struct flow *flow, const struct pkt *pkt)
{
	if (flow_is_between(&flow->backend, flow->backend_port, &flow->client, flow->inner_port, pkt))
		return FLOW_FROM_BACKEND;
	if (flow_is_between(&flow->client, flow->inner_port, &flow->backend, flow->backend_port, pkt))
		return FLOW_FROM_CLIENT;
	return FLOW_NONE;
}

/* Reports whether both have the same client and frontend, whatever their backends are. */
static __always_inline int flow_same_client(const struct flow *a, const struct flow *b)
{
	return a->client_port == b->client_port && a->frontend_port == b->frontend_port &&
	       lb_addr_equal(&a->client, &b->client) && lb_addr_equal(&a->frontend, &b->frontend);
}

/* Reports whether both have the same client, frontend and backend, and the same inner port. */
static __always_inline int flow_same_ends(const struct flow *a, const struct flow *b)
{
	return a->inner_port == b->inner_port && a->backend_port == b->backend_port &&
	       flow_same_client(a, b) && lb_addr_equal(&a->backend, &b->backend);
}

/* Reports whether two entries are of one flow: they have the same ends and the same SNAT port. */
static __always_inline int flow_same(const struct flow *a, const struct flow *b)
{
	return a->snat_port == b->snat_port && flow_same_ends(a, b);
}

/* Reports whether the flow's backend still serves, even where new connections do not get it. */
static __always_inline int flow_serves(const struct flow *flow)
{
	struct backend *be = lb_backend(flow->backend_id, flow->service_id);

	return be && !(be->flags & BACKEND_FLAG_UNREADY) && be->port == flow->backend_port &&
	       lb_addr_equal(&be->addr, &flow->backend);
}

/* Reports whether the flow's frontend still belongs to its service. */
static __noinline int flow_leads(const struct flow *flow)
{
	struct frontend_key key = { .addr = flow->frontend, .port = flow->frontend_port,
				    .protocol = flow->protocol };

	return lb_leads(&key, 0, flow->service_id);
}

/* Reports whether the frontend's current service sends new connections to the flow's endpoint. The
 * backend id may differ from the flow's. */
static __always_inline int flow_stays(const struct flow *flow)
{
	struct frontend_key key = { .addr = flow->frontend, .port = flow->frontend_port,
				    .protocol = flow->protocol };
	struct lb_client client = { .addr = flow->client, .by_packet = 1 };
	struct lb_choice to = { .addr = flow->backend, .port = flow->backend_port };

	return stays_with(&key, &client, &to);
}

/* Reports whether a client's packet belongs to its flow. Otherwise the packet may begin a new one.
 *
 * An expired flow has ended, though its entries may still exist. A TCP connection ends by itself,
 * so that only a SYN can begin another: the client reuses the port of a connection that has ended,
 * or the backend or the service is gone. A datagram begins a new UDP flow if the backend no longer
 * serves, or if the frontend belongs to another service by now. Both kinds of flow remain where
 * that service has the same endpoint.
 *
 * A SYN can be forged, so it does not end an established connection. If the backend no longer
 * serves, it still receives the SYN, and the flow remains if the backend answers. The SYN begins
 * another flow if the client had sent a FIN, or if two SYNs got no answer within FLOW_ANSWER each.
 * One unanswered SYN is no proof: Linux answers a SYN on an established connection at most every
 * 500 ms, and an earlier packet can have used up that limit. But if the first SYN got no answer, it
 * has not used up the limit for the second. */
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

/* Returns the i-th candidate from the range of SNAT ports, in network order. Consecutive candidates
 * are unrelated ports, because ports that are in use are often consecutive. A range of at most
 * FLOW_PORTS_WHOLE ports is tried in order, each port once. */
static __always_inline __be16 flow_snat_port(__u32 hash, __u32 i)
{
	__u32 count = config_snat_port_count, port;

	if (!count)
		return 0;
	if (count > FLOW_PORTS_WHOLE)
		port = pkt_mix(hash, (__u64)i << 32) % count;
	else
		port = (hash % count + i) % count;
	port += config_snat_port_first;
	if (port > 65535)
		port -= 65536 - 1024;
	return bpf_htons(port);
}

static __always_inline int flow_is_snat_port(__be16 port)
{
	__u32 p = bpf_ntohs(port), first = config_snat_port_first;

	if (p < first)
		p += 65536 - 1024;
	return p - first < config_snat_port_count;
}
