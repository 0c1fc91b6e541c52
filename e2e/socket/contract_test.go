// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"shunt/e2e/contract"
	"shunt/e2e/rig"
	"shunt/lab"
)

// TestContract runs the whole table of e2e/contract with real sockets and packets: each
// client asks each frontend in each way. Every endpoint that may answer does, no other
// does, and it sees the client's address as the table says. Or the client gets the verdict,
// which is counted. Package e2e/contract checks the maps against the same table.
func TestContract(t *testing.T) {
	t.Parallel()
	w := newContractWorld(t)
	cases, err := contract.Cases()
	if err != nil {
		t.Fatal(err)
	}
	ways := ways
	if testing.Short() { // each hook, and each answer from outside, once
		ways = []way{ways[0], ways[4], ways[6], ways[8]}
	}
	for _, client := range contract.Clients {
		for _, frontend := range contract.Frontends {
			t.Run(fmt.Sprintf("%s/%s", client, frontend), func(t *testing.T) {
				for _, c := range cases {
					if c.Client != client || c.Frontend != frontend {
						continue
					}
					for _, way := range ways {
						w.check(t, c, way)
					}
				}
			})
		}
	}
}

// contractWorld is the table's objects on two nodes, with its servers and clients.
type contractWorld struct {
	*cluster
	servers map[string]*lab.Pod
	clients map[contract.Client]*lab.Pod
}

func newContractWorld(t *testing.T) *contractWorld {
	t.Helper()
	l := lab.ForTest(t)
	w := &contractWorld{cluster: &cluster{Lab: l, t: t, n1: l.Node("n1"), n2: l.Node("n2")}, servers: map[string]*lab.Pod{}}
	places := map[string]contract.Server{}
	for name, here := range contract.ServerNames() {
		node := w.n2
		if here {
			node = w.n1
		}
		p := node.Pod(name)
		p.Serve("tcp", contract.ServerPort)
		p.Serve("udp", contract.ServerPort)
		w.servers[name], places[name] = p, contract.Server{Node: node.Name(), Addrs: p.Addrs()}
	}
	w.client, w.host = w.n1.Pod("client"), w.n1.HostPod("host")
	outside, router := l.Client("outside"), w.n2.HostPod("router")
	for _, r := range []netip.Prefix{lab.ServiceCIDR4, lab.ServiceCIDR6, lab.ExternalCIDR4, lab.ExternalCIDR6} {
		outside.RouteVia(r, w.n1)
		router.RouteVia(r, w.n1)
	}
	w.clients = map[contract.Client]*lab.Pod{contract.Pod: w.client, contract.Node: w.host,
		contract.Neighbour: w.n2.Pod("neighbour"), contract.Outside: outside}
	w.m = rig.NewManifests(t, l.Dir())
	w.m.Put(contract.Objects(places)...)
	w.m.Write()
	w.d = rig.StartDaemon(t, w.n1, w.m.Path, "--cluster-cidr", fmt.Sprintf("%s,%s", lab.ClusterCIDR4, lab.ClusterCIDR6),
		"--service-cidr", fmt.Sprintf("%s,%s", lab.ServiceCIDR4, lab.ServiceCIDR6))
	w.m.Settle(w.d)
	return w
}

// check runs a case in one way.
func (w *contractWorld) check(t *testing.T, c contract.Case, way way) {
	t.Helper()
	from := w.clients[c.Client]
	dst := c.Dst(way.family, []netip.Addr{w.n1.Addr4(), w.n1.Addr6()})
	if c.Verdict() {
		w.checkVerdict(t, c, way, from, dst)
		return
	}
	want := strings.Split(c.Want, ",")
	missing := slices.Clone(want)
	// The chance that one of two servers is not among 100 random choices is 1 in 2^99.
	for i := 0; i < 100 && (len(missing) > 0 || i < 2*len(want)); i++ {
		a := way.ask(from, dst)
		server, err := w.seen(c, way, a, from, dst)
		if err != nil {
			t.Fatalf("%s %s: %v: %v", c, way, dst, err)
		}
		if !slices.Contains(want, server) {
			t.Fatalf("%s %s: %v: %s answers, want %s", c, way, dst, server, c.Want)
		}
		missing = slices.DeleteFunc(missing, func(s string) bool { return s == server })
	}
	if len(missing) > 0 {
		t.Errorf("%s %s: %v: never answered: %v", c, way, dst, missing)
	}
}

// checkVerdict makes one exchange and checks the verdict and its counter. On the node, the
// system call fails for a refusal and for a drop. Other clients learn of a refusal by a
// packet, which the kernel does not report to an unconnected UDP socket, and get nothing
// for a drop.
func (w *contractWorld) checkVerdict(t *testing.T, c contract.Case, way way, from *lab.Pod, dst netip.AddrPort) {
	t.Helper()
	errno, reason := syscall.ECONNREFUSED, "no_endpoint"
	if c.Want == contract.Dropped {
		errno, reason = syscall.EHOSTUNREACH, "no_local_endpoint"
	}
	before := w.d.Reasons()[reason]
	switch {
	case c.Client.OnNode():
		way.wantErrno(t, from, dst, errno)
	case c.Want == contract.Refused && !way.sendto:
		if a := way.ask(from, dst); !errors.Is(a.Err, errno) {
			t.Errorf("%s %s: %v: %v (answered by %q), want %v", c, way, dst, a.Err, a.Server, errno)
		}
	default:
		a := from.Request(way.network, dst, lab.RequestOptions{Unconnected: way.sendto, Timeout: 100 * time.Millisecond})
		if !errors.Is(a.Err, syscall.ETIMEDOUT) {
			t.Errorf("%s %s: %v: %v (answered by %q), want silence", c, way, dst, a.Err, a.Server)
		}
	}
	n := w.d.Reasons()[reason] - before
	if c.Client.OnNode() && n != 1 || n == 0 { // a packet may be retransmitted
		t.Errorf("%s %s: counted %d times as %s, want once", c, way, n, reason)
	}
}

// seen returns the server that answered, in the table's notation: with a mark if it saw the
// node's address instead of the client's. It returns an error if anything else shows the
// translation.
func (w *contractWorld) seen(c contract.Case, way way, a lab.Answer, from *lab.Pod, dst netip.AddrPort) (string, error) {
	if c.Client.OnNode() {
		return a.Server, way.checkAnswer(a, dst) // it checks that the server saw the client's own address
	}
	if a.Err != nil {
		return "", a.Err
	}
	if !way.sendto && a.Peer != way.asked(dst) || strings.HasPrefix(way.network, "udp") && a.From != way.asked(dst) {
		return "", fmt.Errorf("getpeername gives %v, the answer came from %v, want %v", a.Peer, a.From, way.asked(dst))
	}
	node := way.of([]netip.Addr{w.n1.Addr4(), w.n1.Addr6()})
	switch a.ClientSeen.Addr() {
	case way.of(from.Addrs()):
		return a.Server, nil // from another port if the client's last flow to that server had this one
	case node:
		return a.Server + contract.SeenAsNode, nil
	}
	return "", fmt.Errorf("%s saw %v, which is neither the client nor the node", a.Server, a.ClientSeen)
}
