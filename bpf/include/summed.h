// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* summed.h: how far a packet's checksum is computed. The kernel has that in ip_summed of struct
 * sk_buff, which __sk_buff lacks. Helpers that change a checksum read ip_summed. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "config.h"

/* Values of ip_summed (linux/skbuff.h) that matter when a packet is changed. */
#define SUMMED_COMPLETE 2 /* a device has summed up the packet, and that sum has to be updated */
#define SUMMED_PARTIAL 3  /* the field has the pseudo header's sum, and a device completes it */

struct sk_buff {
	__u8 ip_summed : 2;
} __attribute__((preserve_access_index));

/* Returns the kernel's struct sk_buff (Linux 6.2). */
extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym __weak;

/* Returns ip_summed. Call it only with config_has_kern_ctx. */
static __always_inline __u32 summed_of(struct __sk_buff *ctx)
{
	const struct sk_buff *skb = bpf_cast_to_kern_ctx(ctx);

	return BPF_CORE_READ_BITFIELD(skb, ip_summed);
}
