package bench

import "fmt"

// explain says what the numbers mean, what they don't, and what is not there.
func (r *Report) explain() {
	s := r.Setup
	r.Notes = []string{
		"connect is connect(2) alone, exchange is connect, request and reply with a new socket each: a client pod asks a " +
			"server pod of " +
			"the same node, IPv4, at a ClusterIP or at the pod's own address (path pod: what the node's rules or hooks cost " +
			"connections to no service).",
		fmt.Sprintf("Every number of services is measured in %d rounds after %d of warm-up; a round asks every contender and "+
			"path %d times "+
			"over TCP and UDP, each round beginning with another, client and server on one CPU, another in every round: the "+
			"time is that of the work on the way, not of waking "+
			"another CPU, and the server does not push the client off its CPU (SCHED_BATCH). Percentiles are of all "+
			"exchanges; nothing is taken for an outlier.",
			s.Rounds, s.Warmup, s.Exchanges),
		"A ratio is the median over rounds of a contender's p50 by that of direct in the same round; its interval is by " +
			"order statistics, 95% from six rounds on.",
		"first and last are the services that were loaded first and last: kube-proxy's order is its own, so a service of a " +
			"cluster lies somewhere between.",
		"rate and CPU are of bursts with a thread for each CPU. CPU is of the whole machine by /proc/stat, interrupts " +
			"included: others who work there are in it.",
		"update is from the start of the change (a slice put into shunt's store; iptables-restore --noflush with the rule of " +
			"every service and the chains of the one " +
			"that changed, as kube-proxy's partial sync; nft -f with the changed chains) to the first connection that " +
			"reaches the new endpoint. The text for the " +
			"tools was written before the clock started. Nobody's API server or watcher is in it, nor kube-proxy's own work " +
			"and its wait between syncs.",
		"load is from nothing to all services in effect: for shunt maps, programs, first reconcile and hooks; for the others " +
			"one run of the tool, its text written before.",
		"memory-kernel is the size of the eBPF maps for shunt (made for more services than there are), for the others the " +
			"growth of the kernel's unreclaimable memory " +
			"while loading: others who work on the machine are in it. memory-process is shunt's resident memory, mapped maps " +
			"included; kube-proxy itself does not run here.",
		"The rule sets of iptables and nftables have the structure that kube-proxy writes, written by this program. They " +
			"hold cluster IPs only.",
	}
	r.NotMeasured = []NotMeasured{
		{"node ports, load-balancer and external IPs from outside the node", "shunt does not serve packets from outside yet"},
		{"throughput and CPU per packet of established connections", "no contender but rules touches them on the socket " +
			"path; comes with the packet path"},
		{"the real kube-proxy and an API server in the update", "they come with the harness of e2e; the rules here are " +
			"loaded by the tools alone"},
		{"IPv6", "the benchmark's rule sets are IPv4 only"},
		{"memory of kube-proxy's process", "kube-proxy does not run here"},
	}
}
