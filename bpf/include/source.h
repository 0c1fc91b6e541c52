// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* source.h: what a backend of another node sees for its client: an address of this
 * node, the one that the kernel itself would have chosen for that route, and a port
 * that no other flow to that backend has. */
#pragma once

#include "track.h"

/* Ports that are tried. From SOURCE_PATIENT on, one whose flow the backend has
 * forgotten will do, too. */
#define SOURCE_TRIES 64
#define SOURCE_PATIENT 4

/* Flags of bpf_fib_lookup that older headers lack. Where the kernel does not know
 * one (SRC: before 6.7), it refuses all, and map `devices` says the address. */
#define FIB_OUTPUT 2
#define FIB_SKIP_NEIGH 4
#define FIB_SRC 16

#define AF_INET 2
#define AF_INET6 10

static __always_inline int source_is_set(const struct addr *addr)
{
	return lb_addr_is_v4(addr) ? lb_word(addr, 3) != 0 :
				     (lb_word(addr, 0) | lb_word(addr, 1) | lb_word(addr, 2) |
				      lb_word(addr, 3)) != 0;
}

/* The preferred source of the route to the backend by this device. Returns 1 with
 * *out filled. */
static __noinline int source_by_route(struct __sk_buff *skb, const struct addr *backend,
				      struct addr *out)
{
	int v4 = lb_addr_is_v4(backend);
	struct bpf_fib_lookup fib = {
		.family = v4 ? AF_INET : AF_INET6,
		.ifindex = skb->ifindex,
	};

	if (v4)
		fib.ipv4_dst = lb_word(backend, 3);
	else
		__builtin_memcpy(fib.ipv6_dst, backend, sizeof(*backend));
	if (bpf_fib_lookup(skb, &fib, sizeof(fib), FIB_OUTPUT | FIB_SKIP_NEIGH | FIB_SRC))
		return 0;
	if (v4)
		pkt_addr4(out, fib.ipv4_src);
	else
		__builtin_memcpy(out, fib.ipv6_src, sizeof(*out));
	return source_is_set(out);
}

static __always_inline int source_by_device(__u32 ifindex, int v4, struct addr *out)
{
	struct device *dev = bpf_map_lookup_elem(&devices, &ifindex);

	if (!dev)
		return 0;
	*out = v4 ? dev->addr4 : dev->addr6;
	return source_is_set(out);
}

/* Whether packets of this node's own have that address where they leave by this device:
 * netfilter's masquerade takes it, and so may flows. */
static __always_inline int source_is_device(__u32 ifindex, const struct addr *addr)
{
	struct addr own;

	return source_by_device(ifindex, lb_addr_is_v4(addr), &own) && lb_addr_equal(&own, addr);
}

/* Whether a process of this node would get what is sent from one end to another: a
 * server of the node, or a connection of its own. */
static __noinline int source_is_socket(struct __sk_buff *skb, const struct flow_key *key)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__u32 size = sizeof(tuple.ipv6);

	if (lb_addr_is_v4(&key->dst)) {
		size = sizeof(tuple.ipv4);
		tuple.ipv4.saddr = lb_word(&key->src, 3);
		tuple.ipv4.daddr = lb_word(&key->dst, 3);
		tuple.ipv4.sport = key->sport;
		tuple.ipv4.dport = key->dport;
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &key->src, sizeof(tuple.ipv6.saddr));
		__builtin_memcpy(tuple.ipv6.daddr, &key->dst, sizeof(tuple.ipv6.daddr));
		tuple.ipv6.sport = key->sport;
		tuple.ipv6.dport = key->dport;
	}
	if (key->protocol == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	bpf_sk_release(sk);
	return 1;
}

/* Tries the i-th port on the wire. Returns whether it is claimed, in flow->node_port. */
static __always_inline int source_try(struct __sk_buff *skb, struct flow *flow, __u32 hash, __u32 i)
{
	struct flow_key key;
	struct flow *old;

	flow->node_port = flow_source_port(hash, i);
	flow_key_wire(&key, flow);
	old = flow_peek(&key);
	if (old && (i < SOURCE_PATIENT || !track_may_replace(old, flow, TRACK_FORGOTTEN)))
		return 0;
	if (source_is_socket(skb, &key)) /* what the backend sends to that port */
		return 0;
	return old ? !track_replace(&key, flow, TRACK_FORGOTTEN) : !track_claim(&key, flow);
}

/* Sets flow->node. Returns 1, or 0 where no address is known. */
static __always_inline int source_choose_addr(struct __sk_buff *skb, struct flow *flow)
{
	return flow->flags & FLOW_FLAG_DISPLACED || source_by_route(skb, &flow->backend, &flow->node) ||
	       source_by_device(skb->ifindex, lb_addr_is_v4(&flow->backend), &flow->node);
}

/* Writes a flow's source on the wire to its other entries. Returns 0, or -1 without room. */
static __noinline int source_record(const struct flow *flow)
{
	struct flow_key key;

	flow_key_out(&key, flow);
	if (track_put_source(&key, flow))
		return -1;
	flow_key_client(&key, flow);
	return track_is_clients(&key, flow) && track_put_source(&key, flow) ? -1 : 0;
}

/* Whether the flow's port on the wire is still its own, or is again: one that is
 * over may have lost it, and one that is not confirmed could be pushed out. */
static __noinline int source_hold(const struct flow *flow)
{
	struct flow_key key;
	struct flow *there;

	flow_key_wire(&key, flow);
	there = flow_peek(&key);
	return there ? flow_same(there, flow) : !track_put(&key, flow, BPF_NOEXIST);
}
