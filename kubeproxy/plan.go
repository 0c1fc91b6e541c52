// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"slices"
	"strings"
)

// plan is what is removed from one iptables table, and what is kept.
type plan struct {
	table  string
	jumps  []rule   // kube-proxy's own, in built-in chains
	remove []string // chains, in the table's order
	kept   []string // chains of kube-proxy's that other programs' rules need
	// users are the other programs' rules, as iptables-save prints them.
	users []string
}

func (p *plan) empty() bool { return len(p.jumps) == 0 && len(p.remove) == 0 }

// makePlan decides what is removed. If a rule of another program jumps to a chain of
// kube-proxy (the CNI plugin portmap can be configured to use KUBE-MARK-MASQ), that chain
// is retained, and so are all chains that it jumps to. With KUBE-MARK-MASQ, KUBE-POSTROUTING
// is retained too, since it masquerades the marked packets.
func makePlan(t *table) *plan {
	p := &plan{table: t.name}
	byChain := map[string][]rule{}
	var needed []string
	for _, r := range t.rules {
		byChain[r.chain] = append(byChain[r.chain], r)
		switch {
		case isChain(t.name, r.chain) || !isChain(t.name, r.target):
		case isOwnJump(t, r):
			p.jumps = append(p.jumps, r)
		default:
			needed = append(needed, r.target)
			p.users = append(p.users, "-A "+r.chain+" "+r.spec)
		}
	}
	keep := reach(t.name, byChain, needed)
	if keep[chainMarkMasq] && slices.Contains(t.chains, chainPostrouting) {
		keep = reach(t.name, byChain, append(needed, chainPostrouting))
	}
	p.jumps = slices.DeleteFunc(p.jumps, func(r rule) bool { return keep[r.target] })
	for _, chain := range t.chains {
		switch {
		case !isChain(t.name, chain):
		case keep[chain]:
			p.kept = append(p.kept, chain)
		default:
			p.remove = append(p.remove, chain)
		}
	}
	return p
}

// isOwnJump reports whether kube-proxy wrote r, a rule that jumps to a chain of kube-proxy. Such
// a rule is in a built-in chain, jumps to a chain of isEntry, and has kube-proxy's comment.
func isOwnJump(t *table, r rule) bool {
	return !t.users[r.chain] && isEntry(t.name, r.target) && strings.HasPrefix(r.comment, "kubernetes ")
}

// reach returns the chains in from, and kube-proxy's chains to which they jump, directly or
// indirectly.
func reach(table string, byChain map[string][]rule, from []string) map[string]bool {
	seen := map[string]bool{}
	queue := slices.Clone(from)
	for len(queue) > 0 {
		chain := queue[0]
		queue = queue[1:]
		if seen[chain] {
			continue
		}
		seen[chain] = true
		for _, r := range byChain[chain] {
			if isChain(table, r.target) {
				queue = append(queue, r.target)
			}
		}
	}
	return seen
}

// script returns the transaction for iptables-restore --noflush. It deletes the jumps to
// the chains, then flushes the chains, then deletes them.
func (p *plan) script() string {
	var b strings.Builder
	b.WriteString("*" + p.table + "\n")
	for _, r := range p.jumps {
		b.WriteString("-D " + r.chain + " " + r.spec + "\n")
	}
	for _, command := range []string{"-F ", "-X "} {
		for _, chain := range p.remove {
			b.WriteString(command + chain + "\n")
		}
	}
	b.WriteString("COMMIT\n")
	return b.String()
}
