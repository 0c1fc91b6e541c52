//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* tc.c: the packet path. One program runs on a device's ingress ("in" below), and one on its egress
 * ("out"). Ingress replaces a frontend by a backend before the stack sees the packet. Egress
 * restores the frontend as the source of the backend's reply after the stack. In between, the
 * stack, netfilter and every rule of a CNI see packets between client and backend.
 *
 *   in    client → frontend       becomes client → backend
 *   out   client → backend        becomes SNAT address → backend, if the flow has FLOW_FLAG_SNAT
 *   in    backend → SNAT address  becomes backend → client
 *   out   backend → client        becomes frontend → client
 *
 * All other packets are passed with TC_ACT_UNSPEC: to the next program, the next filter, the
 * stack. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "config.h"
#include "fragment.h"
#include "hook.h"
#include "icmp.h"
#include "nat.h"
#include "reply.h"
#include "snat.h"
#include "track.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The state of one run. It is in a map for two reasons. A chain of calls has only 512 bytes of
 * stack. And the verifier tracks the stack byte by byte, but not a map's value: with packet and
 * flow on the stack, Linux 5.10 checked 755,000 instructions, and its limit is 1,000,000. No other
 * run of the program on the same CPU interrupts this one. */
struct tc_work {
	struct pkt pkt;
	struct pkt quoted; /* the packet that an ICMP error quotes */
	struct flow flow;
	struct flow_key key;
	/* With TC_TRANSLATE: the new address and ports, and the reason to count. */
	struct nat nat;
	enum reason reason;
	/* Of a packet that begins a flow. found: an earlier flow has the packet's key. meaning:
	 * enum addr_flag of the packet's destination. They are not arguments of functions, because
	 * the verifier would check the rest of the program for each of their values. */
	__u32 found, meaning;
	/* Of a new flow: pkt_hash of its packet, and the number of the port candidate that is tried
	 * (tc_try_out, tc_try_source). */
	__u32 hash, attempt;
	__u64 tick, now; /* tc_now */
	struct reply_limit limit;
};

/* Returned in place of a verdict, where the packet needs more work. TC_TRANSLATE: write w->nat to
 * the packet. TC_BEGINS: no flow applies to the packet, which may begin one. TC_REPLACE_SOURCE:
 * call tc_replace_source. */
#define TC_TRANSLATE -2
#define TC_BEGINS -3
#define TC_REPLACE_SOURCE -4

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tc_work);
} work SEC(".maps");

static __always_inline struct tc_work *tc_begin_work(void)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&work, &key);
}

/* Returns the time of the first call in this kernel tick (1 to 10 ms) on this CPU, in ns of
 * CLOCK_MONOTONIC. That is precise enough, since all timeouts here are in seconds. Reading the
 * clock costs as much as the look-up of a flow. */
static __always_inline __u64 tc_now(struct tc_work *w)
{
	__u64 tick = bpf_jiffies64();

	if (w->tick != tick) {
		w->tick = tick;
		w->now = bpf_ktime_get_ns();
	}
	return w->now;
}

static __always_inline int tc_end(enum reason reason, int verdict)
{
	hook_count(reason);
	return verdict;
}

/* Ends a run. `verdict` is a verdict, or TC_TRANSLATE: then w->nat is written to the packet. If the
 * kernel refuses a part of that change, the packet is dropped. */
static __always_inline int tc_finish(struct __sk_buff *skb, struct tc_work *w, int verdict)
{
	if (verdict != TC_TRANSLATE)
		return verdict;
	if (nat_apply(skb, &w->pkt, &w->nat))
		return tc_end(REASON_WRITE_FAILED, TC_ACT_SHOT);
	return tc_end(w->reason, TC_ACT_UNSPEC);
}

static __always_inline int tc_translate(struct tc_work *w, enum nat_end end, const struct addr *addr,
					enum reason reason)
{
	w->nat.end = end;
	w->nat.addr = *addr;
	w->reason = reason;
	return TC_TRANSLATE;
}

/* in, client → frontend: the backend becomes the destination. */
static __always_inline int tc_to_backend(struct tc_work *w, enum reason reason)
{
	w->nat.sport = w->flow.inner_port;
	w->nat.dport = w->flow.backend_port;
	return tc_translate(w, NAT_DESTINATION, &w->flow.backend, reason);
}

/* in, backend → SNAT address: the client becomes the destination. */
static __always_inline int tc_restore_source(struct tc_work *w)
{
	w->nat.sport = w->flow.backend_port;
	w->nat.dport = w->flow.inner_port;
	return tc_translate(w, NAT_DESTINATION, &w->flow.client, REASON_SOURCE_RESTORED);
}

/* Turns a packet into a TCP reset or an ICMP error to its sender. ICMP errors are rate limited,
 * since they are longer than the packets that they answer. A reset is never longer. */
static __noinline int tc_answer(struct __sk_buff *skb, struct tc_work *w, enum reason reason)
{
	const struct pkt *pkt = &w->pkt;
	long verdict;

	if (!reply_is_answerable(pkt))
		return tc_end(REASON_ANSWER_WITHHELD, TC_ACT_SHOT);
	if (pkt->protocol != IPPROTO_TCP && !reply_take(&w->limit, tc_now(w)))
		return tc_end(REASON_ANSWER_LIMITED, TC_ACT_SHOT);
	verdict = pkt->protocol == IPPROTO_TCP ? reply_reset(skb, pkt) : reply_unreachable(skb, pkt);
	if (verdict < 0)
		return tc_end(REASON_WRITE_FAILED, TC_ACT_SHOT);
	return tc_end(reason, verdict);
}

/* Passes, answers or drops a packet that gets no backend. */
static __always_inline int tc_refuse(struct __sk_buff *skb, struct tc_work *w, enum reason reason)
{
	if (reason == REASON_NO_FRONTEND)
		return tc_end(reason, TC_ACT_UNSPEC);
	if (reason == REASON_NO_ENDPOINT || reason == REASON_UNDEFINED_PORT)
		return tc_answer(skb, w, reason);
	return tc_end(reason, TC_ACT_SHOT);
}

static __always_inline int tc_from_cluster(const struct pkt *pkt)
{
	for (int i = 0; i < CONFIG_CLUSTER_CIDRS; i++) {
		const volatile struct cidr *cidr = &config_cluster_cidrs[i];
		__u32 differs = 0;

		if (i >= config_cluster_cidr_count)
			break;
		for (int j = 0; j < 4; j++)
			differs |= (((const volatile __u32 *)cidr->addr.b)[j] ^ lb_word(&pkt->src, j)) &
				   ((const volatile __u32 *)cidr->mask.b)[j];
		if (!differs)
			return 1;
	}
	return 0;
}

/* Chooses a backend for a packet, and fills *flow. Returns as lb_select. */
static __noinline enum reason tc_choose(const struct pkt *pkt, struct flow *flow, __u32 hash,
					int forgetful)
{
	struct frontend_key dst = { .addr = pkt->dst, .port = pkt->dport, .protocol = pkt->protocol };
	struct lb_client client = { .addr = pkt->src, .by_packet = 1, .forgetful = forgetful };
	struct lb_choice to = {};
	enum reason reason;

	client.side = config_pod_device || tc_from_cluster(pkt) ? LB_INSIDE : LB_OUTSIDE;
	reason = lb_select(&dst, &client, hash, &to);
	__builtin_memset(flow, 0, sizeof(*flow));
	flow->client = pkt->src;
	flow->client_port = flow->inner_port = pkt->sport;
	flow->frontend = pkt->dst;
	flow->frontend_port = pkt->dport;
	flow->protocol = pkt->protocol;
	flow->backend = to.addr;
	flow->backend_port = to.port;
	flow->backend_id = to.backend_id;
	flow->service_id = to.service_id;
	/* The reply has to pass through this node. Without SNAT it does where the backend is on
	 * this node, or where the client is a pod of this node. All other packets need SNAT. So
	 * does a backend that is its own client: it would deliver a reply to its own address
	 * itself. */
	if (lb_addr_equal(&flow->client, &flow->backend) ||
	    (!config_pod_device && !(to.flags & BACKEND_FLAG_ON_NODE)))
		flow->flags = FLOW_FLAG_SNAT;
	return reason;
}

/* Calls track_try_out with w->flow. The function is global, as is tc_try_source, because the
 * verifier checks a global function only once. It checked a static one in each of the 16 rounds of
 * the loop in tc_record, and for each path to that loop. On 6.18 both programs together went from
 * 308,000 instructions to 141,000. Linux 5.10 accepts only numbers and the context as arguments of
 * a global function. The asm makes clang keep the argument, which is not used. */
__noinline int tc_try_out(struct __sk_buff *skb)
{
	struct tc_work *w = tc_begin_work();

	asm volatile("" : : "r"(skb));
	return w ? track_try_out(&w->flow, w->hash, w->attempt) : 0;
}

/* Inserts the entries of w->flow, which the packet begins. They contain the sequence number of the
 * client's SYN, which the backend's answer has to acknowledge (track_is_answer). That number is
 * then cleared in w->flow: an entry that is made again from w->flow may be used by another
 * connection. Returns 0, or -1 with w->reason set: REASON_COLLISION where no port is free,
 * REASON_FLOW_UNRECORDED where there is no room. */
static __noinline int tc_record(struct __sk_buff *skb, struct tc_work *w)
{
	struct flow *flow = &w->flow;
	int inserted = 0, err = -1;

	w->reason = REASON_COLLISION;
	if (w->pkt.protocol == IPPROTO_TCP)
		flow->client_at = w->pkt.at;
	for (int i = 0; i < FLOW_PORT_TRIES && !inserted; i++) {
		w->attempt = i;
		inserted = tc_try_out(skb);
	}
	if (inserted) {
		w->reason = REASON_FLOW_UNRECORDED;
		err = track_begin(flow, w->found);
	}
	flow->client_at.seq = flow->client_at.ack = 0;
	return err;
}

/* in, TCP after the SYN, without an entry for the client's packets: the entry may have been lost.
 * tc_choose has selected a backend by a hash of the packet's ends, or by affinity. While the
 * service does not change, that is the backend of the SYN. A FLOW_KEY_OUT entry proves that the
 * connection has that backend, and the client's entry is made again from it. Returns
 * REASON_FLOW_KEPT, REASON_FLOW_UNRECORDED (no room), or REASON_NO_FLOW. */
static __noinline enum reason tc_remember(struct flow *flow, enum reason reason, __u64 now)
{
	struct flow found = {};
	struct flow_key key;

	if (reason != REASON_TRANSLATED && reason != REASON_AFFINITY_KEPT)
		return REASON_NO_FLOW;
	flow_key_out(&key, flow);
	if (!flow_find(&key, &found) || !flow_same_client(&found, flow) || flow_is_expired(&found, now))
		return REASON_NO_FLOW;
	*flow = found;
	flow_key_client(&key, flow);
	return track_put(&key, flow, BPF_ANY) ? REASON_FLOW_UNRECORDED : REASON_FLOW_KEPT;
}

/* in, TCP after the SYN, of no flow. `reason` is the result of tc_choose. A packet to no frontend
 * is passed. So is a packet to an address that takes node ports, or to a socket of the node: the
 * stack can handle it. Without DEVICE_FLAG_RESETS all packets are passed, since conntrack or IPVS
 * may translate the connection. In all other cases the stack would forward the packet back to where
 * it came from. So the client gets a reset. Where source ranges exclude the client, or the entry
 * kept changing, the packet is dropped. */
static __noinline int tc_unknown(struct __sk_buff *skb, struct tc_work *w, enum reason reason)
{
	__u32 ifindex = skb->ifindex;
	struct device *dev = bpf_map_lookup_elem(&devices, &ifindex);

	if (reason == REASON_NO_FRONTEND)
		return tc_end(reason, TC_ACT_UNSPEC);
	if (!dev || !(dev->flags & DEVICE_FLAG_RESETS) || w->meaning & ADDR_FLAG_NODE_PORTS)
		return tc_end(REASON_NO_FLOW, TC_ACT_UNSPEC);
	flow_key_in(&w->key, &w->pkt);
	if (snat_is_socket(skb, &w->key))
		return tc_end(REASON_NO_FLOW, TC_ACT_UNSPEC);
	if (reason == REASON_SOURCE_RANGE || reason == REASON_ENTRY_CHANGED)
		return tc_end(reason, TC_ACT_SHOT);
	return tc_answer(skb, w, REASON_CONNECTION_UNKNOWN);
}

/* in, to a backend's own address, of no service and no flow: a direct connection. Normally it is
 * noted, and the packet is passed. But a flow may have, or have had, the same ends between ingress
 * and egress. Then egress would treat the backend's answers as those of that flow. So the direct
 * connection becomes a flow itself (FLOW_FLAG_DIRECT), with the backend as its frontend, and is
 * remapped where its port is not free. The exception is a datagram from that flow's backend to its
 * client, which can be a backend too: it is a reply, and egress restores the frontend as its
 * source. */
static __noinline int tc_direct(struct __sk_buff *skb, struct tc_work *w)
{
	const struct pkt *pkt = &w->pkt;
	struct flow *flow = &w->flow;
	struct flow *there;

	if (!pkt_begins(pkt))
		return tc_end(REASON_NO_FRONTEND, TC_ACT_UNSPEC);
	/* The note is written before the look-up. If a flow begins on another CPU at the same time,
	 * either that CPU finds the note, or this CPU finds the flow. */
	direct_note(&w->key, tc_now(w));
	flow_key_ends(&w->key, pkt->protocol, &pkt->src, pkt->sport, &pkt->dst, pkt->dport);
	there = flow_peek(&w->key);
	if (!there || flow_is_expired(there, tc_now(w)))
		return tc_end(REASON_NO_FRONTEND, TC_ACT_UNSPEC);
	if (pkt->protocol != IPPROTO_TCP && flow_side_out(there, pkt) == FLOW_FROM_BACKEND)
		return tc_end(REASON_NO_FRONTEND, TC_ACT_UNSPEC);
	__builtin_memset(flow, 0, sizeof(*flow));
	flow->flags = FLOW_FLAG_DIRECT | (there->flags & FLOW_FLAG_SNAT);
	flow->client = pkt->src;
	flow->client_port = pkt->sport;
	flow->frontend = flow->backend = pkt->dst;
	flow->frontend_port = flow->backend_port = pkt->dport;
	flow->protocol = pkt->protocol;
	flow->used = tc_now(w);
	flow_key_in(&w->key, pkt);
	bpf_map_delete_elem(&directs, &w->key);
	w->hash = pkt_hash(pkt);
	if (tc_record(skb, w))
		return tc_end(w->reason, TC_ACT_SHOT);
	if (pkt->protocol == IPPROTO_TCP)
		direct_began(flow->used);
	return tc_to_backend(w, REASON_DIRECT_REMAPPED);
}

/* in, of no flow, to an address in map addrs. */
static __always_inline int tc_begin(struct __sk_buff *skb, struct tc_work *w)
{
	const struct pkt *pkt = &w->pkt;
	struct flow *flow = &w->flow;
	int midway = !pkt_begins(pkt);
	enum reason reason;

	w->hash = pkt_hash(pkt);
	/* The result is passed through the map, because the verifier of Linux 5.10 treats two
	 * results of tc_choose as the same state. It removed the branch for REASON_NO_FRONTEND, and
	 * packets with that reason were dropped. */
	w->reason = tc_choose(pkt, flow, w->hash, midway);
	asm volatile("" : : : "memory");
	reason = w->reason;
	if (midway) {
		switch (tc_remember(flow, reason, tc_now(w))) {
		case REASON_FLOW_KEPT:
			return tc_to_backend(w, REASON_FLOW_KEPT);
		case REASON_FLOW_UNRECORDED:
			return tc_end(REASON_FLOW_UNRECORDED, TC_ACT_SHOT);
		default:
			return tc_unknown(skb, w, reason);
		}
	}
	if (reason == REASON_NO_FRONTEND && w->meaning & ADDR_FLAG_BACKEND)
		return tc_direct(skb, w);
	if (reason != REASON_TRANSLATED && reason != REASON_AFFINITY_KEPT)
		return tc_refuse(skb, w, reason);
	flow->used = tc_now(w);
	if (tc_record(skb, w))
		return tc_end(w->reason, TC_ACT_SHOT);
	lb_count(flow->backend_id);
	return tc_to_backend(w, reason);
}

/* A later fragment whose first fragment was not seen, or is of no flow. To an address that takes
 * node ports it is passed, since it may be for a process of the node. To any other address of a
 * frontend it is dropped: no host has that address, so no host would reassemble the datagram.
 * `meaning` is enum addr_flag of the destination. */
static __always_inline int tc_lost_fragment(__u32 meaning)
{
	if (meaning & ADDR_FLAG_FRONTEND && !(meaning & ADDR_FLAG_NODE_PORTS))
		return tc_end(REASON_FRAGMENT_UNKNOWN, TC_ACT_SHOT);
	return tc_end(REASON_FRAGMENT_PASSED, TC_ACT_UNSPEC);
}

/* Returns enum addr_flag of an address; 0: the address has no entry. */
static __always_inline __u32 tc_meaning(const struct addr *addr)
{
	struct addr_info *info = bpf_map_lookup_elem(&addrs, addr);

	return info ? info->flags : 0;
}

/* in, of a local flow: passes the packet to this node's stack. If the destination port is in the
 * SNAT range, the flow is of a client that netfilter masquerades: arriving packets refresh it. If
 * not, the flow is of a socket with a node port's number: only packets that the socket sends
 * refresh it. */
static __always_inline int tc_follow_local(struct tc_work *w)
{
	struct flow *flow = &w->flow;

	struct track_note nothing = {};

	if (flow_is_snat_port(w->pkt.dport) && (__s64)(w->now - flow->used) >= FLOW_TOUCH) {
		flow->used = w->now;
		track_refresh(&w->key, flow, &nothing);
	}
	return tc_end(REASON_LOCAL_FLOW, TC_ACT_UNSPEC);
}

/* in, of the flow in w->flow: translates the packet as the flow says. Returns TC_BEGINS if the flow
 * has ended, or if the packet begins another flow. */
static __always_inline int tc_follow(struct tc_work *w, struct flow *entry)
{
	const struct pkt *pkt = &w->pkt;
	struct flow *flow = &w->flow;
	__u64 now = tc_now(w);

	switch (flow_side_in(flow, pkt)) {
	case FLOW_FROM_CLIENT:
		if (flow->flags & FLOW_FLAG_LOCAL && !flow_is_expired(flow, now))
			return tc_follow_local(w);
		if (flow->flags & FLOW_FLAG_LOCAL || !flow_goes_on(flow, pkt, now))
			break;
		if (flow_is_closed(flow) && !track_is_out(flow))
			return tc_end(REASON_FLOW_OVER, TC_ACT_SHOT);
		track_point(entry, flow, pkt, FLOW_FROM_CLIENT);
		track_touch(flow, pkt, FLOW_FROM_CLIENT, now);
		if (!(flow->flags & FLOW_FLAG_CONFIRMED) && track_advance(flow, pkt))
			return tc_to_backend(w, REASON_UNCONFIRMED);
		return tc_to_backend(w, REASON_FLOW_KEPT);
	case FLOW_FROM_BACKEND:
		if (flow_is_expired(flow, now))
			break;
		track_point(entry, flow, pkt, FLOW_FROM_BACKEND);
		track_touch(flow, pkt, FLOW_FROM_BACKEND, now);
		return tc_restore_source(w);
	case FLOW_NONE:
		break;
	}
	return TC_BEGINS;
}

/* in, of no flow, or of a flow that has ended (w->found). In the second case tc_in may not have
 * looked up the destination. */
static __noinline int tc_in_new(struct __sk_buff *skb, struct tc_work *w)
{
	const struct pkt *pkt = &w->pkt;

	if (w->found)
		w->meaning = tc_meaning(&pkt->dst);
	if (w->found && w->flow.flags & FLOW_FLAG_DIRECT)
		track_drop_direct(&w->flow);
	if (pkt->later_fragment)
		return tc_lost_fragment(w->meaning);
	if (w->meaning == ADDR_FLAG_BACKEND)
		return tc_direct(skb, w);
	if (!w->meaning)
		return lb_unallocated(&pkt->dst) ? tc_end(REASON_UNALLOCATED, TC_ACT_SHOT) :
						   tc_end(REASON_NO_FRONTEND, TC_ACT_UNSPEC);
	return tc_begin(skb, w);
}

/* in, without an entry in `flows`: reports whether the packet is certainly of a direct connection
 * that has no flow. Then `flows_new` need not be searched. */
static __always_inline int tc_is_direct(struct tc_work *w)
{
	const struct pkt *pkt = &w->pkt;

	if (w->meaning != ADDR_FLAG_BACKEND || pkt->later_fragment)
		return 0;
	if (pkt->protocol != IPPROTO_TCP)
		return direct_is_noted(&w->key, tc_now(w));
	return !pkt_is_syn(pkt) && !direct_may_wait(tc_now(w)) && !flow_is_snat_port(pkt->dport);
}

/* in, TCP and UDP. Most packets are of a confirmed flow, or of no flow. So `flows_new` is searched
 * only if `flows` has no entry and the destination can be that of an unconfirmed flow. */
static __always_inline int tc_in(struct __sk_buff *skb, struct tc_work *w)
{
	const struct pkt *pkt = &w->pkt;
	int verdict = TC_BEGINS;
	struct flow *entry;

	flow_key_in(&w->key, pkt);
	entry = flow_find_in(&flows, &w->key, &w->flow);
	if (!entry) {
		w->meaning = tc_meaning(&pkt->dst);
		if (tc_is_direct(w))
			return tc_end(REASON_NO_FRONTEND, TC_ACT_UNSPEC);
		if (w->meaning || flow_is_snat_port(pkt->dport))
			entry = flow_find_in(&flows_new, &w->key, &w->flow);
	}
	w->found = entry != NULL;
	if (entry)
		verdict = tc_follow(w, entry);
	return verdict == TC_BEGINS ? tc_in_new(skb, w) : verdict;
}

/* in, an ICMP error about a packet that left this node. Restores the addresses and ports that the
 * quoted packet had in the stack, and sends the error to the quoted packet's source. */
static __noinline int tc_icmp_in(struct __sk_buff *skb, struct tc_work *w)
{
	struct nat nat = { .end = NAT_SOURCE }, outer = { .end = NAT_DESTINATION };
	const struct pkt *pkt = &w->pkt, *quoted = &w->quoted;
	struct flow *flow = &w->flow;
	struct flow_key key;
	int to_backend;

	__builtin_memset(&w->quoted, 0, sizeof(w->quoted));
	if (!icmp_quoted(skb, pkt, &w->quoted))
		return tc_end(REASON_ICMP_PASSED, TC_ACT_UNSPEC);
	/* FLOW_KEY_IN is for packets that arrive, and the quoted packet has left: its source and
	 * destination are swapped. */
	flow_key_set(&key, FLOW_KEY_IN, quoted->protocol, &quoted->dst, quoted->dport, &quoted->src,
		     quoted->sport);
	if (!flow_find(&key, flow) || flow->flags & FLOW_FLAG_LOCAL || flow_is_expired(flow, tc_now(w)))
		return tc_end(REASON_ICMP_PASSED, TC_ACT_UNSPEC);
	/* Quoted frontend → client left the stack as backend → client, and quoted SNAT address →
	 * backend left it as client → backend. */
	to_backend = flow->frontend_port == quoted->sport && lb_addr_equal(&flow->frontend, &quoted->src);
	nat.addr = outer.addr = to_backend ? flow->backend : flow->client;
	nat.sport = to_backend ? flow->backend_port : flow->inner_port;
	nat.dport = to_backend ? flow->inner_port : flow->backend_port;
	if (icmp_apply(skb, pkt, quoted, &nat, &outer))
		return tc_end(REASON_WRITE_FAILED, TC_ACT_SHOT);
	return tc_end(REASON_ICMP_TRANSLATED, TC_ACT_UNSPEC);
}

/* Sets a later fragment's ports to those of its datagram's first fragment; notes the ports of a
 * first fragment. Returns 0 for a later fragment whose first fragment was not seen, else 1. */
static __always_inline int tc_ports(struct tc_work *w, enum pkt_kind kind, int egress)
{
	if (kind == PKT_FRAGMENT)
		return fragment_find(&w->pkt, egress, tc_now(w));
	if (w->pkt.first_fragment)
		fragment_note(&w->pkt, egress, tc_now(w));
	return 1;
}

SEC("tc")
int shunt_ingress(struct __sk_buff *skb)
{
	struct tc_work *w = tc_begin_work();
	enum pkt_kind kind;

	/* Frames to another host, broadcast and multicast are passed. A device without link
	 * addresses receives no such packet. */
	if (!w || (config_ethernet && skb->pkt_type != PKT_TYPE_HOST))
		return tc_end(REASON_PROTOCOL, TC_ACT_UNSPEC);
	kind = pkt_parse(skb, &w->pkt);
	switch (kind) {
	case PKT_TRANSPORT:
	case PKT_FRAGMENT:
		if (tc_ports(w, kind, 0))
			return tc_finish(skb, w, tc_in(skb, w));
		return tc_lost_fragment(tc_meaning(&w->pkt.dst));
	case PKT_ICMP:
		return tc_icmp_in(skb, w);
	case PKT_MALFORMED:
		return tc_end(REASON_MALFORMED, TC_ACT_UNSPEC);
	case PKT_OTHER:
		break;
	}
	return tc_end(REASON_PROTOCOL, TC_ACT_UNSPEC);
}

/* Calls snat_try with w->flow. The function is global for the same reason as tc_try_out. */
__noinline int tc_try_source(struct __sk_buff *skb)
{
	struct tc_work *w = tc_begin_work();

	return w ? snat_try(skb, &w->flow, w->hash, w->attempt) : 0;
}

/* Chooses the SNAT address and SNAT port of w->flow, and writes them to its other entries. Returns
 * REASON_SOURCE_TRANSLATED, or the reason why there is none. */
static __noinline enum reason tc_choose_snat(struct __sk_buff *skb, struct tc_work *w)
{
	int inserted = 0;

	if (!snat_choose_addr(skb, &w->flow))
		return REASON_NO_NODE_ADDRESS;
	w->hash = pkt_hash(&w->pkt);
	for (int i = 0; i < SNAT_TRIES && !inserted; i++) {
		w->attempt = i;
		inserted = tc_try_source(skb);
	}
	if (!inserted)
		return REASON_PORTS_EXHAUSTED;
	return snat_record(&w->flow) ? REASON_FLOW_UNRECORDED : REASON_SOURCE_TRANSLATED;
}

/* out, client → backend: translates the source, if the flow has FLOW_FLAG_SNAT. */
static __always_inline int tc_replace_source(struct __sk_buff *skb, struct tc_work *w)
{
	enum reason reason = REASON_SOURCE_TRANSLATED;
	struct flow *flow = &w->flow;
	int over;

	if (!(flow->flags & FLOW_FLAG_SNAT))
		return tc_end(REASON_SOURCE_KEPT, TC_ACT_UNSPEC);
	over = flow_is_closed(flow);
	if (flow->snat_port && (over || !(flow->flags & FLOW_FLAG_CONFIRMED)) && !snat_hold(flow)) {
		if (over)
			return tc_end(REASON_FLOW_OVER, TC_ACT_SHOT);
		flow->snat_port = 0;
	}
	if (!flow->snat_port)
		reason = tc_choose_snat(skb, w);
	if (reason != REASON_SOURCE_TRANSLATED)
		return tc_end(reason, TC_ACT_SHOT);
	w->nat.sport = flow->snat_port;
	w->nat.dport = flow->backend_port;
	return tc_translate(w, NAT_SOURCE, &flow->snat, reason);
}

/* out, backend → client: the frontend becomes the source. */
static __always_inline int tc_restore_frontend(struct tc_work *w, struct flow *entry)
{
	struct flow *flow = &w->flow;

	if (!track_is_answer(entry, flow, &w->pkt)) {
		if (!(w->pkt.tcp_flags & TCP_RST)) /* a reset ends the direct connection: then the
						    * port is the flow's alone */
			track_yield(flow, tc_now(w));
		return tc_end(REASON_EGRESS_PASSED, TC_ACT_UNSPEC);
	}
	track_point(entry, flow, &w->pkt, FLOW_FROM_BACKEND);
	track_touch(flow, &w->pkt, FLOW_FROM_BACKEND, tc_now(w));
	w->nat.sport = flow->frontend_port;
	w->nat.dport = flow->client_port;
	return tc_translate(w, NAT_SOURCE, &flow->frontend, REASON_REPLY_RESTORED);
}

/* Finds the flow of a packet that leaves, or of the packet that an ICMP error quotes. Sets *entry
 * to the entry, and w->flow to a copy of it. Returns the side that sent the packet; FLOW_NONE:
 * there is no flow. */
static __always_inline enum flow_side tc_find_out(struct tc_work *w, const struct pkt *pkt,
						  struct flow **entry)
{
	flow_key_ends(&w->key, pkt->protocol, &pkt->src, pkt->sport, &pkt->dst, pkt->dport);
	*entry = flow_find(&w->key, &w->flow);
	if (!*entry)
		return FLOW_NONE;
	/* tc_follow_remapped removes an expired flow itself. */
	if (!(w->flow.flags & FLOW_FLAG_REMAPPED) && flow_is_expired(&w->flow, tc_now(w)))
		return FLOW_NONE;
	return flow_side_out(&w->flow, pkt);
}

/* out, a new local flow whose source is another flow's SNAT address and SNAT port towards the same
 * host. It becomes a flow with SNAT, so that it is remapped to another port, as netfilter would
 * do. */
static __always_inline int tc_remap(struct tc_work *w)
{
	const struct pkt *pkt = &w->pkt;
	struct flow *flow = &w->flow;

	flow->client = flow->snat = pkt->src;
	flow->client_port = flow->inner_port = pkt->sport;
	flow->frontend = flow->backend = pkt->dst;
	flow->frontend_port = flow->backend_port = pkt->dport;
	flow->flags = FLOW_FLAG_SNAT | FLOW_FLAG_REMAPPED;
	return TC_REPLACE_SOURCE;
}

/* Reports whether a datagram's source is an address that takes node ports, with the number of a UDP
 * node port. */
static __noinline int tc_is_node_port(const struct pkt *pkt)
{
	struct frontend_key from = { .addr = pkt->src, .port = pkt->sport, .protocol = IPPROTO_UDP };
	struct frontend svc;
	__u32 undefined;

	return tc_meaning(&from.addr) & ADDR_FLAG_NODE_PORTS &&
	       lb_frontend(&from, 0, &undefined, &svc) != LB_NO_FRONTEND;
}

/* Reports whether a packet's source is, or may become, a flow's SNAT address and SNAT port. w->key
 * is the FLOW_KEY_IN key of the replies to the packet. */
static __always_inline int tc_is_source(struct __sk_buff *skb, struct tc_work *w)
{
	const struct pkt *pkt = &w->pkt;

	return flow_is_snat_port(pkt->sport) &&
	       (snat_is_device(skb->ifindex, &pkt->src) || flow_peek(&w->key));
}

/* out, of no flow, a packet that begins one. Replies to two sorts of packets are for the stack, and
 * for no other flow and no service. So a local flow is noted for them. Packets with a source port
 * in the SNAT range: netfilter has chosen the port for a client that it masquerades, without regard
 * to flows. UDP with a source port that is a node port's number: a socket sent it. (TCP from such a
 * port needs no note, since a reply is no SYN and begins no flow.) */
static __noinline int tc_out_new(struct __sk_buff *skb, struct tc_work *w)
{
	const struct pkt *pkt = &w->pkt;
	struct flow *flow = &w->flow;
	int ours;

	flow_key_set(&w->key, FLOW_KEY_IN, pkt->protocol, &pkt->dst, pkt->dport, &pkt->src, pkt->sport);
	ours = tc_is_source(skb, w);
	if (ours || (pkt->protocol == IPPROTO_UDP && tc_is_node_port(pkt))) {
		__builtin_memset(flow, 0, sizeof(*flow));
		flow->client = pkt->dst;
		flow->client_port = pkt->dport;
		flow->frontend = pkt->src;
		flow->frontend_port = pkt->sport;
		flow->protocol = pkt->protocol;
		flow->flags = FLOW_FLAG_LOCAL;
		flow->used = tc_now(w);
		if (track_local(&w->key, flow) && ours)
			return tc_remap(w);
	}
	return tc_end(REASON_EGRESS_PASSED, TC_ACT_UNSPEC);
}

/* out, of a remapped flow, whose client is this node's end. Removes the flow's entries and returns
 * TC_BEGINS if the flow has ended. */
static __noinline int tc_follow_remapped(struct tc_work *w)
{
	struct flow *entry = flow_peek(&w->key);
	const struct pkt *pkt = &w->pkt;
	struct flow *flow = &w->flow;
	__u64 now = tc_now(w);

	if (flow_is_expired(flow, now) || (flow_is_closed(flow) && pkt_begins(pkt))) {
		track_drop_wire(flow);
		track_delete(&w->key);
		flow_key_client(&w->key, flow);
		track_delete(&w->key);
		return TC_BEGINS;
	}
	if (entry)
		track_point(entry, flow, pkt, FLOW_FROM_CLIENT);
	track_touch(flow, pkt, FLOW_FROM_CLIENT, now);
	if (track_is_confirmation(flow, pkt))
		track_confirm(flow);
	return TC_REPLACE_SOURCE;
}

static __always_inline int tc_out(struct __sk_buff *skb, struct tc_work *w)
{
	const struct pkt *pkt = &w->pkt;
	int verdict = TC_BEGINS;
	struct flow *entry;

	switch (tc_find_out(w, pkt, &entry)) {
	case FLOW_FROM_CLIENT:
		verdict = TC_REPLACE_SOURCE;
		if (w->flow.flags & FLOW_FLAG_REMAPPED)
			verdict = tc_follow_remapped(w);
		break;
	case FLOW_FROM_BACKEND:
		return tc_restore_frontend(w, entry);
	case FLOW_NONE:
		break;
	}
	if (verdict == TC_BEGINS && (pkt->later_fragment || !pkt_begins(pkt)))
		return tc_end(REASON_EGRESS_PASSED, TC_ACT_UNSPEC);
	if (verdict == TC_BEGINS)
		verdict = tc_out_new(skb, w);
	return verdict == TC_REPLACE_SOURCE ? tc_replace_source(skb, w) : verdict;
}

/* out, an ICMP error about a packet between client and backend. Restores the addresses and ports
 * that the quoted packet had when it arrived. */
static __noinline int tc_icmp_out(struct __sk_buff *skb, struct tc_work *w)
{
	struct nat nat = {}, outer = { .end = NAT_SOURCE };
	const struct pkt *pkt = &w->pkt, *quoted = &w->quoted;
	struct flow *flow = &w->flow, *entry;
	enum flow_side side;

	__builtin_memset(&w->quoted, 0, sizeof(w->quoted));
	if (!icmp_quoted(skb, pkt, &w->quoted))
		return tc_end(REASON_ICMP_PASSED, TC_ACT_UNSPEC);
	side = tc_find_out(w, quoted, &entry);
	if (side != FLOW_NONE && flow_is_expired(flow, tc_now(w)))
		side = FLOW_NONE;
	nat.end = NAT_DESTINATION;
	if (side == FLOW_FROM_CLIENT) { /* the client sent to the frontend */
		nat.addr = outer.addr = flow->frontend;
		nat.sport = flow->client_port;
		nat.dport = flow->frontend_port;
		if (!lb_addr_equal(&pkt->src, &flow->backend))
			outer.addr = pkt->src; /* a router or this node sent the error */
	} else if (side == FLOW_FROM_BACKEND && flow->snat_port) { /* the backend sent to the SNAT
								    * address */
		nat.addr = flow->snat;
		nat.sport = flow->backend_port;
		nat.dport = flow->snat_port;
		outer.addr = pkt->src;
	} else {
		return tc_end(REASON_ICMP_PASSED, TC_ACT_UNSPEC);
	}
	if (icmp_apply(skb, pkt, quoted, &nat, &outer))
		return tc_end(REASON_WRITE_FAILED, TC_ACT_SHOT);
	return tc_end(REASON_ICMP_TRANSLATED, TC_ACT_UNSPEC);
}

SEC("tc")
int shunt_egress(struct __sk_buff *skb)
{
	struct tc_work *w = tc_begin_work();
	enum pkt_kind kind;

	if (!w)
		return tc_end(REASON_PROTOCOL, TC_ACT_UNSPEC);
	kind = pkt_parse(skb, &w->pkt);
	switch (kind) {
	case PKT_TRANSPORT:
	case PKT_FRAGMENT:
		if (tc_ports(w, kind, 1))
			return tc_finish(skb, w, tc_out(skb, w));
		return tc_end(REASON_FRAGMENT_PASSED, TC_ACT_UNSPEC);
	case PKT_ICMP:
		return tc_icmp_out(skb, w);
	case PKT_MALFORMED:
		return tc_end(REASON_MALFORMED, TC_ACT_UNSPEC);
	case PKT_OTHER:
		break;
	}
	return tc_end(REASON_PROTOCOL, TC_ACT_UNSPEC);
}
