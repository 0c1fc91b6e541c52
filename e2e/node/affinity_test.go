// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

// TestAffinity: with session affinity ClientIP, every client outside keeps its endpoint,
// for every frontend of the service port and every source port.
func TestAffinity(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	more := []*lab.Pod{c.near, c.far, c.n1.Pod("near-2"), c.n2.Pod("far-2")}
	serve(rig.ServerPort, more[2:]...)
	c.apply(rig.Service("web", 1, rig.Everywhere(1), rig.WithAffinity(600)), rig.SlicesOf("web", rig.Up(more...)...))
	eachWay(func(network string, family int) {
		chosen := map[*lab.Pod]string{}
		for range 8 {
			for _, from := range []*lab.Pod{c.outside, c.other} {
				for _, f := range frontends {
					a := ask(from, network, f.of(c, 1, family), 0)
					if a.Err != nil {
						t.Fatalf("%s asks the %s by %s: %v", from.Name(), f.name, network, a.Err)
					}
					if chosen[from] == "" {
						chosen[from] = a.Server
					}
					if a.Server != chosen[from] {
						t.Fatalf("%s asks the %s by %s: %s answers, before it was %s", from.Name(), f.name, network, a.Server, chosen[from])
					}
				}
			}
		}
		// When its endpoint is gone, a client gets another, and keeps that one.
		var left []*lab.Pod
		for _, p := range more {
			if p.Name() != chosen[c.outside] {
				left = append(left, p)
			}
		}
		c.apply(rig.SlicesOf("web", rig.Up(left...)...))
		second := ask(c.outside, network, c.nodePortAt(1, family), 0)
		if second.Err != nil || second.Server == chosen[c.outside] {
			t.Fatalf("%s, of which the endpoint has gone: %q, %v", c.outside.Name(), second.Server, second.Err)
		}
		c.apply(rig.SlicesOf("web", rig.Up(more...)...))
		for range 8 {
			if a := ask(c.outside, network, c.nodePortAt(1, family), 0); a.Err != nil || a.Server != second.Server {
				t.Fatalf("%q answers (%v), before it was %s", a.Server, a.Err, second.Server)
			}
		}
	})
}

// TestAffinityEnds: the timeout of affinity runs from the last connection, not from the
// first, and affinity ends with it.
func TestAffinityEnds(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	pods := []*lab.Pod{c.near, c.far, c.n1.Pod("near-2"), c.n2.Pod("far-2")}
	serve(rig.ServerPort, pods[2:]...)
	const seconds = 2
	c.apply(rig.Service("web", 1, rig.Everywhere(1), rig.WithAffinity(seconds)), rig.SlicesOf("web", rig.Up(pods...)...))
	dst := c.nodePortAt(1, 0)
	first := ask(c.outside, "tcp", dst, 0)
	last := time.Now()
	for begin := last; time.Since(begin) < 2*seconds*time.Second; time.Sleep(seconds * time.Second / 5) {
		before := last
		a := ask(c.outside, "tcp", dst, 0)
		last = time.Now()
		// If the machine stalled for that long, the result means nothing.
		if a.Err != nil || a.Server != first.Server && last.Sub(before) < seconds*time.Second {
			t.Fatalf("%q answers (%v) %v after the last connection, before it was %s", a.Server, a.Err, last.Sub(before), first.Server)
		}
		first = a
	}
	// With four endpoints, a new choice is another one in three of four tries: the chance
	// that it never is, is 1 in 10^7.
	for try := 0; ; try++ {
		time.Sleep(seconds*time.Second + 100*time.Millisecond)
		a := ask(c.outside, "tcp", dst, 0)
		if a.Err != nil {
			t.Fatal(a.Err)
		}
		if a.Server != first.Server {
			return
		}
		if try == 12 {
			t.Fatalf("%s has answered all along, with pauses longer than the affinity", a.Server)
		}
	}
}
