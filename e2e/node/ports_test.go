// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

// fewPorts restricts the daemon of the first node, which must not have started, to the SNAT
// ports 1024 to 2099, and returns their number.
func (c *cluster) fewPorts() (room int) {
	c.t.Helper()
	err := c.n1.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("2100 65535"), 0o644)
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return 2100 - 1024
}

// TestSNATPortsOfSockets: no flow gets a SNAT port on which a process of the node serves.
// Otherwise the process and the flow would receive each other's packets.
func TestSNATPortsOfSockets(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Network{})
	room := c.fewPorts()
	taken := map[uint16]bool{}
	for i := 0; i < room; i += 4 {
		port := uint16(1024 + i)
		taken[port] = true
		serve(port, c.hostNear)
	}
	c.start()
	c.backendServices()
	eachWay(func(network string, family int) {
		dst := c.nodePortAt(2, family)
		// One of four ports is in use: the chance that none of these flows would get it is
		// 1 in 10^9.
		for range 75 {
			a := ask(c.outside, network, dst, 0)
			if err := checkAnswer(a, network, dst, c.far, nodeAddrs(c.n1)[family]); err != nil {
				t.Fatal(err)
			}
			if taken[a.ClientSeen.Port()] {
				t.Fatalf("%s: the backend saw %v, where a process of the node serves", network, a.ClientSeen)
			}
		}
	})
}

// TestPortsExhausted: a backend of another node takes as many connections as there are SNAT
// ports for it. Further ones are dropped and counted, and clients of other backends are not
// affected. Closed connections make room.
func TestPortsExhausted(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Network{})
	room := c.fewPorts()
	c.start()
	serve(7000, c.far)
	c.apply(
		rig.Service("full", 1, rig.Everywhere(1)), rig.SlicesOf("full", rig.Up(c.far)...),
		rig.Service("other", 2, rig.Everywhere(2)), rig.SlicesOf("other", rig.UpAt(7000, c.far)...),
		rig.Service("here", 3, rig.Everywhere(3)), rig.SlicesOf("here", rig.Up(c.near)...))
	for family := range families {
		before := c.d.Reasons()["ports_exhausted"]
		h, err := c.outside.Hold("tcp", lab.HoldOptions{Count: room + 100, FirstPort: 20000, Concurrency: 64, Timeout: 2500 * time.Millisecond}, c.nodePortAt(1, family))
		if err != nil {
			t.Fatal(err)
		}
		if n := h.First.Answered; n > room || n < room*9/10 {
			t.Errorf("%d connections at once, want %d or nearly as many: %+v", n, room, h.First)
		}
		if c.d.Reasons()["ports_exhausted"] == before {
			t.Error("nothing was counted as without a port")
		}
		others := hold(t, c.outside, "tcp", lab.HoldOptions{Count: room / 2}, c.nodePortAt(2, family), c.nodePortAt(3, family))
		askAll(t, "of other services", others, room/2*2)
		held := h.First.Answered
		askAll(t, "of the full service", h, held)
		if err := h.Close(true); err != nil {
			t.Error(err)
		}
		again := hold(t, c.outside, "tcp", lab.HoldOptions{Count: room / 2, FirstPort: 62000}, c.nodePortAt(1, family))
		askAll(t, "after the others were closed", again, room/2)
		for _, h := range []*lab.Held{again, others} {
			if err := h.Close(true); err != nil {
				t.Error(err)
			}
		}
	}
}

// masqueradedPorts lets netfilter choose among the daemon's SNAT ports.
const masqueradedPorts = `*nat
-A POSTROUTING -s %%pods -d %v -p tcp -j MASQUERADE --to-ports 1024-2099 --random
-A POSTROUTING -s %%pods -d %v -p udp -j MASQUERADE --to-ports 1024-2099 --random
COMMIT
`

// TestMasqueradedPorts: netfilter and the daemon choose SNAT ports towards one backend from
// the same range, independently. No flow receives another flow's packets, whichever of the two
// began first. Without remapping, about three of eight ports would be used twice here.
func TestMasqueradedPorts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Network{})
	c.fewPorts()
	c.start()
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.far)...))
	p := newPlace(t, c)
	for family := range families {
		far := c.far.Addrs()[family]
		p.run(t, p.fill(fmt.Sprintf(masqueradedPorts, far, far), family), tools[0].restore[family])
	}
	eachWay(func(network string, family int) {
		const count = 200
		far, service := rig.At(c.far.Addrs()[family], rig.ServerPort), c.nodePortAt(1, family)
		opts := lab.HoldOptions{Count: count, Tries: 3, Concurrency: 32}
		var all []*lab.Held
		for range 2 {
			for _, ways := range []struct {
				from *lab.Pod
				to   netip.AddrPort
			}{{c.outside, service}, {c.inside, far}} {
				h := hold(t, ways.from, network, opts, ways.to)
				if seen := h.First.Clients[nodeAddrs(c.n1)[family]]; seen != count {
					t.Errorf("%s/%s: the server saw the node as the client of %d, want %d: %v", network, families[family], seen, count, h.First.Clients)
				}
				if all = append(all, h); t.Failed() {
					t.FailNow() // each unanswered connection waits for its timeout
				}
			}
		}
		for range 2 {
			for i, h := range all {
				askAll(t, fmt.Sprintf("%s/%s, connections %d", network, families[family], i), h, count)
			}
		}
		for _, h := range all {
			if err := h.Close(true); err != nil {
				t.Error(err)
			}
		}
	})
}
