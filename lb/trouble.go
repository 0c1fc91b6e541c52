// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"

	"go.uber.org/zap"

	"shunt/maps"
)

// claimProblems returns what a service asks for and does not get, in the order of its wish.
func (r *reconciler) claimProblems(name ServiceName) []Problem {
	w := r.wishes[name]
	if w == nil {
		return nil
	}
	var list []Problem
	cut := 0
	for _, p := range w.ports {
		cut += p.cut
		of := Problem{Service: name, Port: p.key.port, Protocol: p.key.protocol, Family: p.key.family}
		for _, f := range p.refused {
			of.Kind, of.Frontend, of.Error = maps.Refused, f.key, fmt.Sprintf("%s is not programmed: %s", f.kind, f.why)
			list = append(list, of)
		}
		for i := range p.frontends {
			f := &p.frontends[i]
			of.Frontend = f.key
			switch {
			case !f.won:
				o := r.claims.owner(claim{p, f})
				lost := of
				lost.Kind, lost.Owner = maps.Conflict, o.port.of.name
				lost.Error = fmt.Sprintf("%s is not programmed: Service %s has it, as its %s %s",
					f.kind, lost.Owner, o.frontend.kind, o.frontend.key)
				list = append(list, lost)
			case !f.fits:
				of.Kind, of.Error = maps.NoRoom, fmt.Sprintf("%s is not programmed: %v", f.kind, f.lacks.fullError(r.tables.Sizes()))
				if f.level >= ranks {
					of.Error += "; the Service asks for more than a sixteenth of a map, and this part of it comes after all other Services"
				}
				list = append(list, of)
			}
		}
	}
	if cut > 0 {
		why := fmt.Sprintf("the Service asks for %d frontends more than one may have: the last by kind and address "+
			"are left out; start shunt run with a larger --max-frontends-per-service", cut)
		list = append(list, Problem{Service: name, Kind: maps.Cut, Error: why})
	}
	return list
}

// mostLogged is how many new problems one call of noteClaims logs.
const mostLogged = 10

// noteClaims replaces the problems from these services' claims, and logs new ones.
func (r *reconciler) noteClaims(names []ServiceName) {
	before := len(r.problems.fresh)
	for _, name := range names {
		r.problems.set(name, byClaims, r.claimProblems(name))
	}
	for i, p := range r.problems.fresh[before:] {
		if i == mostLogged {
			r.log.Warn("more frontends are not programmed; see shunt status",
				zap.Int("more", len(r.problems.fresh)-before-i))
			break
		}
		r.log.Warn("a Service is not served as it asks", zap.Stringer("service", p.Service),
			zap.Stringer("frontend", p.Frontend), zap.String("reason", p.Error), zap.Uint32("more", p.More))
	}
}
