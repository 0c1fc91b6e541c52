// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* stays.h: whether a flow with outdated ids can keep its endpoint. An address can move to another
 * service, and an endpoint can get another record, while the endpoint serves all the time. Knows
 * services, slots and backends; knows no flow. */
#pragma once

#include "lb.h"

/* Steps of a binary search in a slot range: enough for 2^24 slots. */
#define STAYS_STEPS 25

/* Finds the record of the endpoint with to's address and port, if the service sends new
 * connections there. The slots of a range are in the order of their endpoints (lb's ranges.go).
 * Returns 1 with *to filled. */
static __always_inline int stays_find(const struct slot_range *range, __u32 service_id,
				      struct lb_choice *to)
{
	__u32 slot, record, *id, low = range->base, n = range->count;
	struct backend *be;

	for (int i = 0; i < STAYS_STEPS && n; i++) {
		slot = low + n / 2;
		id = bpf_map_lookup_elem(&slots, &slot);
		if (!id)
			return 0;
		record = *id;
		be = lb_backend(record, service_id);
		if (!be)
			return 0;
		if (be->port == to->port && lb_addr_equal(&be->addr, &to->addr)) {
			lb_choose(to, record, be, service_id);
			return 1;
		}
		if (lb_end_below(&be->addr, be->port, &to->addr, to->port)) {
			low = slot + 1;
			n -= n / 2 + 1;
		} else {
			n /= 2;
		}
	}
	return 0;
}

/* Reports whether new connections to dst can get the endpoint with to's address and port. For a
 * client by packets both sides are searched, so that a flow can also keep an endpoint that only
 * clients inside can get. Returns 1 with *to filled. If an entry changes during the search, the
 * search is not repeated: the flow then gets an endpoint as a new flow does. */
static __noinline int stays_with(const struct frontend_key *dst, const struct lb_client *client,
				struct lb_choice *to)
{
	struct frontend svc;
	__u32 undefined;

	if (lb_frontend(dst, client->host_netns, &undefined, &svc) != LB_FOUND)
		return 0;
	if (lb_source_range_refused(&svc, dst, client) != REASON_UNSPEC)
		return 0;
	return stays_find(client->by_packet ? &svc.outside : &svc.inside, svc.id, to) ||
	       (client->by_packet && stays_find(&svc.inside, svc.id, to));
}
