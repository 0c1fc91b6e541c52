// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* pkt.h: parses packets. Knows headers; knows neither flows nor services, and changes nothing.
 *
 * Plain headers are read in place. All others are read by bpf_skb_load_bytes: their offsets vary
 * (options, extension headers), and parts of a packet need not be in its linear data. */
#pragma once

#include <linux/bpf.h>
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lb.h"

enum pkt_kind {
	PKT_OTHER,     /* passed: not IP, another protocol, a VLAN tag in the skb, or too many
		        * extension headers */
	PKT_MALFORMED,
	PKT_TRANSPORT, /* TCP or UDP, with ports */
	PKT_FRAGMENT,     /* a later fragment: no ports */
	PKT_ICMP,
};

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* Extension headers that are parsed. Packets with more of them are passed. */
#define PKT_EXTENSIONS 8

/* From linux/if_packet.h, which has a name that clashes. */
#define PKT_TYPE_HOST 0

struct pkt {
	struct addr src, dst;
	__be16 sport, dport;
	__u16 l3, l4;     /* offsets of the headers from the packet's start */
	__u32 fragment_id;
	__u8 protocol;    /* of an IPv6 fragment: the next header that the fragment header names */
	__u8 is_v4;
	__u8 first_fragment; /* the first fragment */
	__u8 later_fragment;       /* a later fragment, which does not contain `sport` and
				    * `dport` */
	__u8 tcp_flags;
	__u8 pad;
	__sum16 check; /* of the IPv4 header */
	struct tcp_point at; /* TCP; not set for later fragments and quoted packets */
};

/* Returns the offset of the IP header. */
static __always_inline __u32 pkt_l3(void)
{
	return config_ethernet ? ETH_HLEN : 0;
}

static __always_inline int pkt_is_syn(const struct pkt *pkt)
{
	return (pkt->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
}

static __always_inline int pkt_is_syn_ack(const struct pkt *pkt)
{
	return (pkt->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == (TCP_SYN | TCP_ACK);
}

/* Reports whether a packet can be the first one of a flow: a TCP SYN, or any datagram. */
static __always_inline int pkt_begins(const struct pkt *pkt)
{
	return pkt->protocol != IPPROTO_TCP || pkt_is_syn(pkt);
}

/* Parses the ports. A quoted packet need not have more than 64 bits behind the IP header (RFC
 * 792). */
static __always_inline enum pkt_kind pkt_parse_ports(struct __sk_buff *skb, struct pkt *pkt,
						     int quoted)
{
	struct tcphdr tcp;
	struct udphdr udp;

	if (pkt->protocol == IPPROTO_TCP && !quoted) {
		if (bpf_skb_load_bytes(skb, pkt->l4, &tcp, sizeof(tcp)))
			return PKT_MALFORMED;
		pkt->sport = tcp.source;
		pkt->dport = tcp.dest;
		pkt->tcp_flags = ((__u8 *)&tcp)[13];
		pkt->at.seq = tcp.seq;
		pkt->at.ack = tcp.ack_seq;
		return PKT_TRANSPORT;
	}
	if (pkt->protocol == IPPROTO_TCP || pkt->protocol == IPPROTO_UDP) {
		if (bpf_skb_load_bytes(skb, pkt->l4, &udp, sizeof(udp)))
			return PKT_MALFORMED;
		pkt->sport = udp.source;
		pkt->dport = udp.dest;
		return PKT_TRANSPORT;
	}
	if (pkt->protocol == (pkt->is_v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6) && !pkt->first_fragment)
		return PKT_ICMP;
	return PKT_OTHER;
}

static __always_inline void pkt_addr4(struct addr *addr, __be32 v4)
{
	*(__u32 *)&addr->b[0] = 0;
	*(__u32 *)&addr->b[4] = 0;
	*(__u32 *)&addr->b[8] = bpf_htonl(0xffff);
	*(__u32 *)&addr->b[12] = v4;
}

#define IP_MORE_FRAGMENTS 0x2000
#define IP_OFFSET 0x1fff

static __always_inline enum pkt_kind pkt_parse4(struct __sk_buff *skb, struct pkt *pkt, int quoted)
{
	struct iphdr ip;
	__u16 frag;

	if (bpf_skb_load_bytes(skb, pkt->l3, &ip, sizeof(ip)))
		return PKT_MALFORMED;
	if (ip.version != 4 || ip.ihl < 5)
		return PKT_MALFORMED;
	pkt->is_v4 = 1;
	pkt->check = ip.check;
	pkt_addr4(&pkt->src, ip.saddr);
	pkt_addr4(&pkt->dst, ip.daddr);
	pkt->protocol = ip.protocol;
	pkt->l4 = pkt->l3 + ip.ihl * 4;
	frag = bpf_ntohs(ip.frag_off);
	pkt->fragment_id = (__u32)ip.id << 16;
	if (frag & IP_OFFSET) {
		pkt->later_fragment = 1;
		return PKT_FRAGMENT;
	}
	pkt->first_fragment = (frag & IP_MORE_FRAGMENTS) != 0;
	return pkt_parse_ports(skb, pkt, quoted);
}

#define IP6_MORE_FRAGMENTS 0x0001
#define IP6_OFFSET 0xfff8

struct pkt_fragment_header {
	__u8 next, reserved;
	__be16 offset; /* in units of 8 bytes, the upper 13 bits */
	__be32 id;
};

/* Parses one extension header (RFC 8200). Returns 1 to go on with the next, 0 where the chain
 * ends, -1 where it is cut short. */
static __always_inline int pkt_parse_extension(struct __sk_buff *skb, struct pkt *pkt)
{
	struct pkt_fragment_header frag;
	__u8 head[2]; /* next header; length beyond the first 8 bytes, in units of 8 bytes */

	switch (pkt->protocol) {
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_DSTOPTS:
		if (bpf_skb_load_bytes(skb, pkt->l4, head, sizeof(head)))
			return -1;
		pkt->protocol = head[0];
		pkt->l4 += (head[1] + 1) * 8;
		return 1;
	case IPPROTO_FRAGMENT:
		if (bpf_skb_load_bytes(skb, pkt->l4, &frag, sizeof(frag)))
			return -1;
		pkt->protocol = frag.next;
		pkt->fragment_id = frag.id;
		pkt->l4 += sizeof(frag);
		pkt->later_fragment = (frag.offset & bpf_htons(IP6_OFFSET)) != 0;
		pkt->first_fragment = !pkt->later_fragment &&
				   (frag.offset & bpf_htons(IP6_MORE_FRAGMENTS)) != 0;
		return !pkt->later_fragment; /* in a later fragment, no header follows */
	}
	return 0;
}

static __always_inline enum pkt_kind pkt_parse6(struct __sk_buff *skb, struct pkt *pkt, int quoted)
{
	struct ipv6hdr ip;
	int more = 1;

	if (bpf_skb_load_bytes(skb, pkt->l3, &ip, sizeof(ip)))
		return PKT_MALFORMED;
	if (ip.version != 6)
		return PKT_MALFORMED;
	__builtin_memcpy(&pkt->src, &ip.saddr, sizeof(pkt->src));
	__builtin_memcpy(&pkt->dst, &ip.daddr, sizeof(pkt->dst));
	/* An IPv4-mapped address: shunt would treat it as an IPv4 address. On a wire it is not
	 * valid (RFC 4942, 2.2). */
	if (lb_addr_is_v4(&pkt->src) || lb_addr_is_v4(&pkt->dst))
		return PKT_MALFORMED;
	pkt->protocol = ip.nexthdr;
	pkt->l4 = pkt->l3 + sizeof(ip);
	for (int i = 0; i <= PKT_EXTENSIONS && more > 0; i++)
		more = pkt_parse_extension(skb, pkt);
	if (more < 0)
		return PKT_MALFORMED;
	if (pkt->later_fragment)
		return PKT_FRAGMENT;
	return more ? PKT_OTHER : pkt_parse_ports(skb, pkt, quoted);
}

/* Reads the ports in place. Returns 1, or 0 where pkt_parse_ports has to do that. */
static __always_inline int pkt_plain_ports(struct pkt *pkt, const void *l4, const void *end)
{
	const struct tcphdr *tcp = l4;
	const struct udphdr *udp = l4;

	pkt->tcp_flags = pkt->first_fragment = pkt->later_fragment = 0;
	if (pkt->protocol == IPPROTO_TCP) {
		if ((const void *)(tcp + 1) > end)
			return 0;
		pkt->tcp_flags = ((const __u8 *)tcp)[13];
		*(__u64 *)&pkt->at = *(const __u64 *)&tcp->seq; /* and ack_seq, which follows */
	} else if (pkt->protocol != IPPROTO_UDP) {
		return 0;
	}
	pkt->sport = udp->source;
	pkt->dport = udp->dest;
	return 1;
}

/* Parse whole TCP or UDP packets with plain headers, in the linear data: nearly all packets are of
 * that kind. A call of bpf_skb_load_bytes costs 20 ns, and each packet took two. Return 1 with *pkt
 * filled, but for the fields that only fragments have. Return 0 where pkt_parse4 or pkt_parse6 has
 * to parse the packet, which fill *pkt in the same way. */
static __always_inline int pkt_plain4(struct __sk_buff *skb, struct pkt *pkt, __u32 l3)
{
	const void *end = (void *)(long)skb->data_end;
	const struct iphdr *ip = (void *)(long)skb->data + l3;
	const struct udphdr *udp = (void *)(ip + 1);

	if ((const void *)(udp + 1) > end)
		return 0;
	if (*(const __u8 *)ip != 0x45 ||
	    ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS | IP_OFFSET))
		return 0;
	pkt->is_v4 = 1;
	pkt->check = ip->check;
	pkt_addr4(&pkt->src, ip->saddr);
	pkt_addr4(&pkt->dst, ip->daddr);
	pkt->protocol = ip->protocol;
	pkt->l4 = l3 + sizeof(*ip);
	return pkt_plain_ports(pkt, udp, end);
}

static __always_inline int pkt_plain6(struct __sk_buff *skb, struct pkt *pkt, __u32 l3)
{
	const void *end = (void *)(long)skb->data_end;
	const struct ipv6hdr *ip = (void *)(long)skb->data + l3;
	const struct udphdr *udp = (void *)(ip + 1);

	if ((const void *)(udp + 1) > end || *(const __u8 *)ip >> 4 != 6)
		return 0;
	pkt->is_v4 = 0;
	__builtin_memcpy(&pkt->src, &ip->saddr, sizeof(pkt->src));
	__builtin_memcpy(&pkt->dst, &ip->daddr, sizeof(pkt->dst));
	if (lb_addr_is_v4(&pkt->src) || lb_addr_is_v4(&pkt->dst))
		return 0;
	pkt->protocol = ip->nexthdr;
	pkt->l4 = l3 + sizeof(*ip);
	return pkt_plain_ports(pkt, udp, end);
}

static __noinline enum pkt_kind pkt_parse_any(struct __sk_buff *skb, struct pkt *pkt)
{
	__builtin_memset(pkt, 0, sizeof(*pkt));
	pkt->l3 = pkt_l3();
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return pkt_parse4(skb, pkt, 0);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return pkt_parse6(skb, pkt, 0);
	return PKT_OTHER;
}

/* Parses a packet. A packet whose VLAN tag was moved to the skb (vlan_present) is passed, because
 * it arrives again on the VLAN device. */
static __always_inline enum pkt_kind pkt_parse(struct __sk_buff *skb, struct pkt *pkt)
{
	const __u32 l3 = pkt_l3();

	if (skb->vlan_present)
		return PKT_OTHER;
	pkt->l3 = l3;
	if (skb->protocol == bpf_htons(ETH_P_IP) ? pkt_plain4(skb, pkt, l3) :
	    skb->protocol == bpf_htons(ETH_P_IPV6) && pkt_plain6(skb, pkt, l3))
		return PKT_TRANSPORT;
	return pkt_parse_any(skb, pkt);
}

static __always_inline __u64 pkt_mix(__u64 h, __u64 word)
{
	h = (h ^ word) * 0x9e3779b97f4a7c15ULL; /* 2^64 / golden ratio */
	return h ^ (h >> 32);
}

/* Returns a hash of both ends of a packet and this node's secret. */
static __always_inline __u32 pkt_hash(const struct pkt *pkt)
{
	__u64 h = config_flow_seed;

	for (int i = 0; i < 4; i++)
		h = pkt_mix(h, (__u64)lb_word(&pkt->src, i) << 32 | lb_word(&pkt->dst, i));
	h = pkt_mix(h, (__u64)pkt->sport << 32 | (__u64)pkt->dport << 16 | pkt->protocol);
	return h >> 16;
}
