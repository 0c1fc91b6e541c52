// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import "regexp"

// Family is an IP family, as Kubernetes spells it.
type Family string

// The two families.
const (
	IPv4 Family = "IPv4"
	IPv6 Family = "IPv6"
)

var families = []Family{IPv4, IPv6}

// NFTable is the name of kube-proxy's table in nftables mode, in families ip and ip6.
const NFTable = "kube-proxy"

// ipvsDevice is the device to which IPVS mode assigns the service addresses.
const ipvsDevice = "kube-ipvs0"

// Chains that makePlan handles by name.
const (
	chainMarkMasq    = "KUBE-MARK-MASQ"
	chainPostrouting = "KUBE-POSTROUTING"
)

// xtTables are the iptables tables that kube-proxy writes to.
var xtTables = []string{"nat", "filter", "mangle"}

// chains contains kube-proxy's chains by table; true: kube-proxy jumps to the chain from a
// built-in chain. The sources are KEP-3178 and the rules of kube-proxy 1.9 to 1.37 in
// iptables and IPVS mode.
// KUBE-FIREWALL of table filter, KUBE-MARK-DROP and KUBE-KUBELET-CANARY belong to the
// kubelet, KUBE-HOSTPORTS to a CNI plugin, KUBE-ROUTER-…, KUBE-POD-FW-… and KUBE-NWPLCY-… to
// kube-router.
var chains = map[string]map[string]bool{
	"nat": {
		"KUBE-SERVICES": true, "KUBE-NODEPORTS": true, chainPostrouting: true,
		chainMarkMasq: false, "KUBE-PROXY-CANARY": false,
		"KUBE-FIREWALL": false, "KUBE-NODE-PORT": true, "KUBE-LOAD-BALANCER": false, // IPVS
	},
	"filter": {
		"KUBE-SERVICES": true, "KUBE-EXTERNAL-SERVICES": true, "KUBE-NODEPORTS": true,
		"KUBE-FORWARD": true, "KUBE-PROXY-FIREWALL": true, "KUBE-PROXY-CANARY": false,
		"KUBE-NODE-PORT": true, "KUBE-SOURCE-RANGES-FIREWALL": false, // IPVS
		"KUBE-IPVS-FILTER": true, "KUBE-IPVS-OUT-FILTER": true,
	},
	"mangle": {"KUBE-PROXY-CANARY": false},
}

// hashed matches the names of chains of one service port or endpoint.
var hashed = regexp.MustCompile(`^KUBE-(SVC|SVL|SEP|FW|EXT|XLB)-[A-Z2-7]{16}$`)

// isChain reports whether a chain of an iptables table is kube-proxy's.
func isChain(table, chain string) bool {
	if _, ok := chains[table][chain]; ok {
		return true
	}
	return table == "nat" && hashed.MatchString(chain)
}

// isEntry reports whether kube-proxy jumps to the chain from a built-in chain.
func isEntry(table, chain string) bool { return chains[table][chain] }

// isSet reports whether an ipset is kube-proxy's.
func isSet(name string) bool { return ipsets[name] }

// maxSetName is the longest name of an ipset, in bytes (IPSET_MAXNAMELEN less the zero).
const maxSetName = 31

var ipsets = func() map[string]bool {
	all := map[string]bool{}
	for _, name := range []string{
		"LOOP-BACK", "CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "LOAD-BALANCER", "LOAD-BALANCER-FW",
		"LOAD-BALANCER-LOCAL", "LOAD-BALANCER-SOURCE-CIDR", "LOAD-BALANCER-SOURCE-IP",
		"NODE-PORT-TCP", "NODE-PORT-LOCAL-TCP", "NODE-PORT-UDP", "NODE-PORT-LOCAL-UDP",
		"NODE-PORT-SCTP-HASH", "NODE-PORT-LOCAL-SCTP-HASH", "HEALTH-CHECK-NODE-PORT", "IPVS-IPS",
	} {
		for _, prefix := range []string{"KUBE-", "KUBE-6-"} {
			full := prefix + name
			all[full[:min(len(full), maxSetName)]] = true
		}
	}
	return all
}()
