// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* csum.h: the Internet checksum (RFC 1071), by difference (RFC 1624). Sums are unfolded; fields
 * are as in packets. */
#pragma once

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

static __always_inline __u32 csum_add(__u32 a, __u32 b)
{
	a += b;
	return a + (a < b);
}

static __always_inline __u16 csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Returns the field for data whose sum has changed by `diff`. */
static __always_inline __sum16 csum_replace(__sum16 field, __u32 diff)
{
	return ~csum_fold(csum_add((__u16)~field, diff));
}

/* Returns new - old, both of `size` bytes, a multiple of 4. */
static __always_inline __u32 csum_change(const void *old, const void *new, __u32 size)
{
	return bpf_csum_diff((void *)old, size, (void *)new, size, 0);
}

static __always_inline __u32 csum_change2(__u16 old, __u16 new)
{
	return csum_add((__u16)~old, new);
}

static __always_inline __u32 csum_change4(__u32 old, __u32 new)
{
	return csum_add(~old, new);
}

/* The same for addresses. Eight additions cost less than a call of bpf_csum_diff. */
static __always_inline __u32 csum_change_addr(const struct addr *old, const struct addr *new)
{
	__u32 diff = 0;

	for (int i = 0; i < 4; i++)
		diff = csum_add(diff, csum_change4(((const __u32 *)old->b)[i], ((const __u32 *)new->b)[i]));
	return diff;
}
