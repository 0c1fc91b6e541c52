//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* expire.c: finds the expired entries of map `flows`, with an iterator in the kernel. Entries of
 * flows that have not expired are only counted, and not copied to user space. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "timeout.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The fields that are read; the loader finds their offsets (CO-RE). */
#define KERNEL __attribute__((preserve_access_index))

struct seq_file;

struct bpf_iter_meta {
	__bpf_md_ptr(struct seq_file *, seq);
	__u64 session_id;
} KERNEL;

struct bpf_iter__bpf_map_elem {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct bpf_map *, map);
	__bpf_md_ptr(void *, key);
	__bpf_md_ptr(void *, value);
} KERNEL;

/* The records that user space reads. The last one has a key of kind FLOW_KEY_UNSPEC, and the number
 * of all entries of the map in flow.used. */
struct expired {
	struct flow_key key;
	struct flow flow;
};
_Static_assert(sizeof(struct expired) == sizeof(struct flow_key) + sizeof(struct flow), "struct expired");

/* The session of the iterator that was opened last, and how many entries it has visited. */
__u64 expire_session, expire_count;

SEC("iter/bpf_map_elem")
int shunt_expired(struct bpf_iter__bpf_map_elem *ctx)
{
	struct flow_key *key = ctx->key;
	struct flow *flow = ctx->value;
	struct expired out = {};

	if (expire_session != ctx->meta->session_id) {
		expire_session = ctx->meta->session_id;
		expire_count = 0;
	}
	if (!key || !flow) { /* the iterator's last call */
		out.flow.used = expire_count;
		bpf_seq_write(ctx->meta->seq, &out, sizeof(out));
		return 0;
	}
	/* A copy, so that user space gets the same state of the entry that is checked here. */
	out.flow = *flow;
	if (flow_is_expired(&out.flow, bpf_ktime_get_ns())) {
		out.key = *key;
		if (bpf_seq_write(ctx->meta->seq, &out, sizeof(out)))
			return 0; /* no room: the entry is repeated with the next read */
	}
	expire_count++;
	return 0;
}
