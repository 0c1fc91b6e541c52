// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"slices"

	"shunt/maps"
)

// claim is one service port's claim to a frontend.
type claim struct {
	port     *portWish
	frontend *frontendWish
}

// better reports whether a claim wins over another to the same frontend: by rank, then by the age
// and name of the services, then by the order of ports in one service.
func (c claim) better(o claim) bool {
	switch a, b := rankOf(c.frontend.kind), rankOf(o.frontend.kind); {
	case a != b:
		return a < b
	case c.port.of != o.port.of:
		return c.port.of.compare(o.port.of) < 0
	}
	return c.port.index < o.port.index
}

// claims has all claims, and decides which one gets each frontend.
type claims struct {
	// to has the claims to each frontend, the best first.
	to map[maps.FrontendKey][]claim
	// under has, for each key of map services, the claims to load-balancer and external IPs that
	// lose to a claim to that key: see beatenBy. One address may have tens of thousands.
	under map[maps.FrontendKey]map[claim]bool
	// takes has the addresses of this node that take node ports.
	takes map[netip.Addr]uint32
	// changed are the services that won or lost a frontend since the loop last cleared it.
	changed map[ServiceName]bool
}

func newClaims() claims {
	return claims{to: map[maps.FrontendKey][]claim{}, under: map[maps.FrontendKey]map[claim]bool{},
		changed: map[ServiceName]bool{}}
}

// beatenBy returns the keys of other frontends whose claims beat this one. A node address has the
// node ports of all services, by one entry for each port. Programs look up the exact address first,
// so a load-balancer or external IP there would take the port from its owner. The ports of a
// cluster IP that its service does not define are refused, and no other service gets them.
func (c *claims) beatenBy(k maps.FrontendKey, kind maps.FrontendKind) []maps.FrontendKey {
	if rankOf(kind) < rankLoadBalancerIP {
		return nil
	}
	at := k.AddrPort()
	keys := []maps.FrontendKey{maps.NewFrontendKey(at.Addr(), 0, 0)}
	if _, takes := c.takes[at.Addr()]; takes {
		any := netip.IPv6Unspecified()
		if at.Addr().Is4() {
			any = netip.IPv4Unspecified()
		}
		keys = append(keys, maps.NewFrontendKey(any, at.Port(), k.Protocol))
	}
	return keys
}

func (c *claims) add(n claim) {
	k := n.frontend.key
	at, _ := slices.BinarySearchFunc(c.to[k], n, func(a, b claim) int {
		if a.better(b) {
			return -1
		}
		return 1
	})
	c.to[k] = slices.Insert(c.to[k], at, n)
	for _, over := range c.beatenBy(k, n.frontend.kind) {
		if c.under[over] == nil {
			c.under[over] = map[claim]bool{}
		}
		c.under[over][n] = true
	}
	c.decide(k)
	c.decideUnder(k)
}

func (c *claims) remove(n claim) {
	k := n.frontend.key
	rest := slices.DeleteFunc(c.to[k], func(o claim) bool { return o == n })
	if c.to[k] = rest; len(rest) == 0 {
		delete(c.to, k)
	}
	for _, over := range c.beatenBy(k, n.frontend.kind) {
		if delete(c.under[over], n); len(c.under[over]) == 0 {
			delete(c.under, over)
		}
	}
	c.decide(k)
	c.decideUnder(k)
}

// decide sets for all claims to a frontend whether they win.
func (c *claims) decide(k maps.FrontendKey) {
	for i, cl := range c.to[k] {
		if won := i == 0 && c.beats(cl) == nil; won != cl.frontend.won {
			cl.frontend.won, cl.port.of.uncounted = won, true
			c.changed[cl.port.of.name] = true
		}
	}
}

// decideUnder decides again about the claims to other frontends that lose to a claim to this one.
func (c *claims) decideUnder(k maps.FrontendKey) {
	for cl := range c.under[k] {
		c.decide(cl.frontend.key)
	}
}

// beats returns the claim to another frontend that beats this one, nil where there is none.
func (c *claims) beats(cl claim) *claim {
	for _, over := range c.beatenBy(cl.frontend.key, cl.frontend.kind) {
		if better := c.to[over]; len(better) > 0 && (over.Port != 0 || better[0].port.of != cl.port.of) {
			return &better[0]
		}
	}
	return nil
}

// owner returns the claim that gets what a losing claim asks for.
func (c *claims) owner(cl claim) claim {
	if o := c.beats(cl); o != nil {
		return *o
	}
	return c.to[cl.frontend.key][0]
}

// winner returns the service port that is to have a frontend in the maps, nil where there is none.
func (c *claims) winner(k maps.FrontendKey) *portWish {
	if all := c.to[k]; len(all) > 0 && all[0].frontend.granted() && !all[0].port.of.notServed {
		return all[0].port
	}
	return nil
}

// setTakes replaces the addresses that take node ports. It decides again about the claims of
// services with a load-balancer or external IP that is added to these or removed.
func (r *reconciler) setTakes(takes map[netip.Addr]uint32) {
	touched := map[ServiceName]bool{}
	for _, pair := range [][2]map[netip.Addr]uint32{{r.claims.takes, takes}, {takes, r.claims.takes}} {
		for a := range pair[0] {
			if _, there := pair[1][a]; !there {
				for _, name := range r.outer[a] {
					touched[name] = true
				}
			}
		}
	}
	for name := range touched {
		r.wishes[name].eachClaim(r.claims.remove)
	}
	r.claims.takes = takes
	for name := range touched {
		r.wishes[name].eachClaim(r.claims.add)
	}
}
