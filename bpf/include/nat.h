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
	__u8 end; /* enum nat_end */
};

static __always_inline __u32 nat_addr_offset(const struct pkt *pkt, __u8 end)
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

static __always_inline long nat_address4(struct __sk_buff *skb, const struct pkt *pkt,
					 const struct nat *nat, const struct addr *old)
{
	__be32 from = lb_word(old, 3), to = lb_word(&nat->addr, 3);
	__u32 check = pkt->l3 + offsetof(struct iphdr, check);

	if (bpf_l3_csum_replace(skb, check, from, to, sizeof(to)))
		return -1;
	if (!pkt->piece && bpf_l4_csum_replace(skb, nat_check_offset(pkt), from, to,
					       nat_check_flags(pkt) | BPF_F_PSEUDO_HDR | sizeof(to)))
		return -1;
	return bpf_skb_store_bytes(skb, nat_addr_offset(pkt, nat->end), &to, sizeof(to), 0);
}

static __always_inline long nat_address6(struct __sk_buff *skb, const struct pkt *pkt,
					 const struct nat *nat, const struct addr *old)
{
	__u32 diff = csum_change(old, &nat->addr, sizeof(*old));

	if (!pkt->piece && bpf_l4_csum_replace(skb, nat_check_offset(pkt), 0, diff,
					       nat_check_flags(pkt) | BPF_F_PSEUDO_HDR))
		return -1;
	/* A device's sum over the packet (CHECKSUM_COMPLETE). The helper changes it as
	 * for IPv4, whose header has a checksum that makes up for the address. IPv6's has
	 * none: address and transport checksum cancel out, and in a piece there is only
	 * the address. */
	bpf_csum_update(skb, diff);
	return bpf_skb_store_bytes(skb, nat_addr_offset(pkt, nat->end), &nat->addr,
				   sizeof(nat->addr), 0);
}

static __always_inline long nat_ports(struct __sk_buff *skb, const struct pkt *pkt,
				      const struct nat *nat)
{
	__be16 from[2] = { pkt->sport, pkt->dport }, to[2] = { nat->sport, nat->dport };
	__u32 old, new;

	__builtin_memcpy(&old, from, sizeof(old));
	__builtin_memcpy(&new, to, sizeof(new));
	if (old == new)
		return 0;
	if (bpf_l4_csum_replace(skb, nat_check_offset(pkt), old, new,
				nat_check_flags(pkt) | sizeof(new)))
		return -1;
	return bpf_skb_store_bytes(skb, pkt->l4, &new, sizeof(new), 0);
}

/* Gives the packet another end. Returns 0, or -1 where the kernel refused; the
 * packet is then half changed and of no use. */
static __noinline long nat_apply(struct __sk_buff *skb, const struct pkt *pkt,
				 const struct nat *nat)
{
	const struct addr *old = nat->end == NAT_SOURCE ? &pkt->src : &pkt->dst;

	if (!lb_addr_equal(old, &nat->addr) &&
	    (pkt->is_v4 ? nat_address4(skb, pkt, nat, old) : nat_address6(skb, pkt, nat, old)))
		return -1;
	return pkt->piece ? 0 : nat_ports(skb, pkt, nat);
}
