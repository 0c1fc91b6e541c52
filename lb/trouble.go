package lb

import (
	"fmt"
	"slices"

	"go.uber.org/zap"

	"shunt/maps"
)

// trouble is a frontend that a service asks for and has not.
type trouble struct {
	frontend maps.FrontendKey
	kind     maps.FrontendKind
	// owner has the frontend; zero where none has.
	owner ServiceName
	why   string
}

// troubles lists what a service asks for and has not, in the order of its wish.
func (r *reconciler) troubles(name ServiceName) []trouble {
	w := r.wishes[name]
	if w == nil {
		return nil
	}
	var list []trouble
	for _, p := range w.ports {
		for _, f := range p.refused {
			list = append(list, trouble{frontend: f.key, kind: f.kind, why: f.why})
		}
		for i := range p.frontends {
			if f := &p.frontends[i]; !f.won {
				o := r.claims.owner(claim{p, f})
				list = append(list, trouble{f.key, f.kind, o.port.of.name,
					fmt.Sprintf("%s has it, as its %s %s", o.port.of.name, o.frontend.kind, o.frontend.key)})
			}
		}
	}
	return list
}

// mostTroubles is how many new troubles of one service are logged at one time.
const mostTroubles = 3

// noteTroubles logs what these services have lost since they were looked at last.
func (r *reconciler) noteTroubles(names []ServiceName) {
	for _, name := range names {
		old, now := r.troubled[name], r.troubles(name)
		if len(now) == 0 {
			delete(r.troubled, name)
			continue
		}
		r.troubled[name] = now
		fresh := slices.DeleteFunc(slices.Clone(now), func(t trouble) bool { return slices.Contains(old, t) })
		for i, t := range fresh {
			if i == mostTroubles {
				r.log.Warn("more frontends are not programmed for this service", zap.Stringer("service", name),
					zap.Int("more", len(fresh)-i))
				break
			}
			r.log.Warn("frontend is not programmed for this service", zap.Stringer("service", name),
				zap.Stringer("frontend", t.frontend), zap.Stringer("kind", t.kind), zap.String("reason", t.why))
		}
	}
}
