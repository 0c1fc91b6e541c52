// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* hook.h: counts the reason with which a run of a program ends. */
#pragma once

#include "maps.h"

static __always_inline void hook_count(enum reason reason)
{
	__u32 key = reason;
	__u64 *n = bpf_map_lookup_elem(&counters, &key);

	if (n)
		*n += 1;
}
