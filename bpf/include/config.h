// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* config.h: constants that the loader sets before the verifier sees a program,
 * which then drops the branches that can't be taken. */
#pragma once

#include <linux/types.h>

#include "abi.h"

/* The cookie of the node's network namespace: the one that the daemon runs in,
 * which need not be the machine's first. 0: the kernel does not tell user space
 * (before 5.14), and it is taken to be the first. */
const volatile __u64 config_netns_cookie;

/* bpf_set_retval exists (Linux 5.18): a refusal can say ECONNREFUSED. Without
 * it the kernel says EPERM. */
const volatile __u8 config_has_set_retval;

/* Ports that the kernel gives to sockets of the node which ask for none, in host byte order.
 * None of them is a node port's number, or none is named here. */
const volatile __u32 config_ephemeral_first = 32768;
const volatile __u32 config_ephemeral_last = 60999;

/* The packet path (tc.c), loaded once for each sort of device: */

/* Programs may read how far a packet's checksum is computed (summed.h). */
const volatile __u8 config_has_kern_ctx;

/* Packets begin with an Ethernet header, else with that of IP. */
const volatile __u8 config_ethernet = 1;

/* What comes in is from pods of this node, which are clients as sockets here are. */
const volatile __u8 config_pod_device;

/* Source ports for backends of other nodes: so many, from this one on; after 65535
 * comes 1024. Host byte order. */
const volatile __u32 config_source_port_first = 61000;
const volatile __u32 config_source_port_count = 4536;

/* A secret of this node, so that nobody outside can tell which client gets which
 * backend. */
const volatile __u64 config_flow_seed;

/* Clients that are pods of this cluster, of other nodes among them. */
#define CONFIG_CLUSTER_CIDRS 4
struct cidr {
	struct addr addr, mask;
};
const volatile struct cidr config_cluster_cidrs[CONFIG_CLUSTER_CIDRS];
const volatile __u32 config_cluster_cidr_count;

/* A CPU sends at most one ICMP error in so many ns, and a second's worth of them at once. */
const volatile __u64 config_unreachable_interval = 1000000;

/* How long a flow is remembered after its last packet, in ns. */
struct timeouts {
	__u64 tcp_new;         /* nobody has answered */
	__u64 tcp_established;
	__u64 tcp_close_wait;  /* one side has sent its last byte */
	__u64 tcp_closed;      /* both have, or one has given up */
	__u64 udp_new;
	__u64 udp_established;
};
const volatile struct timeouts config_timeouts = {
	.tcp_new = 60 * 1000000000ULL,
	.tcp_established = 24 * 3600 * 1000000000ULL,
	.tcp_close_wait = 3600 * 1000000000ULL,
	.tcp_closed = 10 * 1000000000ULL,
	.udp_new = 30 * 1000000000ULL,
	.udp_established = 120 * 1000000000ULL,
};
