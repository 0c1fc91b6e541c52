//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* probe.c: a feature check that only loading a program can answer. Never attached. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "summed.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* For config_has_kern_ctx. */
SEC("tc")
int probe_summed(struct __sk_buff *skb)
{
	return summed_of(skb);
}
