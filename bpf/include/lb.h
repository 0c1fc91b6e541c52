// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* lb.h: chooses the backend of a new connection. Knows services, slots, backends and affinity;
 * knows no packet and no hook's context.
 *
 * An entry may change in two ways while a program reads it. The kernel can reuse an element of a
 * hash for another key: so the value contains its key, which is compared after the copy. And a slot
 * can get another service's backend: so the backend's record contains its service id, which is
 * compared with the frontend's. If either differs, the look-up begins again. A frontend without
 * backends has no record to compare. So that result has to be found twice. */
#pragma once

#include <linux/errno.h>
#include <bpf/bpf_endian.h>

#include "maps.h"

/* How often an entry is looked up before the choice fails. Each look-up takes a fraction of a
 * microsecond, and the entry would have to change during every one of them. */
#define LB_TRIES 4

enum lb_side { LB_INSIDE, LB_OUTSIDE };

/* The client of a choice. */
struct lb_client {
	struct addr addr; /* as in affinity_key of abi.h */
	struct addr bound; /* of a socket: the source address that it has already; unspecified:
			    * none */
	__u8 side;        /* enum lb_side */
	__u8 host_netns;   /* a socket in the node's own network namespace */
	__u8 by_packet;   /* addr is a packet's source */
	__u8 forgetful;   /* not a new connection: affinity is read, but neither written nor
			   * refreshed */
};

struct lb_choice {
	struct addr addr;
	__be16 port;
	__u8 flags; /* enum backend_flag */
	__u32 backend_id;
	__u32 service_id;
};

static __always_inline __u32 lb_word(const struct addr *a, int i)
{
	return ((const __u32 *)a->b)[i];
}

static __always_inline int lb_addr_equal(const struct addr *a, const struct addr *b)
{
	return lb_word(a, 0) == lb_word(b, 0) && lb_word(a, 1) == lb_word(b, 1) &&
	       lb_word(a, 2) == lb_word(b, 2) && lb_word(a, 3) == lb_word(b, 3);
}

static __always_inline int lb_addr_is_v4(const struct addr *a)
{
	return lb_word(a, 0) == 0 && lb_word(a, 1) == 0 &&
	       lb_word(a, 2) == __builtin_bswap32(0xffff);
}

/* Reports whether end a comes before end b: by address, byte by byte, and then by port. */
static __always_inline int lb_end_below(const struct addr *a, __be16 aport,
					const struct addr *b, __be16 bport)
{
	for (int i = 0; i < 4; i++) {
		__u32 x = bpf_ntohl(lb_word(a, i)), y = bpf_ntohl(lb_word(b, i));

		if (x != y)
			return x < y;
	}
	return bpf_ntohs(aport) < bpf_ntohs(bport);
}

/* Replaces an address by the unspecified one of its family. */
static __always_inline void lb_addr_any(struct addr *a)
{
	if (lb_addr_is_v4(a))
		*(__u32 *)&a->b[12] = 0;
	else
		__builtin_memset(a, 0, sizeof(*a));
}

enum lb_found {
	LB_NO_FRONTEND,
	LB_FOUND,
	LB_CHANGED, /* while it was read: look again */
};

/* Copies the entry of `key`. A program in process context can be interrupted at any point, and the
 * kernel reuses a replaced element at once. So the copy can be another frontend's in part or as a
 * whole, even of another family. But the kernel writes a value from its first byte on, and the key
 * is its first field. So if any part of the copy is another entry's, the key of that entry had been
 * written before, and the comparison below fails. */
static __always_inline enum lb_found lb_read(const struct frontend_key *key, struct frontend *out)
{
	const struct frontend *entry = bpf_map_lookup_elem(&services, key);

	if (!entry)
		return LB_NO_FRONTEND;
	*out = *entry;
	asm volatile("" ::: "memory");
	return lb_addr_equal(&entry->key.addr, &key->addr) && entry->key.port == key->port &&
			       entry->key.protocol == key->protocol ? LB_FOUND : LB_CHANGED;
}

/* Finds the service of a frontend: by the frontend's own entry, or else as a node port on an
 * address of the node. host_netns: the client is in the node's own network namespace. *undefined is
 * set if the address is a cluster IP, and no service has the port. */
static __always_inline enum lb_found lb_frontend(const struct frontend_key *dst, int host_netns,
						 __u32 *undefined, struct frontend *out)
{
	struct addr_info *info = bpf_map_lookup_elem(&addrs, &dst->addr);
	struct frontend_key any = *dst;
	enum lb_found found;
	__u32 flags;

	*undefined = 0;
	if (!info)
		return LB_NO_FRONTEND;
	flags = info->flags;
	if (flags & ADDR_FLAG_FRONTEND) {
		found = lb_read(dst, out);
		if (found != LB_NO_FRONTEND)
			return found;
	}
	*undefined = flags & ADDR_FLAG_CLUSTER_IP;
	if (!(flags & ADDR_FLAG_NODE_PORTS))
		return LB_NO_FRONTEND;
	if (flags & ADDR_FLAG_HOST_NETNS && !host_netns)
		return LB_NO_FRONTEND;
	lb_addr_any(&any.addr);
	return lb_read(&any, out);
}

/* Returns the backend of that id if it still belongs to that service, else NULL. */
static __always_inline struct backend *lb_backend(__u32 id, __u32 service_id)
{
	struct backend *be = bpf_map_lookup_elem(&backends, &id);

	return be && service_id && be->service_id == service_id ? be : NULL;
}

static __always_inline void lb_choose(struct lb_choice *out, __u32 id, const struct backend *be,
				      __u32 service_id)
{
	out->addr = be->addr;
	out->port = be->port;
	out->flags = be->flags;
	out->backend_id = id;
	out->service_id = service_id;
}

/* Session affinity: finds the client's backend, if affinity has not timed out and new connections
 * may still take that backend. The rule is the Service API's: timeoutSeconds of
 * sessionAffinityConfig.clientIP after the last connection. Returns 1 with *out filled. */
static __always_inline int lb_affinity_find(const struct frontend *svc, __u8 set,
					    const struct affinity_key *key, __u64 now,
					    int forgetful, struct lb_choice *out)
{
	struct affinity_value *aff = bpf_map_lookup_elem(&affinity, key);
	struct backend *be;
	__u32 id;

	/* Signed, because another CPU may have written a last_used that is later than `now`. */
	if (!aff || (__s64)(now - aff->last_used) >= (__s64)(svc->affinity_seconds * 1000000000ULL))
		return 0;
	id = aff->backend_id;
	be = lb_backend(id, svc->id);
	if (!be || !(be->flags & set))
		return 0;
	if (!forgetful)
		aff->last_used = now;
	lb_choose(out, id, be, svc->id);
	return 1;
}

/* Stores a choice for session affinity. If two CPUs handle a client's first connections at once,
 * both use the backend that was stored first. */
static __always_inline void lb_affinity_store(const struct frontend *svc, __u8 set,
					      const struct affinity_key *key, __u64 now,
					      struct lb_choice *out)
{
	struct affinity_value value = { .last_used = now, .backend_id = out->backend_id };
	/* An int: before Linux 6.4 the upper half of the returned value is not a sign extension. */
	int err = bpf_map_update_elem(&affinity, key, &value, BPF_NOEXIST);

	if (err != -EEXIST)
		return;
	if (!lb_affinity_find(svc, set, key, now, 0, out))
		bpf_map_update_elem(&affinity, key, &value, BPF_ANY);
}

/* Returns the reason for a new connection to a service without a usable backend. */
static __always_inline enum reason lb_no_backend(const struct frontend *svc)
{
	return svc->flags & FRONTEND_FLAG_ELSEWHERE ? REASON_NO_LOCAL_ENDPOINT : REASON_NO_ENDPOINT;
}

/* Reports whether the address is in a range that `sources` has for a service id. An entry of value
 * 0 excepts its address from the ranges around it. */
static __always_inline int lb_in_range(__u32 service_id, const struct addr *addr)
{
	struct source_range_key key = {
		.prefix_bits = 8 * (sizeof(key.service_id) + sizeof(key.addr)),
		.service_id = service_id,
		.addr = *addr,
	};

	const __u8 *bits = bpf_map_lookup_elem(&sources, &key);

	return bits && *bits;
}

/* Looks up a network namespace's source address in `client_addrs`. Returns 1 with *out filled. The
 * entry may be reused while it is read, as in lb_read. */
static __always_inline int lb_client_addr(const struct client_key *key, struct addr *out)
{
	const struct client_addr *entry = bpf_map_lookup_elem(&client_addrs, key);

	if (!entry)
		return 0;
	*out = entry->addr;
	asm volatile("" ::: "memory");
	return entry->netns == key->netns;
}

/* Finds the source address of the client's packets to dst. Returns 1 with *out filled, 0 if it is
 * not known. The address that a socket is bound to counts only if its network namespace has that
 * address: a socket that is bound to a broadcast or multicast address sends from another. */
static __always_inline int lb_source_range(const struct frontend_key *dst, const struct lb_client *client,
				     struct addr *out)
{
	struct client_key key = {
		.netns = (__u64)lb_word(&client->addr, 2) << 32 | lb_word(&client->addr, 3),
		.addr = dst->addr,
	};
	const struct addr *bound = &client->bound;

	if (client->by_packet) {
		*out = client->addr;
		return 1;
	}
	/* One branch: with three, the verifier checks twice as many instructions. */
	if (lb_word(bound, 0) | lb_word(bound, 1) | lb_word(bound, 3)) {
		key.addr = *bound;
		return lb_client_addr(&key, out) && lb_addr_equal(out, bound);
	}
	lb_addr_any(&key.addr);
	if (lb_client_addr(&key, out))
		return 1;
	key.addr = dst->addr;
	return lb_client_addr(&key, out);
}

/* Returns REASON_UNSPEC if source ranges let the client in, else the reason why not. */
static __always_inline enum reason lb_source_range_refused(const struct frontend *svc,
						     const struct frontend_key *dst,
						     const struct lb_client *client)
{
	struct addr source;

	if (!(svc->flags & FRONTEND_FLAG_SOURCE_RANGES))
		return REASON_UNSPEC;
	if (!lb_source_range(dst, client, &source))
		return REASON_SOURCE_UNKNOWN;
	return lb_in_range(svc->id, &source) ? REASON_UNSPEC : REASON_SOURCE_RANGE;
}

/* Returns the element of `meta`. The cost is one load, since the kernel inlines look-ups in
 * arrays. */
static __always_inline struct meta_value *lb_meta(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&meta, &zero);
}

/* Reports whether an address that is no frontend's is in a service CIDR and of no service. Without
 * service CIDRs the trie is not searched. */
static __always_inline int lb_unallocated(const struct addr *addr)
{
	struct meta_value *m = lb_meta();

	return m && m->service_cidrs && lb_in_range(0, addr);
}

/* Looks up dst's entry once, for a new connection, and chooses a backend of the client's side.
 * `pick` is any number: the slot is pick modulo the range's size. *empty counts the calls that
 * found no backend: the first returns REASON_ENTRY_CHANGED, so that the result has to be found
 * twice. Returns REASON_TRANSLATED or REASON_AFFINITY_KEPT with *out filled, REASON_ENTRY_CHANGED
 * to look again, or the reason why there is no backend. */
static __always_inline enum reason lb_try(const struct frontend_key *dst,
					  const struct lb_client *client, __u32 pick,
					  int *empty, struct lb_choice *out)
{
	__u32 undefined;
	struct frontend svc;
	enum lb_found found = lb_frontend(dst, client->host_netns, &undefined, &svc);
	int inside = client->side == LB_INSIDE;
	struct affinity_key key = {};
	struct slot_range range;
	enum reason refused;
	struct backend *be;
	__u32 slot, *id;
	__u64 now = 0;
	__u8 set;

	if (found == LB_CHANGED)
		return REASON_ENTRY_CHANGED;
	if (found == LB_NO_FRONTEND && !undefined)
		return lb_unallocated(&dst->addr) ? REASON_UNALLOCATED : REASON_NO_FRONTEND;
	if (found == LB_NO_FRONTEND)
		return (*empty)++ ? REASON_UNDEFINED_PORT : REASON_ENTRY_CHANGED;
	refused = lb_source_range_refused(&svc, dst, client);
	if (refused != REASON_UNSPEC)
		return (*empty)++ ? refused : REASON_ENTRY_CHANGED;
	range = inside ? svc.inside : svc.outside;
	set = svc.flags & (inside ? FRONTEND_FLAG_INSIDE_LOCAL : FRONTEND_FLAG_OUTSIDE_LOCAL) ?
		      BACKEND_FLAG_LOCAL_SET : BACKEND_FLAG_CLUSTER_SET;
	if (range.count == 0)
		return (*empty)++ ? lb_no_backend(&svc) : REASON_ENTRY_CHANGED;

	if (svc.affinity_seconds) {
		key.service_id = svc.id;
		key.client = client->addr;
		now = bpf_ktime_get_ns();
		if (lb_affinity_find(&svc, set, &key, now, client->forgetful, out))
			return REASON_AFFINITY_KEPT;
	}
	slot = range.base + pick % range.count;
	id = bpf_map_lookup_elem(&slots, &slot);
	if (!id)
		return REASON_ENTRY_CHANGED;
	slot = *id;
	be = lb_backend(slot, svc.id);
	if (!be)
		return REASON_ENTRY_CHANGED;
	lb_choose(out, slot, be, svc.id);
	if (svc.affinity_seconds && !client->forgetful)
		lb_affinity_store(&svc, set, &key, now, out);
	return REASON_TRANSLATED;
}

/* Chooses a backend for a new connection to dst: calls lb_try until an entry is read that does not
 * change during the look-up. Returns as lb_try, and REASON_ENTRY_CHANGED if it changed LB_TRIES
 * times. */
static __always_inline enum reason lb_select(const struct frontend_key *dst,
					     const struct lb_client *client, __u32 pick,
					     struct lb_choice *out)
{
	enum reason reason = REASON_ENTRY_CHANGED;
	int empty = 0;

	for (int i = 0; i < LB_TRIES && reason == REASON_ENTRY_CHANGED; i++)
		reason = lb_try(dst, client, pick, &empty, out);
	return reason;
}

/* Reports whether a flow's frontend still belongs to its service. The address may belong to another
 * service by now, or to none, while the backend still serves. The entry is looked up twice, because
 * an entry that changes during a look-up can seem to be another service's. */
static __always_inline int lb_leads(const struct frontend_key *dst, int host_netns,
				    __u32 service_id)
{
	struct frontend svc;
	__u32 undefined;

	for (int i = 0; i < 2; i++) {
		if (lb_frontend(dst, host_netns, &undefined, &svc) == LB_FOUND && svc.id == service_id)
			return 1;
	}
	return 0;
}

/* Counts one connection, or one new flow, for a backend. */
static __always_inline void lb_count(__u32 backend_id)
{
	__u64 *n = bpf_map_lookup_elem(&backend_stats, &backend_id);

	if (n)
		__sync_fetch_and_add(n, 1);
}
