/* nat.h: changes a packet's ends. Knows packets; knows neither flows nor services.
 *
 * Checksums are changed by difference, through the kernel's helpers: they know
 * whether a field holds a checksum, or only the pseudo header's sum for a device
 * that is to finish it (CHECKSUM_PARTIAL). */
#pragma once

#include <stddef.h>

#include "csum.h"
#include "pkt.h"

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

/* A UDP checksum of 0 means none, and stays. */
static __always_inline __u64 nat_check_flags(const struct pkt *pkt)
{
	return pkt->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
}

/* Brings the transport's checksum up to date. `diff` is what the addresses change in
 * sums, which a device that is to finish the checksum has in its own; the ports it has not. */
static __always_inline long nat_check(struct __sk_buff *skb, const struct pkt *pkt,
				      const struct nat *nat, __u32 diff)
{
	__u32 check = nat_check_offset(pkt), old = pkt->sport | (__u32)pkt->dport << 16;
	__u32 new = nat->sport | (__u32)nat->dport << 16;
	__u64 flags = nat_check_flags(pkt);

	if (diff && bpf_l4_csum_replace(skb, check, 0, diff, flags | BPF_F_PSEUDO_HDR))
		return -1;
	return old == new ? 0 : bpf_l4_csum_replace(skb, check, old, new, flags | sizeof(new));
}

/* The fields of a packet that are written, in a row. Where a header has options or
 * extensions, the ports are further on. */
struct nat_row4 {
	__u16 pad; /* not written */
	__sum16 check;
	__be32 src, dst;
	__be16 sport, dport;
};

struct nat_row6 {
	struct addr src, dst;
	__be16 sport, dport;
};

#define NAT_PORTS 4 /* bytes of both */

static __always_inline int nat_is_plain(const struct pkt *pkt, __u32 header)
{
	return pkt->l4 - pkt->l3 == header && !pkt->piece;
}

static __always_inline long nat_apply4(struct __sk_buff *skb, const struct pkt *pkt,
				       const struct nat *nat)
{
	__be32 src = lb_word(&pkt->src, 3), dst = lb_word(&pkt->dst, 3), to = lb_word(&nat->addr, 3);
	__be32 from = nat->end == NAT_SOURCE ? src : dst;
	struct nat_row4 row = {
		.check = pkt->check,
		.src = nat->end == NAT_SOURCE ? to : src, .dst = nat->end == NAT_SOURCE ? dst : to,
		.sport = nat->sport, .dport = nat->dport,
	};
	__u32 at = pkt->l3 + offsetof(struct iphdr, check), diff = 0;
	const __u32 size = sizeof(row) - offsetof(struct nat_row4, check);

	if (from != to) {
		diff = csum_change4(from, to);
		row.check = csum_replace(pkt->check, diff);
	}
	if (!pkt->piece && nat_check(skb, pkt, nat, diff))
		return -1;
	if (nat_is_plain(pkt, sizeof(struct iphdr)))
		return bpf_skb_store_bytes(skb, at, &row.check, size, 0);
	if (bpf_skb_store_bytes(skb, at, &row.check, size - NAT_PORTS, 0))
		return -1;
	return pkt->piece ? 0 : bpf_skb_store_bytes(skb, pkt->l4, &row.sport, NAT_PORTS, 0);
}

static __always_inline long nat_apply6(struct __sk_buff *skb, const struct pkt *pkt,
				       const struct nat *nat)
{
	const struct addr *from = nat->end == NAT_SOURCE ? &pkt->src : &pkt->dst;
	struct nat_row6 row = {
		.src = nat->end == NAT_SOURCE ? nat->addr : pkt->src,
		.dst = nat->end == NAT_SOURCE ? pkt->dst : nat->addr,
		.sport = nat->sport, .dport = nat->dport,
	};
	__u32 at = pkt->l3 + offsetof(struct ipv6hdr, saddr), diff = 0;

	if (!lb_addr_equal(from, &nat->addr))
		diff = csum_change_addr(from, &nat->addr);
	if (!pkt->piece && nat_check(skb, pkt, nat, diff))
		return -1;
	/* A device's sum over the packet (CHECKSUM_COMPLETE). The helper changes it as
	 * for IPv4, whose header has a checksum that makes up for the address. IPv6's has
	 * none: address and transport checksum cancel out, and in a piece there is only
	 * the address. */
	if (diff)
		bpf_csum_update(skb, diff);
	if (nat_is_plain(pkt, sizeof(struct ipv6hdr)))
		return bpf_skb_store_bytes(skb, at, &row, sizeof(row), 0);
	if (bpf_skb_store_bytes(skb, at, &row, sizeof(row) - NAT_PORTS, 0))
		return -1;
	return pkt->piece ? 0 : bpf_skb_store_bytes(skb, pkt->l4, &row.sport, NAT_PORTS, 0);
}

/* Gives the packet another end. Returns 0, or -1 where the kernel refused; the
 * packet is then half changed and of no use. */
static __always_inline long nat_apply(struct __sk_buff *skb, const struct pkt *pkt,
				      const struct nat *nat)
{
	return pkt->is_v4 ? nat_apply4(skb, pkt, nat) : nat_apply6(skb, pkt, nat);
}
