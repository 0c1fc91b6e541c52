//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* tc.c: the packet path. One program runs on a device's ingress, and one on its egress. A packet
 * to a frontend goes to a backend before the stack sees it. The backend's reply gets the frontend
 * as its source after the stack. In between, the stack, netfilter and every rule of a CNI see a
 * client that speaks to a pod.
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

/* The state of a run. It is not on the stack, of which a chain of calls has 512 bytes, and the
 * verifier does not follow it byte by byte: with packet and flow on the stack, 5.10 looked at
 * 755,000 instructions, and its limit is 1,000,000. A program is not interrupted by another run of
 * it on the same CPU. */
struct tc_work {
	struct pkt pkt;
	struct pkt quoted; /* which an ICMP error quotes */
	struct flow flow;
	struct flow_key key;
	/* With TC_TRANSLATE: how the packet is to be changed, and the reason to count. */
	struct nat nat;
	enum reason reason;
	/* Of a packet that begins a flow: whether an earlier flow has its key, and what its
	 * destination means here (enum addr_flag). They are no arguments: the verifier would
	 * follow the rest of the program for each of their values. */
	__u32 found, meaning;
	/* Of a flow that begins: pkt_hash, and the number of the port to try (tc_try_out,
	 * tc_try_source). */
	__u32 hash, attempt;
	__u64 tick, now; /* tc_now */
	struct reply_limit limit;
};

/* Returned instead of a verdict where the packet is not done yet. TC_TRANSLATE: change the packet
 * as tc_work says. TC_BEGINS: go on, the packet begins a flow. TC_REPLACE_SOURCE: translate the
 * source. */
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
 * CLOCK_MONOTONIC. All that is timed here is in seconds, and a reading of the clock costs as much
 * as finding the flow. */
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

/* Ends a run. `verdict` is a verdict or TC_TRANSLATE, with which the packet gets the ends in
 * w->nat. A packet that is half changed is dropped. */
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

/* in, client → frontend: on to the backend. */
static __always_inline int tc_to_backend(struct tc_work *w, enum reason reason)
{
	w->nat.sport = w->flow.inner_port;
	w->nat.dport = w->flow.backend_port;
	return tc_translate(w, NAT_DESTINATION, &w->flow.backend, reason);
}

/* in, backend → SNAT address: back to the client. */
static __always_inline int tc_restore_source(struct tc_work *w)
{
	w->nat.sport = w->flow.backend_port;
	w->nat.dport = w->flow.inner_port;
	return tc_translate(w, NAT_DESTINATION, &w->flow.client, REASON_SOURCE_RESTORED);
}

/* Turns a packet into the answer that refuses it. A reset is never longer than the packet that it
 * answers. An ICMP error is longer, and is rate limited. */
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
	/* The reply has to come through this node. It does from this node's backends, and to this
	 * node's pods. A backend that is its own client would keep it to itself. All else needs
	 * another source. */
	if (lb_addr_equal(&flow->client, &flow->backend) ||
	    (!config_pod_device && !(to.flags & BACKEND_FLAG_ON_NODE)))
		flow->flags = FLOW_FLAG_SNAT;
	return reason;
}

/* track_try_out with w->flow. It is global, as is tc_try_source: the verifier checks such a
 * function once, where it followed the loop around it sixteen times, for each path that leads
 * there. Linux 5.10 takes no argument but numbers and the context; clang leaves out one that is
 * not used. On 6.18 both programs together went from 308,000 instructions to 141,000. */
__noinline int tc_try_out(struct __sk_buff *skb)
{
	struct tc_work *w = tc_begin_work();

	asm volatile("" : : "r"(skb));
	return w ? track_try_out(&w->flow, w->hash, w->attempt) : 0;
}

/* Records w->flow, which the packet begins. Its entries have the number of the client's SYN, which
 * the backend's answer has to acknowledge (track_is_answer). w->flow itself does not keep it:
 * entries that are made from it again may be another connection's. Returns 0; or -1, and w->reason
 * says whether no port or no room was found. */
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

/* in, TCP in the middle of a connection whose client's entry is lost. The same packet leads to the
 * same backend while the service does not change, and the FLOW_KEY_OUT entry shows whether the
 * connection had that backend. Returns REASON_FLOW_KEPT, or why there is no flow. */
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

/* in, TCP in the middle of a connection that has no flow. `reason` is that of tc_choose. To the
 * node's own addresses and sockets the packet is passed: the stack knows what to do with it. To
 * any other address the stack would forward it to where it came from. With DEVICE_FLAG_RESETS
 * nothing else translates connections to frontends. Then the client gets a reset at once, unless
 * source ranges keep it out or the entry kept changing: the packet is dropped. */
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

/* in, to a backend's own address, of no service and no flow. If a flow has, or had, the same ends
 * before the stack, the backend's answers would be taken for that flow's. The direct connection
 * then becomes a flow itself, with the backend as its frontend, and with another port where it
 * needs one. Anything else is only noted. That includes a datagram from the other flow's backend
 * to its client, which can be a backend too: it is an answer, and gets the frontend as its source
 * on egress. */
static __noinline int tc_direct(struct __sk_buff *skb, struct tc_work *w)
{
	const struct pkt *pkt = &w->pkt;
	struct flow *flow = &w->flow;
	struct flow *there;

	if (!pkt_begins(pkt))
		return tc_end(REASON_NO_FRONTEND, TC_ACT_UNSPEC);
	/* Noted first: a flow that begins on another CPU at the same time finds the note, or is
	 * found here. */
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

/* in, client → frontend, of no flow. */
static __always_inline int tc_begin(struct __sk_buff *skb, struct tc_work *w)
{
	const struct pkt *pkt = &w->pkt;
	struct flow *flow = &w->flow;
	int midway = !pkt_begins(pkt);
	enum reason reason;

	w->hash = pkt_hash(pkt);
	/* Through the map, since the verifier of Linux 5.10 takes two results of tc_choose for the
	 * same state. It then removed the branch for REASON_NO_FRONTEND, and such packets were
	 * dropped. */
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

/* A fragment whose first fragment was not seen, or leads to no flow. To an address that takes node
 * ports it may be for a process of the node, and is passed. To any other address of a frontend it
 * is dropped, as no host has that address to reassemble it. `meaning` is the address's enum
 * addr_flag. */
static __always_inline int tc_lost_fragment(__u32 meaning)
{
	if (meaning & ADDR_FLAG_FRONTEND && !(meaning & ADDR_FLAG_NODE_PORTS))
		return tc_end(REASON_FRAGMENT_UNKNOWN, TC_ACT_SHOT);
	return tc_end(REASON_FRAGMENT_PASSED, TC_ACT_UNSPEC);
}

/* Returns what an address means to this node: enum addr_flag, 0 for nothing. */
static __always_inline __u32 tc_meaning(const struct addr *addr)
{
	struct addr_info *info = bpf_map_lookup_elem(&addrs, addr);

	return info ? info->flags : 0;
}

/* in, of a local flow: for this node's stack. A flow with a port of the SNAT range is a
 * masqueraded client's: packets that arrive refresh it. A flow with a node port's number is a
 * socket's: only what the socket sends refreshes it. */
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

/* in, of the flow in w: the packet goes where the flow leads, unless it begins another flow. */
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

/* in, of no flow, or of one that has ended (w->found). In the second case the destination was not
 * looked up yet. */
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

/* in, not of a confirmed flow: reports whether the packet is known to be of a direct connection
 * that has no flow, so that `flows_new` need not be searched. */
static __always_inline int tc_is_direct(struct tc_work *w)
{
	const struct pkt *pkt = &w->pkt;

	if (w->meaning != ADDR_FLAG_BACKEND || pkt->later_fragment)
		return 0;
	if (pkt->protocol != IPPROTO_TCP)
		return direct_is_noted(&w->key, tc_now(w));
	return !pkt_is_syn(pkt) && !direct_may_wait(tc_now(w)) && !flow_is_snat_port(pkt->dport);
}

/* in: most packets are of a confirmed flow, or of none. `flows_new` is searched only for the
 * others, and only if the destination can be that of an unconfirmed flow. */
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

/* in, an ICMP error about a packet that left this node. The quoted packet gets back the ends that
 * its sender gave it. */
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
	/* The quoted packet left, and the key is of packets that arrive: the ends are swapped. */
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

/* Completes the packet's ports. A later fragment gets those of its first, which are noted. Returns
 * 0 if the first was not seen. */
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

	/* Not addressed to this host, or broadcast or multicast. Without link addresses there is
	 * no such packet. */
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

/* snat_try with w->flow. It is global for the same reason as tc_try_out. */
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
		if (!(w->pkt.tcp_flags & TCP_RST)) /* a reset ends the other connection: the port
						    * is the flow's alone */
			track_yield(flow, tc_now(w));
		return tc_end(REASON_EGRESS_PASSED, TC_ACT_UNSPEC);
	}
	track_point(entry, flow, &w->pkt, FLOW_FROM_BACKEND);
	track_touch(flow, &w->pkt, FLOW_FROM_BACKEND, tc_now(w));
	w->nat.sport = flow->frontend_port;
	w->nat.dport = flow->client_port;
	return tc_translate(w, NAT_SOURCE, &flow->frontend, REASON_REPLY_RESTORED);
}

/* Finds the flow of a packet that leaves, or that an ICMP error quotes: w->flow is the copy,
 * *entry the entry. Returns which side sent the packet. */
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

/* out, a new local flow that collides with another flow's SNAT port towards the same host. It is
 * remapped to another port, as netfilter would do. */
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

/* Reports whether a datagram's source has the number of a UDP node port. */
static __noinline int tc_is_node_port(const struct pkt *pkt)
{
	struct frontend_key from = { .addr = pkt->src, .port = pkt->sport, .protocol = IPPROTO_UDP };
	struct frontend svc;
	__u32 undefined;

	return tc_meaning(&from.addr) & ADDR_FLAG_NODE_PORTS &&
	       lb_frontend(&from, 0, &undefined, &svc) != LB_NO_FRONTEND;
}

/* Reports whether a packet's source is, or may become, a flow's SNAT address and SNAT port. w->key
 * is the key of its replies. */
static __always_inline int tc_is_source(struct __sk_buff *skb, struct tc_work *w)
{
	const struct pkt *pkt = &w->pkt;

	return flow_is_snat_port(pkt->sport) &&
	       (snat_is_device(skb->ifindex, &pkt->src) || flow_peek(&w->key));
}

/* out, of no flow, and begins one. If its source port is of the SNAT range, netfilter has chosen
 * it for a client that it masquerades, without knowing the flows. If it is UDP from a node port's
 * number, a socket sent it. (TCP from there needs no note: a reply is no SYN, and begins no flow.)
 * Replies to such packets are noted as a local flow: they are for the stack, and for no other flow
 * and no service. */
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

/* out, of a remapped flow: its client is this node's end. */
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

/* out, an ICMP error about a packet between client and backend. */
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
