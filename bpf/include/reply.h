// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* reply.h: turns a refused packet into a reset or an ICMP error, and sends it back by the device
 * that it came from. Knows packets; knows no flows.
 *
 * TCP gets a reset (RFC 9293, 3.10.7.1). UDP gets an ICMP or ICMPv6 port unreachable (RFC 792, RFC
 * 4443), which quotes the IP header, its options and 8 bytes. */
#pragma once

#include "csum.h"
#include "icmp.h"

#define REPLY_TTL 64

/* Bytes of a quoted packet, at most: 60 of an IPv4 header, or an IPv6 header with some
 * extensions. */
#define REPLY_QUOTE 256

#define IP_DF 0x4000

/* A token bucket for the ICMP errors of one CPU: `left` is the ns that were left to spend at time
 * `at`. */
struct reply_limit {
	__u64 at;
	__s64 left;
};

#define REPLY_BURST 1000000000LL /* ns that can be saved up */

/* Takes the cost of one answer. Returns 1 if the answer may be sent, else 0. */
static __always_inline int reply_take(struct reply_limit *limit, __u64 now)
{
	__s64 cost = config_unreachable_interval, since = now - limit->at;

	if (since > 0) {
		limit->at = now;
		limit->left += since < REPLY_BURST ? since : REPLY_BURST;
		if (limit->left > REPLY_BURST)
			limit->left = REPLY_BURST;
	}
	if (limit->left < cost)
		return 0;
	limit->left -= cost;
	return 1;
}

/* Reports whether an address is one host's: not unspecified, loopback, multicast or reserved (RFC
 * 1122, 3.2.2; RFC 4443, 2.4). */
static __always_inline int reply_is_host(const struct addr *addr)
{
	if (lb_addr_is_v4(addr))
		return addr->b[12] != 0 && addr->b[12] != 127 && addr->b[12] < 224;
	if (lb_word(addr, 0) | lb_word(addr, 1) | lb_word(addr, 2))
		return addr->b[0] != 0xff;
	return bpf_ntohl(lb_word(addr, 3)) > 1;
}

/* Reports whether a packet may be answered. Three are not: a reset; a packet whose source is not
 * the address of one host; a packet whose source is its destination. */
static __always_inline int reply_is_answerable(const struct pkt *pkt)
{
	return !(pkt->protocol == IPPROTO_TCP && pkt->tcp_flags & TCP_RST) &&
	       reply_is_host(&pkt->src) && !lb_addr_equal(&pkt->src, &pkt->dst);
}

static __always_inline long reply_swap_ethernet(struct __sk_buff *skb)
{
	__u8 old[2 * ETH_ALEN], new[2 * ETH_ALEN];

	if (!config_ethernet)
		return 0;
	if (bpf_skb_load_bytes(skb, 0, old, sizeof(old)))
		return -1;
	__builtin_memcpy(new, old + ETH_ALEN, ETH_ALEN);
	__builtin_memcpy(new + ETH_ALEN, old, ETH_ALEN);
	return bpf_skb_store_bytes(skb, 0, new, sizeof(new), 0);
}

/* Returns the pseudo header's sum, in which src and dst can be swapped. Of an IPv4 address only
 * the last word counts: the prefix of its v4-mapped form would change the sum. */
static __always_inline __u32 reply_pseudo(const struct pkt *pkt, __u8 protocol, __u16 size)
{
	__u32 sum = bpf_htons(size) + bpf_htons(protocol);

	for (int i = pkt->is_v4 ? 3 : 0; i < 4; i++) {
		sum = csum_add(sum, lb_word(&pkt->src, i));
		sum = csum_add(sum, lb_word(&pkt->dst, i));
	}
	return sum;
}

/* Writes a reply's IP header over that of pkt. Options and extension headers stay. `size` is that
 * of the IP packet. */
static __always_inline long reply_turn_ip(struct __sk_buff *skb, const struct pkt *pkt, __u16 size)
{
	struct iphdr old, new;
	struct ipv6hdr ip6;

	if (!pkt->is_v4) {
		if (bpf_skb_load_bytes(skb, pkt->l3, &ip6, sizeof(ip6)))
			return -1;
		ip6.payload_len = bpf_htons(size - sizeof(ip6));
		ip6.hop_limit = REPLY_TTL;
		__builtin_memcpy(&ip6.saddr, &pkt->dst, sizeof(ip6.saddr));
		__builtin_memcpy(&ip6.daddr, &pkt->src, sizeof(ip6.daddr));
		return bpf_skb_store_bytes(skb, pkt->l3, &ip6, sizeof(ip6), BPF_F_RECOMPUTE_CSUM);
	}
	if (bpf_skb_load_bytes(skb, pkt->l3, &old, sizeof(old)))
		return -1;
	new = old;
	new.tot_len = bpf_htons(size);
	new.frag_off = bpf_htons(IP_DF);
	new.ttl = REPLY_TTL;
	new.saddr = lb_word(&pkt->dst, 3);
	new.daddr = lb_word(&pkt->src, 3);
	new.check = csum_replace(old.check, csum_change(&old, &new, sizeof(new)));
	return bpf_skb_store_bytes(skb, pkt->l3, &new, sizeof(new), BPF_F_RECOMPUTE_CSUM);
}

/* Returns the length of the TCP or UDP packet by its IP header, or 0 where that is invalid. */
static __always_inline __u16 reply_transport_size(struct __sk_buff *skb, const struct pkt *pkt)
{
	__u32 header = pkt->l4 - pkt->l3, size;
	struct ipv6hdr ip6;
	struct iphdr ip;

	if (pkt->is_v4) {
		if (bpf_skb_load_bytes(skb, pkt->l3, &ip, sizeof(ip)))
			return 0;
		size = bpf_ntohs(ip.tot_len);
	} else {
		if (bpf_skb_load_bytes(skb, pkt->l3, &ip6, sizeof(ip6)))
			return 0;
		size = bpf_ntohs(ip6.payload_len) + sizeof(ip6);
	}
	return size < header ? 0 : size - header;
}

static __always_inline void reply_reset_header(const struct tcphdr *got, __u16 size,
					       struct tcphdr *out)
{
	__u32 data = size - got->doff * 4;

	__builtin_memset(out, 0, sizeof(*out));
	out->source = got->dest;
	out->dest = got->source;
	out->doff = sizeof(*out) / 4;
	out->rst = 1;
	if (got->ack) {
		out->seq = got->ack_seq;
		return;
	}
	out->ack = 1;
	out->ack_seq = bpf_htonl(bpf_ntohl(got->seq) + data + got->syn + got->fin);
}

/* Reports whether a device is to complete the TCP checksum (CHECKSUM_PARTIAL: the packet is from a
 * virtual device's other end). The field then contains the pseudo header's sum. In the answer it
 * must contain the new pseudo header's sum, as a program cannot clear this state. To detect the
 * state, bpf_l4_csum_replace is called with a change that is not of the pseudo header: with
 * CHECKSUM_PARTIAL it leaves the field unchanged. */
static __always_inline int reply_is_unfinished(struct __sk_buff *skb, const struct pkt *pkt,
					       __sum16 check)
{
	__u32 offset = pkt->l4 + offsetof(struct tcphdr, check);
	__sum16 now = ~check;

	bpf_l4_csum_replace(skb, offset, 0, 1, 2);
	bpf_skb_load_bytes(skb, offset, &now, sizeof(now));
	bpf_skb_store_bytes(skb, offset, &check, sizeof(check), 0);
	return now == check;
}

/* Returns the verdict of bpf_redirect, or -1 where no reset can be made. */
static __noinline long reply_reset(struct __sk_buff *skb, const struct pkt *pkt)
{
	__u16 size = reply_transport_size(skb, pkt);
	struct tcphdr got, reset;
	__u32 sum;

	if (bpf_skb_load_bytes(skb, pkt->l4, &got, sizeof(got)))
		return -1;
	if (got.doff < sizeof(got) / 4 || size < got.doff * 4 || pkt->first_fragment)
		return -1;
	reply_reset_header(&got, size, &reset);
	sum = reply_pseudo(pkt, IPPROTO_TCP, sizeof(reset));
	if (reply_is_unfinished(skb, pkt, got.check))
		reset.check = csum_fold(sum);
	else
		reset.check = ~csum_fold(bpf_csum_diff(NULL, 0, (void *)&reset, sizeof(reset), sum));
	if (bpf_skb_change_tail(skb, pkt->l4 + sizeof(reset), 0) ||
	    reply_turn_ip(skb, pkt, pkt->l4 - pkt->l3 + sizeof(reset)) ||
	    bpf_skb_store_bytes(skb, pkt->l4, &reset, sizeof(reset), BPF_F_RECOMPUTE_CSUM) ||
	    reply_swap_ethernet(skb))
		return -1;
	return bpf_redirect(skb->ifindex, 0);
}

/* Adds `size` bytes from an offset on, a multiple of 4, to *sum. Returns 0, or -1. */
static __always_inline long reply_sum(struct __sk_buff *skb, __u32 offset, __u32 size, __u32 *sum)
{
	__u32 word;

	for (int i = 0; i < REPLY_QUOTE / 4; i++) {
		if (i * 4 >= size)
			return 0;
		if (bpf_skb_load_bytes(skb, offset + i * 4, &word, sizeof(word)))
			return -1;
		*sum = csum_add(*sum, word);
	}
	return size > REPLY_QUOTE ? -1 : 0;
}

struct reply_icmp4 {
	struct iphdr ip;
	struct {
		__u8 type, code;
		__sum16 checksum;
		__be32 unused;
	} icmp;
};

struct reply_icmp6 {
	struct ipv6hdr ip;
	struct icmp6hdr icmp;
};

static __always_inline long reply_icmp4(struct __sk_buff *skb, const struct pkt *pkt, __u32 quote,
					__u32 sum)
{
	struct reply_icmp4 head = {
		.ip = {
			.version = 4, .ihl = 5, .ttl = REPLY_TTL, .protocol = IPPROTO_ICMP,
			.tot_len = bpf_htons(sizeof(head) + quote), .frag_off = bpf_htons(IP_DF),
			.saddr = lb_word(&pkt->dst, 3), .daddr = lb_word(&pkt->src, 3),
		},
		.icmp = { .type = ICMP_DEST_UNREACH, .code = ICMP_PORT_UNREACH },
	};

	head.ip.check = ~csum_fold(bpf_csum_diff(NULL, 0, (void *)&head.ip, sizeof(head.ip), 0));
	head.icmp.checksum = ~csum_fold(bpf_csum_diff(NULL, 0, (void *)&head.icmp,
						      sizeof(head.icmp), sum));
	return bpf_skb_store_bytes(skb, pkt->l3, &head, sizeof(head), BPF_F_RECOMPUTE_CSUM);
}

static __always_inline long reply_icmp6(struct __sk_buff *skb, const struct pkt *pkt, __u32 quote,
					__u32 sum)
{
	struct reply_icmp6 head = {
		.ip = {
			.version = 6, .hop_limit = REPLY_TTL, .nexthdr = IPPROTO_ICMPV6,
			.payload_len = bpf_htons(sizeof(head.icmp) + quote),
		},
		.icmp = { .icmp6_type = ICMPV6_DEST_UNREACH, .icmp6_code = ICMPV6_PORT_UNREACH },
	};

	__builtin_memcpy(&head.ip.saddr, &pkt->dst, sizeof(head.ip.saddr));
	__builtin_memcpy(&head.ip.daddr, &pkt->src, sizeof(head.ip.daddr));
	sum = csum_add(sum, reply_pseudo(pkt, IPPROTO_ICMPV6, sizeof(head.icmp) + quote));
	head.icmp.icmp6_cksum = ~csum_fold(bpf_csum_diff(NULL, 0, (void *)&head.icmp,
							 sizeof(head.icmp), sum));
	return bpf_skb_store_bytes(skb, pkt->l3, &head, sizeof(head), BPF_F_RECOMPUTE_CSUM);
}

/* Returns the verdict of bpf_redirect, or -1 where no answer can be made. */
static __noinline long reply_unreachable(struct __sk_buff *skb, const struct pkt *pkt)
{
	__u32 quote = pkt->l4 - pkt->l3 + sizeof(struct udphdr), sum = 0;
	__u32 room = pkt->is_v4 ? sizeof(struct reply_icmp4) : sizeof(struct reply_icmp6);

	if (bpf_skb_change_tail(skb, pkt->l3 + quote, 0) ||
	    reply_sum(skb, pkt->l3, quote, &sum) ||
	    bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_MAC, 0) ||
	    (pkt->is_v4 ? reply_icmp4(skb, pkt, quote, sum) : reply_icmp6(skb, pkt, quote, sum)) ||
	    reply_swap_ethernet(skb))
		return -1;
	return bpf_redirect(skb->ifindex, 0);
}
