// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"slices"
	"strings"
)

// plan says what of kube-proxy's goes from one iptables table.
type plan struct {
	table  string
	jumps  []rule   // kube-proxy's own, in built-in chains
	remove []string // chains, in the table's order
	kept   []string // chains that other people's rules need
	// users are the other people's rules that need them, as iptables-save prints them.
	users []string
}

func (p *plan) empty() bool { return len(p.jumps) == 0 && len(p.remove) == 0 }

// makePlan decides. A chain of kube-proxy's stays if a rule of somebody else's jumps
// to it (the CNI plugin portmap can be told to use KUBE-MARK-MASQ), with all that it
// leads to; and where the mark for masquerading stays in use, so does what acts on it.
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

// isOwnJump tells whether kube-proxy wrote a rule that jumps to a chain of its own:
// in a built-in chain, to an entry, with its comment.
func isOwnJump(t *table, r rule) bool {
	return !t.users[r.chain] && isEntry(t.name, r.target) && strings.HasPrefix(r.comment, "kubernetes ")
}

// reach gives kube-proxy's chains that can be come to from these.
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

// script is the transaction for iptables-restore --noflush: first nothing leads into
// the chains any more, then they are empty, then they can go.
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
