// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* direct.h: notes direct connections: packets to a backend's own address, without a service. Most
 * clients in a cluster do so, because their own node has translated the socket. The same client may
 * use the same port for a service by packets. Then the two connections would collide at the
 * backend. Knows notes; changes no packet.
 *
 * A note says that two ends may have a connection without a flow. A note can be evicted. TCP does
 * not depend on notes: a backend that already has a connection between the same ends does not
 * answer a SYN with a SYN-ACK (track_is_answer). */
#pragma once

#include "flow.h"

/* The key of a direct connection between the same ends as the flow has in the stack: from the
 * client, with inner_port, to the backend. */
static __always_inline void direct_key(struct flow_key *key, const struct flow *flow)
{
	flow_key_set(key, FLOW_KEY_IN, flow->protocol, &flow->client, flow->inner_port,
		     &flow->backend, flow->backend_port);
}

/* Notes a direct connection. `meta` is written first: a flow that begins after that searches for
 * the note. A flow that began before has inserted its entry, and tc_direct finds that entry. */
static __always_inline void direct_note(const struct flow_key *key, __u64 now)
{
	struct meta_value *m = lb_meta();

	if (m && (__s64)(now - m->direct_noted) >= FLOW_TOUCH)
		m->direct_noted = now;
	bpf_map_update_elem(&directs, key, &now, BPF_ANY);
}

/* Reports whether a direct connection was noted less than FLOW_TOUCH ago. Then no flow can have the
 * same ends. */
static __always_inline int direct_is_noted(const struct flow_key *key, __u64 now)
{
	__u64 *noted = bpf_map_lookup_elem(&directs, key);

	return noted && (__s64)(now - *noted) < FLOW_TOUCH;
}

/* Reports whether a direct connection may exist between the ends that a flow is to have in the
 * stack. */
static __noinline int direct_is_there(const struct flow *flow)
{
	__u64 age = flow->protocol == IPPROTO_TCP ? config_timeouts.tcp_established :
						    config_timeouts.udp_established;
	struct meta_value *m = lb_meta();
	struct flow_key key;
	__u64 *noted;

	/* A look-up in so large a map is a cache miss, which is a tenth of the cost of a flow's
	 * first packet. */
	if (!m || !m->direct_noted ||
	    (__s64)(flow->used - m->direct_noted) >= (__s64)age + FLOW_TOUCH)
		return 0;
	direct_key(&key, flow);
	noted = bpf_map_lookup_elem(&directs, &key);
	return noted && (__s64)(flow->used - *noted) < (__s64)age;
}

/* Notes in `meta` that an unconfirmed TCP flow with FLOW_FLAG_DIRECT began. */
static __always_inline void direct_began(__u64 now)
{
	struct meta_value *m = lb_meta();

	if (m)
		m->direct = now;
}

/* How long such a flow can stay unconfirmed: a client repeats its SYN for two minutes. */
#define DIRECT_WAITS 3 /* times timeouts.tcp_new */

/* Reports whether `flows_new` can have such a flow. Most of the time it has none, and packets of
 * direct connections need no look-up there. */
static __always_inline int direct_may_wait(__u64 now)
{
	struct meta_value *m = lb_meta();

	return m && m->direct &&
	       (__s64)(now - m->direct) < DIRECT_WAITS * (__s64)config_timeouts.tcp_new;
}
