// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* config.h: constants that the loader sets before the verifier sees a program. The verifier then
 * drops the branches that cannot be taken. */
#pragma once

#include <linux/types.h>

#include "abi.h"

/* The cookie of the node's network namespace, which is the daemon's. It may differ from the
 * machine's first network namespace. 0: the kernel does not report the cookie to user space (before
 * 5.14), and programs use the first one's. */
const volatile __u64 config_netns_cookie;

/* bpf_set_retval exists (Linux 5.18), so that a refusal can return ECONNREFUSED. Without it the
 * kernel returns EPERM. */
const volatile __u8 config_has_set_retval;

/* The range of ports from which the kernel chooses for sockets that ask for none, in host byte
 * order. A socket with such a port cannot send from a node port's number. If the range overlaps
 * with that of node ports, the range here is empty. */
const volatile __u32 config_ephemeral_first = 32768;
const volatile __u32 config_ephemeral_last = 60999;

/* The packet path (tc.c), which is loaded once for each sort of device: */

/* Programs can read ip_summed: how far a packet's checksum is computed (summed.h). */
const volatile __u8 config_has_kern_ctx;

/* Packets begin with an Ethernet header, else with an IP header. */
const volatile __u8 config_ethernet = 1;

/* Packets on ingress are from pods of this node, which are clients inside, as sockets are. */
const volatile __u8 config_pod_device;

/* SNAT ports: the first of the range, and how many. After 65535 comes 1024. Host byte order. */
const volatile __u32 config_snat_port_first = 61000;
const volatile __u32 config_snat_port_count = 4536;

/* A secret of this node, so that clients cannot predict which backend they get. */
const volatile __u64 config_flow_seed;

/* CIDRs of this cluster's pods, on all nodes: clients from there are inside. */
#define CONFIG_CLUSTER_CIDRS 4
struct cidr {
	struct addr addr, mask;
};
const volatile struct cidr config_cluster_cidrs[CONFIG_CLUSTER_CIDRS];
const volatile __u32 config_cluster_cidr_count;

/* A CPU sends at most one ICMP error per so many ns, and a second's worth of them in a burst. */
const volatile __u64 config_unreachable_interval = 1000000;

/* How long a flow is kept after its last packet, in ns. */
struct timeouts {
	__u64 tcp_new;         /* the client has not answered the backend */
	__u64 tcp_established;
	__u64 tcp_close_wait;  /* one side has sent its last byte */
	__u64 tcp_closed;      /* both have, or one has sent a reset */
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
