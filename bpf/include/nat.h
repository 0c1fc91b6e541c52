// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* nat.h: changes a packet's addresses and ports. Knows packets; knows neither flows nor services.
 *
 * Checksums are updated by difference. A checksum field contains either a checksum, or only the
 * pseudo header's sum, which a device is to complete (CHECKSUM_PARTIAL). The kernel's helpers
 * distinguish the two. But two calls of them were a third of the cost of an established packet. So
 * where programs can read ip_summed themselves (summed.h), all changes of a plain packet are
 * written at once. */
#pragma once

#include <stddef.h>

#include "csum.h"
#include "pkt.h"
#include "summed.h"

/* Which of a packet's addresses is changed; its ports may both be. */
enum nat_end { NAT_SOURCE, NAT_DESTINATION };

struct nat {
	struct addr addr;
	__be16 sport, dport;
	__u32 end; /* enum nat_end */
};

static __always_inline __u32 nat_addr_offset(const struct pkt *pkt, __u32 end)
{
	if (pkt->is_v4)
		return pkt->l3 + (end == NAT_SOURCE ? offsetof(struct iphdr, saddr) :
						      offsetof(struct iphdr, daddr));
	return pkt->l3 + (end == NAT_SOURCE ? offsetof(struct ipv6hdr, saddr) :
					      offsetof(struct ipv6hdr, daddr));
}

static __always_inline __u32 nat_check_offset(const struct pkt *pkt)
{
	return pkt->l4 + (pkt->protocol == IPPROTO_TCP ? offsetof(struct tcphdr, check) :
							 offsetof(struct udphdr, check));
}

/* A UDP checksum of 0 means that there is none. It stays 0. */
static __always_inline __u64 nat_check_flags(const struct pkt *pkt)
{
	return pkt->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
}

/* The fields of a packet that are written, in the packet's order. After IP options or extension
 * headers, the transport header does not follow at once. */
union nat_l4 {
	struct udphdr udp; /* TCP's ports have the same offsets */
	struct tcphdr tcp;
};

struct nat_row4 {
	__u16 pad; /* not written */
	__sum16 check;
	__be32 src, dst;
	union nat_l4 l4;
};

struct nat_row6 {
	struct addr src, dst;
	union nat_l4 l4;
};

#define NAT_PORTS 4 /* bytes of both */

/* What a packet's new address and ports change in sums, unfolded. */
struct nat_change {
	__u32 addrs, ports;
};

static __always_inline struct nat_change nat_change_of(const struct pkt *pkt, const struct nat *nat)
{
	const struct addr *from = nat->end == NAT_SOURCE ? &pkt->src : &pkt->dst;
	__u32 old = pkt->sport | (__u32)pkt->dport << 16, new = nat->sport | (__u32)nat->dport << 16;
	struct nat_change change = {};

	if (!lb_addr_equal(from, &nat->addr))
		change.addrs = pkt->is_v4 ? csum_change4(lb_word(from, 3), lb_word(&nat->addr, 3)) :
					    csum_change_addr(from, &nat->addr);
	if (old != new)
		change.ports = csum_change4(old, new);
	return change;
}

/* Updates the transport's checksum through helpers. If a device is to complete the checksum, the
 * addresses are in its sum and the ports are not. If a device has summed up the packet
 * (CHECKSUM_COMPLETE), bpf_l4_csum_replace changes that sum as for IPv4, whose header checksum
 * makes up for the address. IPv6 has no header checksum: there, address and transport checksum
 * cancel out, and a later fragment has only the address. */
static __always_inline long nat_check(struct __sk_buff *skb, const struct pkt *pkt,
				      const struct nat_change *change)
{
	__u32 check = nat_check_offset(pkt);
	__u64 flags = nat_check_flags(pkt);

	if (change->addrs && !pkt->is_v4)
		bpf_csum_update(skb, change->addrs);
	if (pkt->later_fragment)
		return 0;
	if (change->addrs && bpf_l4_csum_replace(skb, check, 0, change->addrs, flags | BPF_F_PSEUDO_HDR))
		return -1;
	if (change->ports && bpf_l4_csum_replace(skb, check, 0, change->ports, flags))
		return -1;
	return 0;
}

/* Returns the new transport checksum field of a packet with that ip_summed (summed.h). */
static __always_inline __sum16 nat_sum(__sum16 field, __u32 summed, const struct nat_change *change)
{
	if (summed == SUMMED_PARTIAL)
		return csum_fold(csum_add(field, change->addrs));
	return csum_replace(field, csum_add(change->addrs, change->ports));
}

/* Reads the transport header of a plain packet into *l4, with its new ports and checksum. Returns
 * how many bytes of it are to be written, or 0 where it is not in the linear data. */
static __always_inline __u32 nat_renew_l4(struct __sk_buff *skb, const struct pkt *pkt, __u32 header,
					  const struct nat *nat, const struct nat_change *change,
					  union nat_l4 *l4)
{
	const void *at = (void *)(long)skb->data + pkt_l3() + header;
	const void *end = (void *)(long)skb->data_end;
	__u32 summed = summed_of(skb), size;

	if (pkt->protocol == IPPROTO_TCP) {
		if (at + sizeof(l4->tcp) > end)
			return 0;
		l4->tcp = *(const struct tcphdr *)at;
		l4->tcp.check = nat_sum(l4->tcp.check, summed, change);
		size = sizeof(l4->tcp);
	} else {
		if (at + sizeof(l4->udp) > end)
			return 0;
		l4->udp = *(const struct udphdr *)at;
		if (l4->udp.check) /* 0 means that there is none */
			l4->udp.check = nat_sum(l4->udp.check, summed, change) ?: 0xffff;
		size = sizeof(l4->udp);
	}
	l4->udp.source = nat->sport;
	l4->udp.dest = nat->dport;
	/* A checksum cancels the fields that it covers in the device's sum. In IPv4 two checksums
	 * cover the address, so the sum changes by the opposite of the address's change. */
	if (summed == SUMMED_COMPLETE && pkt->is_v4)
		bpf_csum_update(skb, ~change->addrs);
	return size;
}

/* Writes a row. `row` up to `l4` belongs at offset `from` of an IP header of `header` bytes, and
 * ends where that header ends. *l4 follows it at once where the packet is plain. */
static __always_inline long nat_write(struct __sk_buff *skb, const struct pkt *pkt,
				      const struct nat *nat, const struct nat_change *change,
				      __u32 header, __u32 from, const void *row, union nat_l4 *l4)
{
	int plain = pkt->l4 - pkt->l3 == header && !pkt->later_fragment;
	__u32 at = pkt->l3 + from, head = header - from, size = 0;

	if (config_has_kern_ctx && plain)
		size = nat_renew_l4(skb, pkt, header, nat, change, l4);
	if (size)
		return bpf_skb_store_bytes(skb, at, row, head + size, 0);
	if (nat_check(skb, pkt, change))
		return -1;
	if (plain)
		return bpf_skb_store_bytes(skb, at, row, head + NAT_PORTS, 0);
	if (bpf_skb_store_bytes(skb, at, row, head, 0))
		return -1;
	return pkt->later_fragment ? 0 : bpf_skb_store_bytes(skb, pkt->l4, l4, NAT_PORTS, 0);
}

static __always_inline long nat_apply4(struct __sk_buff *skb, const struct pkt *pkt,
				       const struct nat *nat)
{
	const struct nat_change change = nat_change_of(pkt, nat);
	__be32 src = lb_word(&pkt->src, 3), dst = lb_word(&pkt->dst, 3), to = lb_word(&nat->addr, 3);
	struct nat_row4 row = {
		.check = csum_replace(pkt->check, change.addrs),
		.src = nat->end == NAT_SOURCE ? to : src, .dst = nat->end == NAT_SOURCE ? dst : to,
		.l4.udp = { .source = nat->sport, .dest = nat->dport },
	};

	return nat_write(skb, pkt, nat, &change, sizeof(struct iphdr), offsetof(struct iphdr, check),
			 &row.check, &row.l4);
}

static __always_inline long nat_apply6(struct __sk_buff *skb, const struct pkt *pkt,
				       const struct nat *nat)
{
	const struct nat_change change = nat_change_of(pkt, nat);
	struct nat_row6 row = {
		.src = nat->end == NAT_SOURCE ? nat->addr : pkt->src,
		.dst = nat->end == NAT_SOURCE ? pkt->dst : nat->addr,
		.l4.udp = { .source = nat->sport, .dest = nat->dport },
	};

	return nat_write(skb, pkt, nat, &change, sizeof(struct ipv6hdr), offsetof(struct ipv6hdr, saddr),
			 &row, &row.l4);
}

/* Changes the address at nat->end, and the ports. Returns 0, or -1 where the kernel refused: the
 * packet is then half changed, and has to be dropped. */
static __always_inline long nat_apply(struct __sk_buff *skb, const struct pkt *pkt,
				      const struct nat *nat)
{
	return pkt->is_v4 ? nat_apply4(skb, pkt, nat) : nat_apply6(skb, pkt, nat);
}
