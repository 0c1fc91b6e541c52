// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* maps.h: the maps. One declaration each, shared by every compilation unit. The sizes here are the
 * defaults of the flags of `shunt run`. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "reason.h"

#ifndef DEFAULT_SERVICES
#define DEFAULT_SERVICES 131072
#define DEFAULT_SLOTS 524288
#define DEFAULT_BACKENDS 262144
#define DEFAULT_AFFINITY 65536
#define DEFAULT_FLOWS 524288
#define DEFAULT_SOURCES 65536
#endif

/* Entries of the LRU maps for unconfirmed flows, and for datagrams in fragments. The number of
 * buckets of a hash is the next power of two. So a few entries more than 2^16 halve the chains of a
 * map that is full most of the time. Each link of a chain is a cache miss. */
#define NEW_FLOWS 69632
#define FRAGMENTS 8192

/* Direct connections: one entry for each connection and UDP flow of a client on another node. */
#define DIRECTS 69632

/* Locked keys: at most one a CPU at a time. */
#define CLAIMS 4096

#define LOCAL_PORTS 4096

/* About four entries for a pod. */
#define CLIENT_ADDRS 65536

/* Devices that programs are attached to. */
#define DEVICES 4096

/* How many services that are not served as they ask are named. */
#define PROBLEMS 256

/* Room for the node's own addresses, beside those of frontends. */
#define NODE_ADDRS 4096

/* Room for addresses that no backend has any more. They stay marked for the connections to them. */
#define LEFT_ADDRS 4096

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, DEFAULT_SERVICES);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
} services SEC(".maps");

/* Backend ids, in slot ranges. A range to which an entry of `services` points is not overwritten,
 * unless the map has no room for another range of the same service. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, DEFAULT_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} slots SEC(".maps");

/* Element 0 is never used: no backend has id 0. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, DEFAULT_BACKENDS);
	__type(key, __u32);
	__type(value, struct backend);
} backends SEC(".maps");

/* Connections and flows begun, by backend id. One counter, not one per CPU: it is written once a
 * connection, and per-CPU counters for every backend would cost gigabytes on a large machine. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, DEFAULT_BACKENDS);
	__type(key, __u32);
	__type(value, __u64);
} backend_stats SEC(".maps");

/* The flow of a socket's last connect(). The hook runs before the kernel connects the socket, and
 * connect() can still fail. So a record describes the socket's peer only if its backend is that
 * peer. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sock_flow);
} sock_peer SEC(".maps");

/* The flow of the peer that a UDP socket had before its last connect(), and retains if that
 * connect() fails. A map of its own, since few sockets connect twice. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sock_flow);
} sock_before SEC(".maps");

/* The flows of an unconnected UDP socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sock_flows);
} sock_flows SEC(".maps");

/* Datagrams that processes of the node sent from a port with a node port's number: answers to that
 * port are for the process, not for the service. The value is the time of the last datagram: ns,
 * CLOCK_MONOTONIC. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, LOCAL_PORTS);
	__type(key, struct local_port_key);
	__type(value, __u64);
} local_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, DEFAULT_AFFINITY);
	__type(key, struct affinity_key);
	__type(value, struct affinity_value);
} affinity SEC(".maps");

/* Addresses of frontends, backends and this node. A packet with any other destination costs one
 * look-up here. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, DEFAULT_SERVICES + NODE_ADDRS + DEFAULT_BACKENDS + LEFT_ADDRS);
	__type(key, struct addr);
	__type(value, struct addr_info);
} addrs SEC(".maps");

/* Source ranges of load-balancer IPs, and service CIDRs. The value is prefix_bits, or 0 for an
 * address that is excepted from the ranges around it: a cluster IP of a service that has no
 * entries here. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, DEFAULT_SOURCES);
	__type(key, struct source_range_key);
	__type(value, __u8);
} sources SEC(".maps");

/* Source addresses of sockets on this node, which have none yet when they connect. Empty unless a
 * service has source ranges. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CLIENT_ADDRS);
	__type(key, struct client_key);
	__type(value, struct client_addr);
} client_addrs SEC(".maps");

/* Confirmed flows: each side has received a packet of the other side. The map is no LRU, so that
 * packets from outside alone cannot evict an entry. Two or three entries a flow. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, DEFAULT_FLOWS);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* New flows: the client has not answered the backend yet. Also all flows with FLOW_FLAG_LOCAL. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, NEW_FLOWS);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows_new SEC(".maps");

/* Direct connections: pairs of ends that may have a connection without a flow (direct.h). The key
 * is FLOW_KEY_IN of the client's packets. The value is the time of the last packet that was noted:
 * ns, CLOCK_MONOTONIC. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, DIRECTS);
	__type(key, struct flow_key);
	__type(value, __u64);
} directs SEC(".maps");

/* Locks: keys of flows whose entry is being replaced. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CLAIMS);
	__type(key, struct flow_key);
	__type(value, __u8);
} claims SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FRAGMENTS);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, DEVICES);
	__type(key, __u32);
	__type(value, struct device);
} devices SEC(".maps");

/* Not preallocated: 196 bytes a name, and no program reads it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, DEFAULT_SERVICES);
	__type(key, __u32);
	__type(value, struct service_name);
} names SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASON_MAX);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct meta_value);
} meta SEC(".maps");

/* Written by the daemon, read by `shunt status`; `meta` has their number. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, PROBLEMS);
	__type(key, __u32);
	__type(value, struct problem);
} problems SEC(".maps");
