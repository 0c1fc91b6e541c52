// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strings"

	"shunt/lab"
)

// chainHash returns the hash in the names of a service's or endpoint's chains.
func chainHash(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, " ")))
	return base32.StdEncoding.EncodeToString(sum[:])[:16]
}

func (f *frontend) proto() string { return strings.ToLower(f.Protocol.String()) }

func (f *frontend) serviceChain() string { return "KUBE-SVC-" + chainHash(f.Name, f.proto()) }

func (f *frontend) externalChain() string { return "KUBE-EXT-" + chainHash(f.Name, f.proto()) }

func (f *frontend) endpointChain(i int) string {
	return "KUBE-SEP-" + chainHash(f.Name, f.proto(), f.Backends[i].String())
}

// iptablesHead is the rule set without services: where packets enter, the masquerade mark,
// and the filter table's rules for established traffic.
const iptablesHead = `*filter
:KUBE-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
`

// iptablesLoad returns all rules, as input of iptables-restore.
func iptablesLoad(w *workload) string {
	var chains, dispatch, ports, rules strings.Builder
	for i := range w.Services {
		for _, f := range w.frontends(i) {
			iptablesDispatch(&dispatch, &ports, &f)
			iptablesService(&chains, &rules, &f)
		}
	}
	iptablesNodePorts(&dispatch)
	return iptablesHead + chains.String() + dispatch.String() + ports.String() + rules.String() + "COMMIT\n"
}

// iptablesUpdate returns the change of one endpoint, as input of iptables-restore
// --noflush: the rules that lead to every service, and the chains of the changed one.
// before is the workload with the endpoint's previous address.
func iptablesUpdate(before, after *workload) string {
	var chains, dispatch, ports, rules, gone strings.Builder
	for i := range after.Services {
		for _, f := range after.frontends(i) {
			iptablesDispatch(&dispatch, &ports, &f)
			if i == after.moving() {
				iptablesService(&chains, &rules, &f)
			}
		}
	}
	for _, f := range before.frontends(before.moving()) {
		for e := range f.Backends {
			fmt.Fprintf(&chains, ":%s - [0:0]\n", f.endpointChain(e))
			fmt.Fprintf(&gone, "-X %s\n", f.endpointChain(e))
		}
	}
	iptablesNodePorts(&dispatch)
	return "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n" + chains.String() + dispatch.String() + ports.String() +
		rules.String() + gone.String() + "COMMIT\n"
}

// iptablesDispatch writes the rules that lead to a service: by its cluster IP, and by its
// node port.
func iptablesDispatch(b, ports *strings.Builder, f *frontend) {
	if f.NodePort != 0 {
		fmt.Fprintf(ports, "-A KUBE-NODEPORTS -m comment --comment %q -m %s -p %s --dport %d -j %s\n",
			f.Name, f.proto(), f.proto(), f.NodePort, f.externalChain())
	}
	fmt.Fprintf(b, "-A KUBE-SERVICES -m comment --comment \"%s cluster IP\" -m %s -p %s -d %s --dport %d -j %s\n",
		f.Name, f.proto(), f.proto(), f.Addr.Addr(), f.Addr.Port(), f.serviceChain())
}

func iptablesNodePorts(b *strings.Builder) {
	b.WriteString("-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\"" +
		" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n")
}

// iptablesService writes a service's chain, which chooses an endpoint, the chain from its
// node port to that one, and the endpoints' chains, which mark hairpin packets and
// translate.
func iptablesService(chains, rules *strings.Builder, f *frontend) {
	p, svc := f.proto(), f.serviceChain()
	fmt.Fprintf(chains, ":%s - [0:0]\n", svc)
	if f.NodePort != 0 {
		ext := f.externalChain()
		fmt.Fprintf(chains, ":%s - [0:0]\n", ext)
		fmt.Fprintf(rules, "-A %s -m comment --comment \"masquerade traffic for %s external destinations\" -j KUBE-MARK-MASQ\n",
			ext, f.Name)
		fmt.Fprintf(rules, "-A %s -j %s\n", ext, svc)
	}
	fmt.Fprintf(rules, "-A %s -m comment --comment \"%s cluster IP\" -m %s -p %s -d %s --dport %d ! -s %s -j KUBE-MARK-MASQ\n",
		svc, f.Name, p, p, f.Addr.Addr(), f.Addr.Port(), lab.ClusterCIDR4)
	for e, b := range f.Backends {
		sep, draw := f.endpointChain(e), ""
		if left := len(f.Backends) - e; left > 1 {
			draw = fmt.Sprintf(" -m statistic --mode random --probability %0.10f", 1/float64(left))
		}
		fmt.Fprintf(chains, ":%s - [0:0]\n", sep)
		fmt.Fprintf(rules, "-A %s -m comment --comment \"%s -> %s\"%s -j %s\n", svc, f.Name, b, draw, sep)
		fmt.Fprintf(rules, "-A %s -m comment --comment %q -s %s -j KUBE-MARK-MASQ\n", sep, f.Name, b.Addr())
		fmt.Fprintf(rules, "-A %s -m comment --comment %q -m %s -p %s -j DNAT --to-destination %s\n", sep, f.Name, p, p, b)
	}
}
