// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* localport.h: UDP of the node's own processes from a port that is a node port's number. An answer
 * to that port must not be treated as a client's datagram to the service. A datagram that a process
 * sends proves that the process uses the port. A datagram that arrives at a socket proves nothing:
 * it only refreshes an existing entry, and notes the network namespace from which answers are
 * accepted. Knows map local_ports; knows no hook's context. */
#pragma once

#include <linux/in.h>

#include "config.h"
#include "lb.h"
#include "maps.h"

/* How long an entry is valid, and how precise that is: ns. */
#define LOCAL_PORT_AGE (NOTE_AGE_LOCAL_PORT * 1000000000ULL)
#define LOCAL_PORT_TOUCH 1000000000ULL

/* Reports whether local_ports can have an entry that is new enough. On most nodes it never has
 * one. Called before the functions below that look for an entry. */
static __always_inline int local_port_may_be_noted(void)
{
	struct meta_value *m = lb_meta();

	return m && m->local_port_noted &&
	       (__s64)(bpf_ktime_get_ns() - m->local_port_noted) <
		       (__s64)(LOCAL_PORT_AGE + LOCAL_PORT_TOUCH);
}

/* Notes in `meta` that an entry of local_ports is written now. */
static __always_inline void local_port_noted(__u64 now)
{
	struct meta_value *m = lb_meta();

	if (m && (__s64)(now - m->local_port_noted) >= (__s64)LOCAL_PORT_TOUCH)
		m->local_port_noted = now;
}

/* Returns when a key was last noted. NULL: not within LOCAL_PORT_AGE. */
static __always_inline __u64 *local_port_find(const struct local_port_key *key, __u64 now)
{
	__u64 *used = bpf_map_lookup_elem(&local_ports, key);

	return used && (__s64)(now - *used) < (__s64)LOCAL_PORT_AGE ? used : NULL;
}

/* Reports whether a number, in network order, is that of a UDP node port of dst's family. */
static __always_inline int local_port_is_node_port(const struct addr *dst, __be16 port)
{
	struct frontend_key any = { .port = port, .protocol = IPPROTO_UDP };

	if (lb_addr_is_v4(dst))
		*(__u32 *)&any.addr.b[8] = bpf_htonl(0xffff);
	return bpf_map_lookup_elem(&services, &any) != NULL;
}

/* Notes that a socket of the node's own network namespace sends to dst. `port` is the socket's, in
 * host order; 0: it has none yet. A port that the kernel chose is no node port's number
 * (sock_sends). */
static __always_inline void local_port_note(__u32 port, const struct addr *dst, __be16 other)
{
	struct local_port_key key = { .own = bpf_htons(port), .other = other };
	__u64 now = bpf_ktime_get_ns();
	__u64 *used = bpf_map_lookup_elem(&local_ports, &key);

	if (used && now - *used < LOCAL_PORT_TOUCH)
		return;
	if (!local_port_is_node_port(dst, key.own))
		return;
	local_port_noted(now);
	bpf_map_update_elem(&local_ports, &key, &now, BPF_ANY);
}

/* Reports whether an address is one of this node that takes node ports. */
static __always_inline int local_port_is_node(const struct addr *addr)
{
	struct addr_info *info = bpf_map_lookup_elem(&addrs, addr);

	return info && info->flags & ADDR_FLAG_NODE_PORTS;
}

/* Reports whether a datagram from a socket with this port to dst is for a process of the node.
 * `port` is in host order, netns is the cookie of the socket's network namespace. */
static __always_inline int local_port_answers(__u64 netns, __u32 port,
					      const struct frontend_key *dst)
{
	struct local_port_key key = { .netns = netns, .own = dst->port, .other = bpf_htons(port) };

	return local_port_find(&key, bpf_ktime_get_ns()) && local_port_is_node(&dst->addr);
}

/* Notes that a socket in network namespace netns received a datagram from address `from` and port
 * `own`, if a process of the node has sent such a datagram. `port` is the socket's, in host
 * order. */
static __always_inline void local_port_heard(__u64 netns, __u32 port, const struct addr *from,
					     __be16 own)
{
	struct local_port_key key = { .own = own, .other = bpf_htons(port) };
	__u64 *used, now;

	now = bpf_ktime_get_ns();
	used = local_port_find(&key, now);
	if (!used || !local_port_is_node(from))
		return;
	if (now - *used >= LOCAL_PORT_TOUCH) {
		local_port_noted(now);
		*used = now;
	}
	key.netns = netns;
	used = bpf_map_lookup_elem(&local_ports, &key);
	if (!used || now - *used >= LOCAL_PORT_TOUCH)
		bpf_map_update_elem(&local_ports, &key, &now, BPF_ANY);
}
