// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* timeout.h: how long a flow is kept after its last packet. That depends on the FINs, resets and
 * other packets that its two sides have sent (enum flow_said). Both the programs and the iterator
 * in expire.c include it. */
#pragma once

#include <linux/in.h>

#include "config.h"

/* How old `used` may get before it is written, in ns: once a second, not once a packet. */
#define FLOW_TOUCH 1000000000LL

/* Reports whether a TCP connection has ended, so that no more data can come. */
static __always_inline int flow_is_closed(const struct flow *flow)
{
	return (flow->client_said | flow->backend_said) & FLOW_SAID_RST ||
	       flow->client_said & flow->backend_said & FLOW_SAID_FIN;
}

/* Returns the flow's timeout in ns. */
static __always_inline __u64 flow_timeout(const struct flow *flow)
{
	int confirmed = flow->flags & FLOW_FLAG_CONFIRMED;

	if (flow->protocol != IPPROTO_TCP)
		return confirmed ? config_timeouts.udp_established : config_timeouts.udp_new;
	if (flow_is_closed(flow))
		return config_timeouts.tcp_closed;
	if ((flow->client_said | flow->backend_said) & FLOW_SAID_FIN)
		return config_timeouts.tcp_close_wait;
	if (flow->client_said & FLOW_SAID_SYN) /* a new handshake (track_hear_backend) */
		return config_timeouts.tcp_new;
	return confirmed ? config_timeouts.tcp_established : config_timeouts.tcp_new;
}

/* Reports whether the flow was not used for its timeout. The age is signed, because another CPU may
 * have written a `used` that is later than `now`. A timeout is at least twice FLOW_TOUCH, so for a
 * younger `used` the timeout is not computed. */
static __always_inline int flow_is_expired(const struct flow *flow, __u64 now)
{
	__s64 age = now - flow->used;

	return age >= FLOW_TOUCH && age >= (__s64)flow_timeout(flow);
}
