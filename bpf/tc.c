//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* tc.c: the packet path. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "config.h"
#include "hook.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tc")
int shunt_ingress(struct __sk_buff *skb)
{
	__u32 x = skb->ifindex;
	struct fragment_key f = {};
	struct flow_key k = {};
	struct source_key s = {};

	bpf_map_lookup_elem(&devices, &x);
	bpf_map_lookup_elem(&flows, &k);
	bpf_map_lookup_elem(&flows_new, &k);
	bpf_map_lookup_elem(&fragments, &f);
	bpf_map_lookup_elem(&sources, &s);
	hook_count(config_ethernet ? REASON_NO_FRONTEND : REASON_PROTOCOL);
	hook_count(config_pod_device + config_flow_seed + config_source_port_first +
			config_source_port_count + config_cluster_cidr_count +
			config_timeouts.udp_new + config_cluster_cidrs[0].addr.b[0] ? REASON_NO_FLOW : REASON_OWN_FLOW);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int shunt_egress(struct __sk_buff *skb)
{
	hook_count(REASON_EGRESS_PASSED);
	return TC_ACT_UNSPEC;
}
