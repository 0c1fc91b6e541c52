// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* lb.h: which backend answers. Knows services, slots, backends and affinity;
 * knows no packet and no hook's context.
 *
 * Entries may change under a reader in two ways. A hash element can be reused
 * for another key while we read it: it names its key, which is looked at last. A
 * slot can belong to somebody else when we come to it late: the backend that we
 * arrive at does not name the service that we started from. Either way we look
 * again. An entry without backends leads to none that could tell, so it has to be
 * seen twice. */
#pragma once

#include <linux/errno.h>
#include <bpf/bpf_endian.h>

#include "maps.h"

/* Look-ups of one entry before we give up: it would have to change within each
 * of as many fractions of a microsecond. */
#define LB_TRIES 4

enum lb_side { LB_INSIDE, LB_OUTSIDE };

/* Who asks. */
struct lb_client {
	struct addr addr; /* as abi.h's affinity_key has it */
	struct addr bound; /* of a socket: the source address that it has already; unspecified: none */
	__u8 side;        /* enum lb_side */
	__u8 own_netns;   /* a socket in the node's own network namespace */
	__u8 by_packet;   /* addr is a packet's source */
	__u8 forgetful;   /* no new connection: affinity is read, and neither written nor refreshed */
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

/* The order of two ends: by address, byte by byte, and then by port. */
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

/* Makes an address the unspecified one of its family. */
static __always_inline void lb_addr_any(struct addr *a)
{
	if (lb_addr_is_v4(a))
		*(__u32 *)&a->b[12] = 0;
	else
		__builtin_memset(a, 0, sizeof(*a));
}

enum lb_found {
	LB_NOBODYS,
	LB_FOUND,
	LB_CHANGED, /* while it was read: look again */
};

/* Copies the entry of that key. A program of a process's can be interrupted anywhere, and
 * an element that was replaced is used again at once: what was looked up for one frontend
 * would be another's by the time that it is read, as a whole, and of another family perhaps.
 * The kernel writes a value from its beginning on, so a copy that has anything of another
 * entry's was made when that one's key was there. */
static __always_inline enum lb_found lb_read(const struct frontend_key *key, struct service *out)
{
	const struct service *entry = bpf_map_lookup_elem(&services, key);

	if (!entry)
		return LB_NOBODYS;
	*out = *entry;
	asm volatile("" ::: "memory");
	return lb_addr_equal(&entry->key.addr, &key->addr) && entry->key.port == key->port &&
			       entry->key.protocol == key->protocol ? LB_FOUND : LB_CHANGED;
}

/* The service that a frontend belongs to: its own entry, else the node port of
 * a node address, where own_netns says that the client is in the node's own
 * network namespace. Where it is nobody's, *undefined says whether it is a port of a
 * cluster IP all the same. */
static __always_inline enum lb_found lb_frontend(const struct frontend_key *dst, int own_netns,
						 __u32 *undefined, struct service *out)
{
	struct addr_info *info = bpf_map_lookup_elem(&addrs, &dst->addr);
	struct frontend_key any = *dst;
	enum lb_found found;
	__u32 flags;

	*undefined = 0;
	if (!info)
		return LB_NOBODYS;
	flags = info->flags;
	if (flags & ADDR_FLAG_FRONTEND) {
		found = lb_read(dst, out);
		if (found != LB_NOBODYS)
			return found;
	}
	*undefined = flags & ADDR_FLAG_CLUSTER_IP;
	if (!(flags & ADDR_FLAG_NODE_PORTS))
		return LB_NOBODYS;
	if (flags & ADDR_FLAG_OWN_NETNS && !own_netns)
		return LB_NOBODYS;
	lb_addr_any(&any.addr);
	return lb_read(&any, out);
}

/* The backend of that id if it is still that service's. */
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

/* Session affinity: the client's backend if its time is not over and new
 * connections may still take it. The rule is the Service API's:
 * sessionAffinityConfig.clientIP.timeoutSeconds after the last connection. */
static __always_inline int lb_affinity_find(const struct service *svc, __u8 set,
					    const struct affinity_key *key, __u64 now,
					    int forgetful, struct lb_choice *out)
{
	struct affinity_value *aff = bpf_map_lookup_elem(&affinity, key);
	struct backend *be;
	__u32 id;

	/* Another CPU may have used it after our `now`: the difference has a sign. */
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

/* Remember a choice. Of two first connections at once, both take the backend of
 * the one that was remembered first. */
static __always_inline void lb_affinity_store(const struct service *svc, __u8 set,
					      const struct affinity_key *key, __u64 now,
					      struct lb_choice *out)
{
	struct affinity_value value = { .last_used = now, .backend_id = out->backend_id };
	/* An int: before Linux 6.4 the upper half of what comes back is not that of the
	 * number's sign. */
	int err = bpf_map_update_elem(&affinity, key, &value, BPF_NOEXIST);

	if (err != -EEXIST)
		return;
	if (!lb_affinity_find(svc, set, key, now, 0, out))
		bpf_map_update_elem(&affinity, key, &value, BPF_ANY);
}

/* What a new connection to a service without a usable backend meets. */
static __always_inline enum reason lb_no_backend(const struct service *svc)
{
	return svc->flags & SERVICE_FLAG_ELSEWHERE ? REASON_NO_LOCAL_ENDPOINT : REASON_NO_ENDPOINT;
}

/* Whether the address is in a range that `sources` has for a service id. An entry of
 * value 0 takes its address out of the ranges around it. */
static __always_inline int lb_in_range(__u32 service_id, const struct addr *addr)
{
	struct source_key key = {
		.prefix_bits = 8 * (sizeof(key.service_id) + sizeof(key.addr)),
		.service_id = service_id,
		.addr = *addr,
	};

	const __u8 *bits = bpf_map_lookup_elem(&sources, &key);

	return bits && *bits;
}

/* What `client_addrs` has for a socket's network namespace and an address. Returns 1 with *out
 * filled. The entry may be another's while it is read, as in lb_read. */
static __always_inline int lb_client_addr(const struct client_key *key, struct addr *out)
{
	const struct client_addr *entry = bpf_map_lookup_elem(&client_addrs, key);

	if (!entry)
		return 0;
	*out = entry->addr;
	asm volatile("" ::: "memory");
	return entry->netns == key->netns;
}

/* Which source address the client's packets to dst have. Returns 1 with *out filled, 0 where it
 * is not known. What a socket is bound to counts where its network namespace has that address:
 * a socket that is bound to a broadcast or multicast address gets another. */
static __always_inline int lb_source(const struct frontend_key *dst, const struct lb_client *client,
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
	/* One branch: three double what the verifier looks at. */
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

/* Whether source ranges keep a client from the service. Returns REASON_UNSPEC where not. */
static __always_inline enum reason lb_source_refused(const struct service *svc,
						     const struct frontend_key *dst,
						     const struct lb_client *client)
{
	struct addr source;

	if (!(svc->flags & SERVICE_FLAG_SOURCE_RANGES))
		return REASON_UNSPEC;
	if (!lb_source(dst, client, &source))
		return REASON_SOURCE_UNKNOWN;
	return lb_in_range(svc->id, &source) ? REASON_UNSPEC : REASON_SOURCE_RANGE;
}

/* What the daemon and the programs say of the maps. This costs a load: the kernel inlines
 * look-ups in arrays. */
static __always_inline struct meta_value *lb_meta(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&meta, &zero);
}

/* Whether an address that is no frontend's is in a service CIDR, and is not known to be
 * allocated, so that no service has it. Where no range is known, the trie is not asked. */
static __always_inline int lb_unallocated(const struct addr *addr)
{
	struct meta_value *m = lb_meta();

	return m && m->service_cidrs && lb_in_range(0, addr);
}

/* One look at dst's entry, for a new connection: a backend of the client's side.
 * `pick` is any number: the slot is pick modulo the range. `empty` counts the looks that
 * found no backend. Returns REASON_TRANSLATED or REASON_AFFINITY_KEPT with *out
 * filled, REASON_ENTRY_CHANGED to look again, or the reason why there is none. */
static __always_inline enum reason lb_try(const struct frontend_key *dst,
					  const struct lb_client *client, __u32 pick,
					  int *empty, struct lb_choice *out)
{
	__u32 undefined;
	struct service svc;
	enum lb_found found = lb_frontend(dst, client->own_netns, &undefined, &svc);
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
	if (found == LB_NOBODYS && !undefined)
		return lb_unallocated(&dst->addr) ? REASON_UNALLOCATED : REASON_NO_FRONTEND;
	if (found == LB_NOBODYS)
		return (*empty)++ ? REASON_UNDEFINED_PORT : REASON_ENTRY_CHANGED;
	refused = lb_source_refused(&svc, dst, client);
	if (refused != REASON_UNSPEC)
		return (*empty)++ ? refused : REASON_ENTRY_CHANGED;
	range = inside ? svc.inside : svc.outside;
	set = svc.flags & (inside ? SERVICE_FLAG_INSIDE_LOCAL : SERVICE_FLAG_OUTSIDE_LOCAL) ?
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

/* Choose a backend for a new connection to dst: lb_try until the entry holds
 * still. Returns as lb_try; REASON_ENTRY_CHANGED where it never did. */
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

/* Whether a flow's frontend still is its service's: the address may be another's by
 * now, or nobody's, while the backend serves on. Looks twice, since an entry that
 * changes under us can look like another's. */
static __always_inline int lb_leads(const struct frontend_key *dst, int own_netns,
				    __u32 service_id)
{
	struct service svc;
	__u32 undefined;

	for (int i = 0; i < 2; i++) {
		if (lb_frontend(dst, own_netns, &undefined, &svc) == LB_FOUND && svc.id == service_id)
			return 1;
	}
	return 0;
}

/* Count one connection, or one flow begun, for a backend. */
static __always_inline void lb_count(__u32 backend_id)
{
	__u64 *n = bpf_map_lookup_elem(&backend_stats, &backend_id);

	if (n)
		__sync_fetch_and_add(n, 1);
}
