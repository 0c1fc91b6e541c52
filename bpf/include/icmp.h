// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* icmp.h: ICMP errors, and the packets that they quote. A sender recognizes its own packet in an
 * error by the addresses and ports that it had sent. Knows packets; knows no flows.
 *
 * Errors are rare. So fields are computed here and stored with BPF_F_RECOMPUTE_CSUM, which updates
 * a device's sum over the packet. */
#pragma once

#include "nat.h"

/* Types of ICMP errors, and the code that shunt sends. linux/icmp.h needs a C library. */
#define ICMP_DEST_UNREACH 3
#define ICMP_SOURCE_QUENCH 4
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMP_PORT_UNREACH 3

/* Length of the header before the quoted packet, in both families. */
#define ICMP_HEADER 8

/* Offset of the checksum, in both families. */
#define ICMP_CHECK 2

static __always_inline int icmp_is_error(const struct pkt *pkt, __u8 type)
{
	if (!pkt->is_v4)
		return type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED ||
	       type == ICMP_PARAMETERPROB || type == ICMP_SOURCE_QUENCH;
}

/* Parses the packet that an ICMP error quotes. Returns 1 with *quoted filled, or 0 if pkt is no
 * error or quotes no packet with ports. */
static __always_inline int icmp_quoted(struct __sk_buff *skb, const struct pkt *pkt,
				       struct pkt *quoted)
{
	enum pkt_kind kind;
	__u8 type;

	if (bpf_skb_load_bytes(skb, pkt->l4, &type, sizeof(type)) || !icmp_is_error(pkt, type))
		return 0;
	quoted->l3 = pkt->l4 + ICMP_HEADER;
	kind = pkt->is_v4 ? pkt_parse4(skb, quoted, 1) : pkt_parse6(skb, quoted, 1);
	return kind == PKT_TRANSPORT;
}

static __always_inline long icmp_store16(struct __sk_buff *skb, __u32 offset, __u16 value)
{
	return bpf_skb_store_bytes(skb, offset, &value, sizeof(value), BPF_F_RECOMPUTE_CSUM);
}

/* Replaces an address in the header at pkt->l3, and updates an IPv4 header's checksum. Returns 0,
 * with the change of the address added to *diff, or -1. */
static __always_inline long icmp_address(struct __sk_buff *skb, const struct pkt *pkt, __u8 end,
					 const struct addr *to, __u32 *diff)
{
	const struct addr *old = end == NAT_SOURCE ? &pkt->src : &pkt->dst;
	__u32 offset = nat_addr_offset(pkt, end), check = pkt->l3 + offsetof(struct iphdr, check);
	__u32 change, word = lb_word(to, 3);
	__sum16 sum;

	if (!pkt->is_v4) {
		*diff = csum_add(*diff, csum_change_addr(old, to));
		return bpf_skb_store_bytes(skb, offset, to, sizeof(*to), BPF_F_RECOMPUTE_CSUM);
	}
	change = csum_change4(lb_word(old, 3), word);
	*diff = csum_add(*diff, change);
	if (bpf_skb_load_bytes(skb, check, &sum, sizeof(sum)) ||
	    icmp_store16(skb, check, csum_replace(sum, change)))
		return -1;
	return bpf_skb_store_bytes(skb, offset, &word, sizeof(word), BPF_F_RECOMPUTE_CSUM);
}

/* Updates the quoted packet's own checksum, if it has one and the error quotes it. Adds the change
 * of that field to *diff. */
static __always_inline long icmp_quoted_check(struct __sk_buff *skb, const struct pkt *quoted,
					      __u32 change, __u32 *diff)
{
	__u32 offset = nat_check_offset(quoted);
	__sum16 old, new;

	if (bpf_skb_load_bytes(skb, offset, &old, sizeof(old)))
		return 0;
	if (quoted->protocol == IPPROTO_UDP && !old)
		return 0;
	new = csum_replace(old, change);
	if (quoted->protocol == IPPROTO_UDP && !new)
		new = 0xffff;
	*diff = csum_add(*diff, csum_change2(old, new));
	return icmp_store16(skb, offset, new);
}

/* Changes one address and the ports of the quoted packet, and one address of the error itself if
 * `outer` is set. Returns 0, or -1 where the kernel refused. */
static __noinline long icmp_apply(struct __sk_buff *skb, const struct pkt *pkt,
				  const struct pkt *quoted, const struct nat *nat,
				  const struct nat *outer)
{
	__be16 from[2] = { quoted->sport, quoted->dport }, to[2] = { nat->sport, nat->dport };
	__u32 old, new, change = 0, outer_change = 0, diff;
	__u32 check = pkt->l4 + ICMP_CHECK;
	__sum16 sum;

	__builtin_memcpy(&old, from, sizeof(old));
	__builtin_memcpy(&new, to, sizeof(new));
	if (icmp_address(skb, quoted, nat->end, &nat->addr, &change))
		return -1;
	/* The sum of an IPv4 header with its own checksum is the same before and after. All other
	 * changes count. */
	diff = quoted->is_v4 ? 0 : change;
	if (bpf_skb_store_bytes(skb, quoted->l4, &new, sizeof(new), BPF_F_RECOMPUTE_CSUM))
		return -1;
	diff = csum_add(diff, csum_change4(old, new));
	change = csum_add(change, csum_change4(old, new));
	if (icmp_quoted_check(skb, quoted, change, &diff))
		return -1;
	if (outer && icmp_address(skb, pkt, outer->end, &outer->addr, &outer_change))
		return -1;
	if (!pkt->is_v4) /* its checksum covers its addresses (RFC 4443, 2.3) */
		diff = csum_add(diff, outer_change);
	if (bpf_skb_load_bytes(skb, check, &sum, sizeof(sum)))
		return -1;
	return icmp_store16(skb, check, csum_replace(sum, diff));
}
