// SPDX-License-Identifier: Apache-2.0

package bench

import "fmt"

// explain adds notes on what the numbers mean, what they do not mean, and what is missing.
func (r *Report) explain() {
	r.Notes = append(r.connectionNotes(), r.controlNotes()...)
	r.NotMeasured = append(r.NotMeasured, []NotMeasured{
		{"load-balancer and external IPs", "they take the way of node ports"},
		{"IPv6", "the benchmark's rule sets are IPv4 only"},
		{"one established UDP flow", "every datagram exchange has a new socket, as DNS has it"},
	}...)
	if !r.Setup.API {
		r.NotMeasured = append(r.NotMeasured, NotMeasured{"the real kube-proxy, and an API server in the update and the start",
			"give --kubeconfig and --kube-proxy; `make bench` does"})
	}
}

func (r *Report) connectionNotes() []string {
	s := r.Setup
	return []string{
		"connect is connect(2) alone, exchange is connect, request and reply with a new socket each, IPv4. From a pod to a pod of the " +
			"same node by cluster IP, or by the pod's own address (path pod: what the node's rules or hooks cost connections to no " +
			"service). From a client outside, through a node, to a pod of that node (near) or of another one (far), by node port.",
		"direct is the limit: the same client and pod on a node without proxy and rules. From outside its client's packets and the " +
			"replies are routed through such a node (plain forwarding), the same number of hops as a node port takes.",
		fmt.Sprintf("Every number of services is measured in %d rounds after %d of warm-up; a round asks every contender and path %d "+
			"times over TCP and UDP, each round beginning with another, client and server on one CPU, another in every round: the time "+
			"is that of the work on the way, not of waking another CPU, and the server does not push the client off its CPU "+
			"(SCHED_BATCH). Percentiles are of all exchanges; nothing is taken for an outlier.", s.Rounds, s.Warmup, s.Exchanges),
		"A ratio is the median over rounds of a contender's p50 by that of direct in the same round; its interval is by order " +
			"statistics, 95% from six rounds on. That of rates and throughput is higher where it is better.",
		"first and last are the services that were loaded first and last: kube-proxy's order is its own, so a service of a cluster " +
			"lies somewhere between. The first thousand services have node ports, and those that are measured.",
		"rate and CPU are of bursts with a thread for each CPU, with a connection for each exchange, or on connections that are kept; " +
			"packets are counted at the client, in both directions. CPU is of the whole machine by /proc/stat, interrupts included: " +
			"others who work there are in it.",
		"throughput is of one connection, segmentation offloads on, on virtual devices that copy nothing: it compares the work for a " +
			"packet of up to 64 KiB, and is no network's.",
	}
}

func (r *Report) controlNotes() []string {
	notes := []string{
		"update is from the start of the change to the first connection that reaches the new endpoint, by a client that asks two " +
			"thousand times a second. shunt: a slice put into its store; iptables: iptables-restore --noflush with the rule of every " +
			"service and the chains of the one that changed, as kube-proxy's partial sync; nftables: nft -f with the changed chains. The " +
			"text for the tools was written before the clock started.",
		"load is from nothing until services all over have answered: a hundred are asked in turn while the clock runs, every one (of up " +
			"to ten thousand) once it has stopped. shunt: maps, programs, first reconcile and hooks; iptables and nftables: one run of " +
			"the tool, its text written before.",
		"memory-kernel is the size of the eBPF maps for shunt (made for more services than there are), for the others the growth of the " +
			"kernel's unreclaimable memory while loading: others who work on the machine are in it. memory-process is resident memory, " +
			"of shunt with the maps that are mapped.",
		"The rule sets of iptables and nftables have the structure that kube-proxy writes, written by this program. They hold cluster " +
			"IPs and node ports only.",
	}
	if r.Setup.API {
		notes = append(notes, "shunt-api and kube-proxy-… are the daemons. Their updates are from the moment before the change is written "+
			"to the API server, and their loads from the start of the process. While one is measured the others are stopped (SIGSTOP): a "+
			"node has one proxy. A change comes when the proxy has had nothing to do for longer than a second, since kube-proxy waits "+
			"that long between two syncs: it is the best case.")
	}
	return notes
}
