// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* summed.h: how far a packet's checksum is computed. The kernel keeps that beside the
 * packet, where __sk_buff does not show it; helpers that change a checksum look there. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "config.h"

/* Values of ip_summed (linux/skbuff.h) that matter to whoever changes a packet. */
#define SUMMED_COMPLETE 2 /* a device has summed up the packet: that has to follow it */
#define SUMMED_PARTIAL 3  /* the field has the sum of the pseudo header, for a device to go on */

struct sk_buff {
	__u8 ip_summed : 2;
} __attribute__((preserve_access_index));

/* The packet as the kernel has it (Linux 6.2). */
extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym __weak;

/* Only where config_has_kern_ctx. */
static __always_inline __u32 summed_of(struct __sk_buff *ctx)
{
	const struct sk_buff *skb = bpf_cast_to_kern_ctx(ctx);

	return BPF_CORE_READ_BITFIELD(skb, ip_summed);
}
