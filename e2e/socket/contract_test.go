package socket_test

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"shunt/e2e/contract"
	"shunt/e2e/lab"
)

// TestContract goes through the whole table of e2e/contract with real sockets: each
// client asks each frontend in each way, and hears from each endpoint that may
// answer and from no other, which sees the client as it should; or it gets the
// verdict, which is counted. The table holds for the maps, too (e2e/contract).
func TestContract(t *testing.T) {
	t.Parallel()
	w := newContractWorld(t)
	cases, err := contract.Cases()
	if err != nil {
		t.Fatal(err)
	}
	for _, client := range []contract.Client{contract.Pod, contract.Node} {
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
	w.clients = map[contract.Client]*lab.Pod{contract.Pod: w.client, contract.Node: w.host}
	w.m = newManifests(t, l.Dir())
	w.m.put(contract.Objects(places)...)
	w.m.write()
	w.d = startDaemon(t, w.n1, w.m.path)
	w.m.settle(w.d)
	return w
}

// check asks a case in one way.
func (w *contractWorld) check(t *testing.T, c contract.Case, way way) {
	t.Helper()
	from := w.clients[c.Client]
	dst := c.Dst(way.family, []netip.Addr{w.n1.Addr4(), w.n1.Addr6()})
	if c.Verdict() {
		errno, reason := syscall.ECONNREFUSED, "no_endpoint"
		if c.Want == contract.Dropped {
			errno, reason = syscall.EHOSTUNREACH, "no_local_endpoint"
		}
		before := w.d.reasons()[reason]
		way.wantErrno(t, from, dst, errno)
		if n := w.d.reasons()[reason] - before; n != 1 {
			t.Errorf("%s %s: counted %d times as %s, want once", c, way, n, reason)
		}
		return
	}
	want := c.Servers()
	missing := slices.Clone(want)
	// That one of two servers is not among 100 random choices: 1 in 2^99.
	for i := 0; i < 100 && (len(missing) > 0 || i < 2*len(want)); i++ {
		a := way.ask(from, dst)
		if err := way.checkAnswer(a, dst); err != nil { // that the server saw the client's own address is in it
			t.Fatalf("%s %s: %v: %v", c, way, dst, err)
		}
		if !slices.Contains(want, a.Server) {
			t.Fatalf("%s %s: %v: %s answers, want %s", c, way, dst, a.Server, c.Want)
		}
		missing = slices.DeleteFunc(missing, func(s string) bool { return s == a.Server })
	}
	if len(missing) > 0 {
		t.Errorf("%s %s: %v: never answered: %v", c, way, dst, missing)
	}
}
