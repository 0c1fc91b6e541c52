// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* snat.h: chooses the SNAT address and the SNAT port of a flow to a backend of another node. The
 * address is the one of this node that the kernel itself would choose for that route. The port is
 * one that no other flow to that backend has. */
#pragma once

#include "track.h"

/* How many ports are tried. From try SNAT_PATIENT on, a port whose flow is expired or reusable
 * may be taken. */
#define SNAT_TRIES 64
#define SNAT_PATIENT 4

/* Flags of bpf_fib_lookup that older headers lack. A kernel that does not know one (SRC: before
 * 6.7) refuses the call. The address is then that of map `devices`. */
#define FIB_OUTPUT 2
#define FIB_SKIP_NEIGH 4
#define FIB_SRC 16

#define AF_INET 2
#define AF_INET6 10

static __always_inline int snat_is_set(const struct addr *addr)
{
	return lb_addr_is_v4(addr) ? lb_word(addr, 3) != 0 :
				     (lb_word(addr, 0) | lb_word(addr, 1) | lb_word(addr, 2) |
				      lb_word(addr, 3)) != 0;
}

/* Looks up the preferred source of the route to the backend by this device. Returns 1 with *out
 * filled, else 0. */
static __noinline int snat_by_route(struct __sk_buff *skb, const struct addr *backend,
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
	return snat_is_set(out);
}

static __always_inline int snat_by_device(__u32 ifindex, int v4, struct addr *out)
{
	struct device *dev = bpf_map_lookup_elem(&devices, &ifindex);

	if (!dev)
		return 0;
	*out = v4 ? dev->addr4 : dev->addr6;
	return snat_is_set(out);
}

/* Reports whether this is the source address of this node's own packets that leave by this device.
 * Netfilter's masquerade chooses that address, and flows may have it as their SNAT address. */
static __always_inline int snat_is_device(__u32 ifindex, const struct addr *addr)
{
	struct addr own;

	return snat_by_device(ifindex, lb_addr_is_v4(addr), &own) && lb_addr_equal(&own, addr);
}

/* Reports whether a socket of this node would receive a packet with these ends: a server of the
 * node, or a connection of its own. */
static __noinline int snat_is_socket(struct __sk_buff *skb, const struct flow_key *key)
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

/* Tries the i-th SNAT port. Returns 1 if the flow now has that port (flow->snat_port), else 0. */
static __always_inline int snat_try(struct __sk_buff *skb, struct flow *flow, __u32 hash, __u32 i)
{
	struct flow_key key;
	struct flow *old;

	flow->snat_port = flow_snat_port(hash, i);
	flow_key_wire(&key, flow);
	old = flow_peek(&key);
	if (old && (i < SNAT_PATIENT || !track_may_replace(old, flow, TRACK_REUSABLE)))
		return 0;
	if (snat_is_socket(skb, &key)) /* it would receive the backend's replies */
		return 0;
	return old ? !track_replace(&key, flow, TRACK_REUSABLE) : !track_insert(&key, flow);
}

/* Sets flow->snat, unless the flow is remapped and has it already. Returns 1, or 0 if no address
 * is known. */
static __always_inline int snat_choose_addr(struct __sk_buff *skb, struct flow *flow)
{
	return flow->flags & FLOW_FLAG_REMAPPED || snat_by_route(skb, &flow->backend, &flow->snat) ||
	       snat_by_device(skb->ifindex, lb_addr_is_v4(&flow->backend), &flow->snat);
}

/* Writes a flow's SNAT address and SNAT port to its other entries. Returns 0, or -1 without
 * room. */
static __noinline int snat_record(const struct flow *flow)
{
	struct flow_key key;

	flow_key_out(&key, flow);
	if (track_put_snat(&key, flow))
		return -1;
	flow_key_client(&key, flow);
	return track_is_clients(&key, flow) && track_put_snat(&key, flow) ? -1 : 0;
}

/* Reports whether the flow still has its SNAT port. If no flow has the port, inserts the entry
 * again. A flow that has ended may have lost the port to another flow, and the entry of an
 * unconfirmed flow may have been evicted. */
static __noinline int snat_hold(const struct flow *flow)
{
	struct flow_key key;
	struct flow *there;

	flow_key_wire(&key, flow);
	there = flow_peek(&key);
	return there ? flow_same(there, flow) : !track_put(&key, flow, BPF_NOEXIST);
}
