// SPDX-License-Identifier: Apache-2.0

package lb

// A slow second implementation of the rules in policy.go, in another form: endpoints are names in
// sets, and a rule is a filter over a set.

import (
	"fmt"
	"slices"
	"strings"
)

type set map[string]bool

func (s set) where(f func(string) bool) set {
	out := set{}
	for name := range s {
		if f(name) {
			out[name] = true
		}
	}
	return out
}

func (s set) all(f func(string) bool) bool { return len(s.where(f)) == len(s) }

func (s set) or(other set) set {
	if len(s) > 0 {
		return s
	}
	return other
}

// modelOutcome returns what outcome returns, by the model.
func modelOutcome(all []*EndpointSlice, at place) []string {
	said := map[string][]Endpoint{} // every listing of an address and port
	for _, s := range all {
		for _, p := range s.Ports {
			for _, e := range s.Endpoints {
				if p.Name == "p" && p.Protocol == TCP && e.Addr.Is4() {
					name := fmt.Sprintf("%s:%d", e.Addr, p.Port)
					said[name] = append(said[name], e)
				}
			}
		}
	}
	everyone := set{}
	best := map[string][]Endpoint{}
	for name, es := range said {
		everyone[name] = true
		best[name] = bestOf(es)
	}
	ready := everyone.where(func(n string) bool { return best[n][0].Ready })
	draining := everyone.where(func(n string) bool { return best[n][0].Serving && best[n][0].Terminating })
	local := everyone.where(func(n string) bool {
		return slices.ContainsFunc(said[n], func(e Endpoint) bool { return at.node != "" && e.Node == at.node })
	})
	isLocal := func(n string) bool { return local[n] }

	near := byHint(ready, best, at.node, func(h *Hints) []string { return h.Nodes }).
		or(byHint(ready, best, at.zone, func(h *Hints) []string { return h.Zones })).
		or(ready)
	cluster := near.or(draining)
	here := ready.where(isLocal).or(draining.where(isLocal))

	var out []string
	for name := range everyone {
		text := name
		if cluster[name] {
			text += " cluster"
		}
		if here[name] {
			text += " local"
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return out
}

// bestOf returns those with the best condition: ready, then serving, then terminating.
func bestOf(es []Endpoint) []Endpoint {
	for _, better := range []func(Endpoint) bool{
		func(e Endpoint) bool { return e.Ready },
		func(e Endpoint) bool { return e.Serving },
		func(e Endpoint) bool { return e.Terminating },
	} {
		var kept []Endpoint
		for _, e := range es {
			if better(e) {
				kept = append(kept, e)
			}
		}
		if len(kept) > 0 {
			es = kept
		}
	}
	return es
}

// byHint returns the ready endpoints that hints of one kind allow here; none where those hints do
// not decide.
func byHint(ready set, best map[string][]Endpoint, where string, kind func(*Hints) []string) set {
	hints := func(n string) []string {
		var all []string
		for _, e := range best[n] {
			if e.Hints == nil {
				return nil
			}
			all = append(all, kind(e.Hints)...)
		}
		return all
	}
	if where == "" || !ready.all(func(n string) bool { return len(hints(n)) > 0 }) {
		return set{}
	}
	return ready.where(func(n string) bool { return slices.Contains(hints(n), where) })
}

// randomSlices returns random slices that overlap much.
func randomSlices(c chooser) []*EndpointSlice {
	var all []*EndpointSlice
	hinted := c(3) // how likely hints are
	down := 1 + c(6)
	for i := range c(4) {
		s := &EndpointSlice{Name: SliceName{"ns", fmt.Sprint(i)}}
		for _, name := range []string{"p", "q", "p"}[:1+c(3)] {
			p := EndpointPort{name, TCP, uint16(80 + c(2))}
			if c.oneIn(8) {
				p.Protocol = UDP
			}
			s.Ports = append(s.Ports, p)
		}
		for range c(5) {
			s.Endpoints = append(s.Endpoints, randomEndpoint(c, hinted, down))
		}
		all = append(all, s)
	}
	return all
}

func randomEndpoint(c chooser, hinted, down int) Endpoint {
	e := Endpoint{
		Addr: pick(c, addrs("10.0.0.1", "10.0.0.2", "10.0.0.10", "10.0.0.11", "fd00::1")),
		Node: pick(c, []string{"", "me", "you", "you"}),
	}
	if c.oneIn(down) {
		e.Ready, e.Serving = true, true
	}
	if c.oneIn(2) {
		e.Ready, e.Serving, e.Terminating = c.oneIn(4), c.oneIn(2), c.oneIn(2)
	}
	if hinted == 2 || hinted == 1 && c.oneIn(2) {
		e.Hints = &Hints{}
		for _, n := range []string{"me", "you"} {
			if c.oneIn(2) {
				e.Hints.Nodes = append(e.Hints.Nodes, n)
			}
		}
		for _, z := range []string{"z1", "z2"} {
			if !c.oneIn(4) {
				e.Hints.Zones = append(e.Hints.Zones, z)
			}
		}
	}
	return e
}

func randomPlace(c chooser) place {
	return place{node: pick(c, []string{"me", "me", "you", ""}), zone: pick(c, []string{"z1", "z2", "z3", ""})}
}

// shuffled returns the same slices in another order, with their ports and endpoints shuffled too.
func shuffled(all []*EndpointSlice, c chooser) []*EndpointSlice {
	out := make([]*EndpointSlice, 0, len(all))
	for _, s := range all {
		n := *s
		n.Ports, n.Endpoints = shuffle(s.Ports, c), shuffle(s.Endpoints, c)
		out = append(out, &n)
	}
	return shuffle(out, c)
}

func shuffle[T any](in []T, c chooser) []T {
	out := slices.Clone(in)
	for i := len(out) - 1; i > 0; i-- {
		j := c(i + 1)
		out[i], out[j] = out[j], out[i]
	}
	return out
}

func slicesText(all []*EndpointSlice) string {
	var b strings.Builder
	for _, s := range all {
		fmt.Fprintf(&b, "\n  %s ports %v", s.Name, s.Ports)
		for _, e := range s.Endpoints {
			fmt.Fprintf(&b, "\n    %s@%s ready=%t serving=%t terminating=%t hints=%v",
				e.Addr, e.Node, e.Ready, e.Serving, e.Terminating, e.Hints)
		}
	}
	return b.String()
}
