// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"strings"

	"shunt/lab"
)

// nftablesHead is the table without services.
const nftablesHead = `add table ip kube-proxy
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }
add map ip kube-proxy service-nodeports { type inet_proto . inet_service : verdict ; }
add map ip kube-proxy no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict ; }
add set ip kube-proxy cluster-ips { type ipv4_addr ; }
add chain ip kube-proxy filter-prerouting { type filter hook prerouting priority -110 ; }
add chain ip kube-proxy filter-forward { type filter hook forward priority -110 ; }
add chain ip kube-proxy filter-output { type filter hook output priority -110 ; }
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100 ; }
add chain ip kube-proxy nat-output { type nat hook output priority -100 ; }
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority 100 ; }
add chain ip kube-proxy services
add chain ip kube-proxy service-endpoints-check
add chain ip kube-proxy cluster-ips-check
add chain ip kube-proxy mark-for-masquerade
add chain ip kube-proxy masquerading
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add rule ip kube-proxy filter-output ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump cluster-ips-check
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy services fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports
add rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000
add rule ip kube-proxy masquerading mark and 0x4000 == 0 return
add rule ip kube-proxy masquerading mark set mark xor 0x4000
add rule ip kube-proxy masquerading masquerade fully-random
`

func (f *frontend) nftService() string {
	return fmt.Sprintf("service-%s-%d", chainHash(f.Name, f.proto())[:8], f.Index)
}

func (f *frontend) nftExternal() string {
	return fmt.Sprintf("external-%s-%d", chainHash(f.Name, f.proto())[:8], f.Index)
}

func (f *frontend) nftEndpoint(i int) string {
	return fmt.Sprintf("endpoint-%s-%d", chainHash(f.Name, f.proto(), f.Backends[i].String())[:8], f.Index)
}

// nftablesLoad returns the whole table, as input of nft -f.
func nftablesLoad(w *workload) string {
	var b strings.Builder
	b.WriteString(nftablesHead)
	for i := range w.Services {
		for n, f := range w.frontends(i) {
			nftChains(&b, &f)
			nftRules(&b, &f)
			if n == 0 {
				fmt.Fprintf(&b, "add element ip kube-proxy cluster-ips { %s }\n", f.Addr.Addr())
			}
			fmt.Fprintf(&b, "add element ip kube-proxy service-ips { %s . %s . %d : goto %s }\n",
				f.Addr.Addr(), f.proto(), f.Addr.Port(), f.nftService())
			if f.NodePort != 0 {
				fmt.Fprintf(&b, "add element ip kube-proxy service-nodeports { %s . %d : goto %s }\n",
					f.proto(), f.NodePort, f.nftExternal())
			}
		}
	}
	return b.String()
}

// nftablesUpdate returns the change of one endpoint: its chain and that of its service,
// nothing of other services.
func nftablesUpdate(before, after *workload) string {
	var b strings.Builder
	for _, f := range after.frontends(after.moving()) {
		nftChains(&b, &f)
		fmt.Fprintf(&b, "flush chain ip kube-proxy %s\n", f.nftService())
		if f.NodePort != 0 {
			fmt.Fprintf(&b, "flush chain ip kube-proxy %s\n", f.nftExternal())
		}
		nftRules(&b, &f)
	}
	for _, f := range before.frontends(before.moving()) {
		for e := range f.Backends {
			fmt.Fprintf(&b, "flush chain ip kube-proxy %s\ndelete chain ip kube-proxy %s\n", f.nftEndpoint(e), f.nftEndpoint(e))
		}
	}
	return b.String()
}

func nftChains(b *strings.Builder, f *frontend) {
	fmt.Fprintf(b, "add chain ip kube-proxy %s\n", f.nftService())
	if f.NodePort != 0 {
		fmt.Fprintf(b, "add chain ip kube-proxy %s\n", f.nftExternal())
	}
	for e := range f.Backends {
		fmt.Fprintf(b, "add chain ip kube-proxy %s\n", f.nftEndpoint(e))
	}
}

// nftRules writes the rules of a service's chain, which chooses an endpoint by a verdict
// map, of the chain from its node port to that one, and of its endpoints' chains.
func nftRules(b *strings.Builder, f *frontend) {
	if f.NodePort != 0 {
		fmt.Fprintf(b, "add rule ip kube-proxy %s jump mark-for-masquerade\nadd rule ip kube-proxy %s goto %s\n",
			f.nftExternal(), f.nftExternal(), f.nftService())
	}
	var draw []string
	for e, backend := range f.Backends {
		chain := f.nftEndpoint(e)
		draw = append(draw, fmt.Sprintf("%d : goto %s", e, chain))
		fmt.Fprintf(b, "add rule ip kube-proxy %s ip saddr %s jump mark-for-masquerade\n", chain, backend.Addr())
		fmt.Fprintf(b, "add rule ip kube-proxy %s meta l4proto %s dnat to %s\n", chain, f.proto(), backend)
	}
	fmt.Fprintf(b, "add rule ip kube-proxy %s ip daddr %s %s dport %d ip saddr != %s jump mark-for-masquerade\n",
		f.nftService(), f.Addr.Addr(), f.proto(), f.Addr.Port(), lab.ClusterCIDR4)
	fmt.Fprintf(b, "add rule ip kube-proxy %s numgen random mod %d vmap { %s }\n",
		f.nftService(), len(draw), strings.Join(draw, ", "))
}
