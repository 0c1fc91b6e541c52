// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

// cluster is used by most tests: two nodes, of which the first runs a daemon, pods that
// serve, and clients.
//
//	n1: web-0, web-2, client, host (the node's own processes), shunt
//	n2: web-1
type cluster struct {
	*lab.Lab
	t      *testing.T
	n1, n2 *lab.Node
	web    []*lab.Pod
	client *lab.Pod
	host   *lab.Pod
	m      *rig.Manifests
	d      *rig.Daemon
}

// newCluster makes the lab. The daemon's file holds only the given objects.
func newCluster(t *testing.T, objects ...any) *cluster {
	t.Helper()
	l := lab.ForTest(t)
	c := &cluster{Lab: l, t: t, n1: l.Node("n1"), n2: l.Node("n2")}
	c.web = []*lab.Pod{c.n1.Pod("web-0"), c.n2.Pod("web-1"), c.n1.Pod("web-2")}
	for _, p := range c.web {
		p.Serve("tcp", rig.ServerPort)
		p.Serve("udp", rig.ServerPort)
	}
	c.client, c.host = c.n1.Pod("client"), c.n1.HostPod("host")
	c.m = rig.NewManifests(t, l.Dir())
	c.m.Put(objects...)
	c.m.Write()
	return c
}

// startCluster makes the lab and starts the daemon.
func startCluster(t *testing.T, flags ...string) *cluster {
	t.Helper()
	c := newCluster(t)
	c.d = rig.StartDaemon(t, c.n1, c.m.Path, flags...)
	return c
}

// apply writes objects and waits until they are in the maps.
func (c *cluster) apply(objects ...any) {
	c.t.Helper()
	c.m.Put(objects...)
	c.m.Write()
	c.m.Settle(c.d)
}

// remove removes services and their slices, and waits until the maps do not have them any
// more.
func (c *cluster) remove(services ...string) {
	c.t.Helper()
	for _, s := range services {
		c.m.RemoveService(s)
	}
	c.m.Write()
	c.m.Settle(c.d)
}

// way is a method to reach an address: a protocol and a kind of socket.
type way struct {
	network string // named as in the lab
	family  int    // of the address: 4 or 6
	sendto  bool   // UDP without connect
}

// ways are TCP, connected UDP and unconnected UDP, each over IPv4, over IPv6, and from an
// IPv6 socket to an IPv4 address.
var ways = []way{
	{"tcp4", 4, false}, {"tcp6", 6, false}, {"tcp6", 4, false},
	{"udp4", 4, false}, {"udp6", 6, false}, {"udp6", 4, false},
	{"udp4", 4, true}, {"udp6", 6, true}, {"udp6", 4, true},
}

func (w way) String() string {
	s := w.network
	if w.family == 4 && strings.HasSuffix(w.network, "6") {
		s += "-mapped"
	}
	if w.sendto {
		s += "-sendto"
	}
	return s
}

// of returns the address of the way's family.
func (w way) of(addrs []netip.Addr) netip.Addr { return addrs[w.family/5] }

// asked returns an address as a socket of this way returns it.
func (w way) asked(a netip.AddrPort) netip.AddrPort {
	if strings.HasSuffix(w.network, "6") {
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
	}
	return a
}

func (w way) ask(from *lab.Pod, dst netip.AddrPort) lab.Answer {
	return from.Request(w.network, dst, lab.RequestOptions{Unconnected: w.sendto})
}

// checkAnswer returns an error for a wrong answer from behind a frontend: the client must
// see only the frontend, and the server only the client's own address.
func (w way) checkAnswer(a lab.Answer, dst netip.AddrPort) error {
	if a.Err != nil {
		return a.Err
	}
	if !w.sendto && a.Peer != w.asked(dst) {
		return fmt.Errorf("getpeername gives %v, want %v", a.Peer, w.asked(dst))
	}
	if strings.HasPrefix(w.network, "udp") && a.From != w.asked(dst) {
		return fmt.Errorf("the answer came from %v, want %v", a.From, w.asked(dst))
	}
	if a.ClientSeen.Port() != a.Local.Port() || !w.sendto && a.ClientSeen.Addr() != a.Local.Addr().Unmap() {
		return fmt.Errorf("the server saw %v, the client is %v", a.ClientSeen, a.Local)
	}
	return nil
}

// wantServers makes exchanges until all of the servers have answered, and fails if another
// one answers.
func (w way) wantServers(t *testing.T, from *lab.Pod, dst netip.AddrPort, servers ...*lab.Pod) {
	t.Helper()
	missing := map[string]bool{}
	for _, p := range servers {
		missing[p.Name()] = true
	}
	known := len(missing)
	// The chance that one of three servers is not among 100 random choices is 3·(2/3)^100,
	// about 1 in 10^17.
	for i := 0; i < 100 && (len(missing) > 0 || i < 2*known); i++ {
		a := w.ask(from, dst)
		if err := w.checkAnswer(a, dst); err != nil {
			t.Fatalf("%s asks %v: %v", from.Name(), dst, err)
		}
		if !contains(servers, a.Server) {
			t.Fatalf("%s asks %v: %s answers, want one of %v", from.Name(), dst, a.Server, names(servers))
		}
		delete(missing, a.Server)
	}
	if len(missing) > 0 {
		t.Fatalf("%s asks %v: never answered: %v", from.Name(), dst, missing)
	}
}

// wantErrno makes one exchange, which the hook must refuse at once with this errno.
func (w way) wantErrno(t *testing.T, from *lab.Pod, dst netip.AddrPort, want syscall.Errno) {
	t.Helper()
	want = rig.Refusal(want)
	a := w.ask(from, dst)
	if !errors.Is(a.Err, want) {
		t.Errorf("%s asks %v: %v (answered by %q), want %v", from.Name(), dst, a.Err, a.Server, want)
	}
	if a.Total > 2*time.Second { // an unanswered connection takes five
		t.Errorf("%s asks %v: %v after %v, want it at once", from.Name(), dst, a.Err, a.Total)
	}
	var failed *lab.Error
	op := "connect"
	if w.sendto {
		op = "send"
	}
	if errors.As(a.Err, &failed) && failed.Op != op {
		t.Errorf("%s asks %v: %s failed, want %s to", from.Name(), dst, failed.Op, op)
	}
}

func names(pods []*lab.Pod) []string {
	var all []string
	for _, p := range pods {
		all = append(all, p.Name())
	}
	return all
}

func contains(pods []*lab.Pod, name string) bool {
	for _, p := range pods {
		if p.Name() == name {
			return true
		}
	}
	return false
}
