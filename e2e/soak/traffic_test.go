// SPDX-License-Identifier: Apache-2.0

package soak_test

import (
	"fmt"
	"net/netip"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

// web is the service of the traffic. The first cluster IP is the API server's.
const (
	web       = "web"
	webNumber = 2
)

// flow is one kind of traffic: its client, destination and protocol.
type flow struct {
	name    string
	from    *lab.Pod
	network string
	dst     netip.AddrPort
	// packet is true for packets from outside, false for a socket of the node.
	packet, v6, unconnected bool

	load           *lab.Hammering
	asked, excused int
}

func (f *flow) udp() bool { return f.network == "udp" }

// held are connections that stay open between rounds.
type held struct {
	*flow
	conns *lab.Held
	count int
}

// allFlows returns the traffic of every client to every kind of frontend.
func (s *soak) allFlows() []*flow {
	var all []*flow
	add := func(what string, from *lab.Pod, port uint16, addrs []netip.Addr) {
		for _, a := range addrs {
			for _, network := range []string{"tcp", "udp"} {
				all = append(all, &flow{
					name: fmt.Sprintf("%s from %s to the %s %s", network, from.Name(), what, a),
					from: from, network: network, dst: rig.At(a, port), packet: from == s.outside, v6: a.Is6(),
				})
			}
		}
	}
	node := []netip.Addr{s.n1.Addr4(), s.n1.Addr6()}
	add("cluster IP", s.client, rig.ServicePort, rig.ClusterIPs(webNumber))
	add("cluster IP", s.host, rig.ServicePort, rig.ClusterIPs(webNumber))
	add("node port", s.client, rig.NodePortOf(webNumber), node)
	add("load-balancer IP", s.outside, rig.ServicePort, rig.BalancerIPs(webNumber))
	add("node port", s.outside, rig.NodePortOf(webNumber), node)
	for _, a := range rig.ClusterIPs(webNumber) {
		all = append(all, &flow{name: fmt.Sprintf("unconnected udp from client to %s", a), from: s.client, network: "udp",
			dst: rig.At(a, rig.ServicePort), v6: a.Is6(), unconnected: true})
	}
	return all
}

// answerWithin bounds an exchange on a busy machine: a slow answer is no failure of the
// node.
const answerWithin = 8 * time.Second

// pour starts new connections of all kinds.
func (s *soak) pour() {
	for _, f := range s.flows {
		f.load = f.from.StartHammer(f.network, f.dst, lab.HammerOptions{Duration: 10 * time.Minute, Rate: 8,
			Timeout: answerWithin, Unconnected: f.unconnected, Records: true})
	}
}

// await waits until every kind of traffic is answered.
func (s *soak) await(when string) {
	s.t.Helper()
	for _, f := range s.flows {
		rig.Eventually(s.t, when+", an answer: "+f.name, func() bool {
			return f.from.Request(f.network, f.dst, lab.RequestOptions{Unconnected: f.unconnected}).Err == nil
		})
	}
}

// judge stops the new connections. Failed ones must have overlapped with the fault.
func (s *soak) judge(n int, f fault, began, ended int64) {
	s.t.Helper()
	until := ended + int64(f.heals)
	for _, fl := range s.flows {
		sum, err := fl.load.Stop()
		s.check(err)
		fl.asked += sum.Done
		lost := 0
		for _, r := range sum.Records {
			switch {
			case r.Errno == 0:
			case f.costs != nil && f.costs(fl) && r.End >= began && r.Start <= until:
				fl.excused++
			default:
				if lost++; lost <= 3 {
					s.t.Errorf("round %d, %s: %s: %v, begun %v after the fault, of which the end was %v after it", n, f.name, fl.name,
						r.Errno, time.Duration(r.Start-began), time.Duration(ended-began))
				}
			}
		}
		if lost > 0 {
			s.t.Errorf("round %d, %s: %s: %d of %d lost", n, f.name, fl.name, lost, sum.Done)
		}
		if sum.Done == 0 {
			s.t.Errorf("round %d: %s: nothing was asked", n, fl.name)
		}
	}
}

func (s *soak) asked() (n int) {
	for _, f := range s.flows {
		n += f.asked
	}
	return n
}

func (s *soak) excused() (n int) {
	for _, f := range s.flows {
		n += f.excused
	}
	return n
}

// hold opens long connections.
func (s *soak) hold() {
	for _, f := range s.flows {
		if f.unconnected {
			continue
		}
		h := &held{flow: f, count: 4}
		s.held = append(s.held, h)
		s.open(h)
	}
}

func (s *soak) open(h *held) {
	s.t.Helper()
	conns, err := h.from.Hold(h.network, lab.HoldOptions{Count: h.count, Timeout: answerWithin, Tries: 2}, h.dst)
	s.check(err)
	if conns.First.Answered != h.count {
		s.t.Errorf("%s: %d of %d long connections begin: %s", h.name, conns.First.Answered, h.count, conns.First.FirstError)
	}
	h.conns = conns
}

// askHeld makes exchanges on the connections that are older than the fault.
func (s *soak) askHeld(n int, f fault) {
	s.t.Helper()
	for _, h := range s.held {
		sum, err := h.conns.Ask()
		s.check(err)
		s.heldAsked += h.count
		s.heldEnded += h.count - sum.Answered
		if sum.Answered == h.count && len(sum.Errors) == 0 {
			continue
		}
		if f.ends == nil || !f.ends(h.flow) {
			s.t.Errorf("round %d, %s: %s: of %d long connections %d answer: %v %s", n, f.name, h.name, h.count, sum.Answered,
				sum.Errors, sum.FirstError)
		}
		s.check(h.conns.Close(true))
		s.open(h)
	}
}

// release closes the long connections.
func (s *soak) release() {
	for _, h := range s.held {
		s.check(h.conns.Close(true))
	}
	s.held = nil
}
