// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

// connectedUDP are the kinds of connected UDP sockets.
var connectedUDP = ways[3:6]

// TestUDPChanges: what happens to UDP sockets when their service changes. It has each case
// of contract §7, and what must not happen besides. The cases share a node and its daemon,
// each with its own service.
func TestUDPChanges(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	for i, test := range []struct {
		name string
		run  func(t *testing.T, c *cluster, name string, n int)
	}{
		{"scaled to zero and back", scaledToZero},
		{"deleted", deleted},
		{"connected before the service was there", beforeService},
		{"endpoint removed", endpointRemoved},
		{"endpoint terminating but serving", endpointDraining},
		{"endpoint unready while another is ready", endpointUnready},
		{"connected to the pod itself", direct},
		{"endpoint with the address of a frontend", endpointIsFrontend},
		{"address of a frontend moved to another service", frontendMoved},
		{"address moved while its service serves on", addressMoved},
		{"port renamed", portRenamed},
	} {
		t.Run(test.name, func(t *testing.T) {
			sub := *c
			sub.t = t
			test.run(t, &sub, fmt.Sprintf("svc-%d", i), i+1)
		})
	}
}

// clients opens a connected socket of each kind in three network namespaces of the node,
// and returns each with its server.
func (c *cluster) clients(n int, pods ...*lab.Pod) map[*talker]string {
	c.t.Helper()
	all := map[*talker]string{}
	if len(pods) == 0 {
		pods = []*lab.Pod{c.client, c.host, c.web[2]}
	}
	for _, p := range pods {
		for _, w := range connectedUDP {
			k := w.openTo(c.t, p, rig.VIP(n, w.family))
			all[k] = k.ask(rig.VIP(n, w.family))
		}
	}
	return all
}

// scaledToZero: every socket is destroyed. Without endpoints, connect and sendto are
// refused. Afterwards everything works again, also on the earlier sockets.
func scaledToZero(t *testing.T, c *cluster, name string, n int) {
	c.apply(rig.Service(name, n), rig.SlicesOf(name, rig.Up(c.web[0], c.web[1])...))
	clients := c.clients(n)
	unconnected := udpWays[0].open(t, c.client)
	unconnected.askTo(rig.VIP(n, 4))
	start := time.Now()
	c.apply(rig.SlicesOf(name))
	for k := range clients {
		k.wantDestroyed()
	}
	t.Logf("%d sockets in 3 network namespaces were woken within %v of the file's change", len(clients), time.Since(start))
	for k := range clients {
		if err := k.Connect(rig.VIP(n, k.w.family)); !errors.Is(err, rig.Refusal(syscall.ECONNREFUSED)) {
			t.Errorf("%s: connect to a service without endpoints: %v", k.w, err)
		}
	}
	if err := unconnected.SendTo(rig.VIP(n, 4), line("x")); !errors.Is(err, rig.Refusal(syscall.ECONNREFUSED)) {
		t.Errorf("sendto a service without endpoints: %v", err)
	}
	c.apply(rig.SlicesOf(name, rig.Up(c.web[2])...))
	for k := range clients {
		if err := k.Connect(rig.VIP(n, k.w.family)); err != nil {
			t.Fatalf("%s: connect again: %v", k.w, err)
		}
		k.own = 0 // the kernel has chosen another port
		k.wantKept(rig.VIP(n, k.w.family), "web-2")
	}
	if got := unconnected.askTo(rig.VIP(n, 4)); got != "web-2" {
		t.Errorf("the unconnected socket is answered by %s, want web-2", got)
	}
}

// deleted: connected sockets are destroyed, as in scaledToZero. Datagrams of unconnected
// sockets are then sent untranslated: the address has no service.
func deleted(t *testing.T, c *cluster, name string, n int) {
	server := c.web[0].Serve("udp", 9999)
	c.apply(rig.Service(name, n), rig.SlicesOf(name, rig.UpAt(9999, c.web[0])...))
	clients := c.clients(n, c.client, c.host)
	unconnected := udpWays[0].open(t, c.client)
	unconnected.askTo(rig.VIP(n, 4))
	c.remove(name)
	for k := range clients {
		k.wantDestroyed()
	}
	before, _ := server.Count()
	if err := unconnected.SendTo(rig.VIP(n, 4), line("x")); err != nil {
		t.Errorf("sendto an address that is nobody's: %v", err)
	}
	if _, _, err := unconnected.Recv(50 * time.Millisecond); !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("the address of a deleted service: %v, want no answer", err)
	}
	if after, _ := server.Count(); after != before {
		t.Error("the deleted service's endpoint was asked")
	}
}

// beforeService: sockets connect to an address without a service, where no server answers.
// They are destroyed when a service gets the address, and only then.
func beforeService(t *testing.T, c *cluster, name string, n int) {
	var before []*talker
	for _, p := range []*lab.Pod{c.client, c.host} {
		for _, w := range connectedUDP {
			before = append(before, w.openTo(t, p, rig.VIP(n, w.family)))
		}
	}
	c.apply(rig.Service("unrelated", 90), rig.SlicesOf("unrelated", rig.Up(c.web[0])...))
	for _, k := range before {
		if woken, _ := k.woken(time.Millisecond); woken {
			t.Fatalf("%s: woken by a service that it has nothing to do with", k.w)
		}
	}
	c.apply(rig.Service(name, n), rig.SlicesOf(name, rig.Up(c.web[0])...))
	for _, k := range before {
		k.wantDestroyed()
		if err := k.Connect(rig.VIP(n, k.w.family)); err != nil {
			t.Fatalf("%s: %v", k.w, err)
		}
		k.wantKept(rig.VIP(n, k.w.family), "web-0")
	}
	c.remove("unrelated")
}

// endpointRemoved: the sockets of that endpoint are destroyed at once and in every network
// namespace, those of the others are not. A new connect reaches a remaining endpoint.
func endpointRemoved(t *testing.T, c *cluster, name string, n int) {
	c.apply(rig.Service(name, n), rig.SlicesOf(name, rig.Up(c.web[0], c.web[1])...))
	clients := c.clients(n)
	for i := 0; len(serversOf(clients)) < 2 && i < 20; i++ {
		for k, s := range c.clients(n) {
			clients[k] = s
		}
	}
	c.apply(rig.SlicesOf(name, rig.Up(c.web[1])...))
	for k, server := range clients {
		if server == "web-1" {
			k.wantKept(rig.VIP(n, k.w.family), server)
			continue
		}
		k.wantDestroyed()
		if err := k.Connect(rig.VIP(n, k.w.family)); err != nil {
			t.Fatalf("%s: %v", k.w, err)
		}
		k.own = 0
		k.wantKept(rig.VIP(n, k.w.family), "web-1")
	}
	if destroyed := c.d.Metrics()[`shunt_sockets_destroyed_total{protocol="UDP"}`]; destroyed == 0 {
		t.Error("no destroyed socket was counted")
	}
}

func serversOf(clients map[*talker]string) map[string]bool {
	all := map[string]bool{}
	for _, s := range clients {
		all[s] = true
	}
	return all
}

// endpointDraining: a terminating but serving endpoint keeps its flows, and gets no new
// ones.
func endpointDraining(t *testing.T, c *cluster, name string, n int) {
	c.apply(rig.Service(name, n), rig.SlicesOf(name, rig.Up(c.web[0])...))
	clients := c.clients(n)
	unconnected := udpWays[0].open(t, c.client)
	unconnected.askTo(rig.VIP(n, 4))
	c.apply(rig.SlicesOf(name, rig.Draining(c.web[0]), rig.Up(c.web[1])[0]))
	time.Sleep(quiet) // only time shows that nothing happens
	for k, server := range clients {
		k.wantKept(rig.VIP(n, k.w.family), server)
	}
	if got := unconnected.askTo(rig.VIP(n, 4)); got != "web-0" {
		t.Errorf("the flow of an unconnected socket went from web-0, which still serves, to %s", got)
	}
	for _, w := range ways {
		w.wantServers(t, c.client, rig.VIP(n, w.family), c.web[1])
	}
	c.apply(rig.SlicesOf(name, rig.Up(c.web[1])...))
	for k := range clients {
		k.wantDestroyed()
	}
	if got := unconnected.askTo(rig.VIP(n, 4)); got != "web-1" {
		t.Errorf("the unconnected socket is answered by %s, want web-1", got)
	}
}

func endpointUnready(t *testing.T, c *cluster, name string, n int) {
	c.apply(rig.Service(name, n), rig.SlicesOf(name, rig.Up(c.web[0])...))
	clients := c.clients(n)
	c.apply(rig.SlicesOf(name, rig.Unready(c.web[0]), rig.Up(c.web[1])[0]))
	for k := range clients {
		k.wantDestroyed()
	}
	for _, w := range ways {
		w.wantServers(t, c.client, rig.VIP(n, w.family), c.web[1])
	}
}

// direct: a socket connected to the pod's own address is no client of the service.
func direct(t *testing.T, c *cluster, name string, n int) {
	c.apply(rig.Service(name, n), rig.SlicesOf(name, rig.Up(c.web[1])...))
	var clients []*talker
	for _, w := range connectedUDP {
		pod := rig.At(w.of(c.web[1].Addrs()), rig.ServerPort)
		k := w.openTo(t, c.client, pod)
		clients = append(clients, k)
		// A socket that was connected to the service before, and is connected to the pod
		// now.
		again := w.openTo(t, c.client, rig.VIP(n, w.family))
		again.ask(rig.VIP(n, w.family))
		if err := again.Connect(pod); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, again)
	}
	witness := c.clients(n)
	c.remove(name)
	for k := range witness {
		k.wantDestroyed() // the sweep has run
	}
	for _, k := range clients {
		k.wantKept(rig.At(k.w.of(c.web[1].Addrs()), rig.ServerPort), "web-1")
	}
}

// endpointIsFrontend: a process of the node serves at the node's own address and port, which
// are also an external IP frontend of the service. Sockets of that frontend are translated to
// the same address. They are not destroyed when another service is added.
func endpointIsFrontend(t *testing.T, c *cluster, name string, n int) {
	c.host.Serve("udp", rig.ServicePort)
	svc := rig.Service(name, n)
	svc.Spec.ExternalIPs = rig.Texts([]netip.Addr{c.n1.Addr4(), c.n1.Addr6()})
	c.apply(svc, rig.SlicesOf(name, rig.UpAt(rig.ServicePort, c.host)...))
	var clients []*talker
	var asked []netip.AddrPort
	for _, w := range connectedUDP {
		for _, dst := range []netip.AddrPort{rig.VIP(n, w.family), rig.At(w.of(c.host.Addrs()), rig.ServicePort)} {
			k := w.openTo(t, c.client, dst)
			k.ask(dst)
			clients, asked = append(clients, k), append(asked, dst)
		}
	}
	nobody := connectedUDP[0].openTo(t, c.client, rig.VIP(99, 4))
	c.apply(rig.Service("late", 99), rig.SlicesOf("late", rig.Up(c.web[0])...))
	nobody.wantDestroyed() // the sweep has run
	for i, k := range clients {
		k.wantKept(asked[i], "host")
	}
	c.remove("late", name)
	for _, k := range clients {
		k.wantDestroyed()
	}
}

// TestOtherNodes: a daemon does not destroy sockets of other nodes, which it can see because
// all nodes of the lab share one kernel: neither sockets that another daemon translated to the
// same endpoint, nor untranslated sockets to an address that becomes a frontend here.
func TestOtherNodes(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	far := c.n2.Pod("far")
	m2 := rig.NewManifests(t, t.TempDir())
	m2.Put(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...))
	m2.Write()
	d2 := rig.StartDaemon(t, c.n2, m2.Path)
	m2.Settle(d2)
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...))

	var kept []*talker
	for _, w := range connectedUDP {
		k := w.openTo(t, far, rig.VIP(1, w.family))
		k.ask(rig.VIP(1, w.family))
		kept = append(kept, k)
	}
	nobody := connectedUDP[0].openTo(t, far, rig.VIP(2, 4))
	clients := c.clients(1)
	c.apply(rig.SlicesOf("web"), rig.Service("new", 2), rig.SlicesOf("new", rig.Up(c.web[1])...))
	for k := range clients {
		k.wantDestroyed()
	}
	before := connectedUDP[0].openTo(t, c.client, netip.MustParseAddrPort("10.96.0.3:80"))
	c.apply(rig.Service("newer", 3), rig.SlicesOf("newer", rig.Up(c.web[1])...))
	before.wantDestroyed() // the second kind of sweep has run
	for _, k := range kept {
		k.wantKept(rig.VIP(1, k.w.family), "web-0")
	}
	if woken, _ := nobody.woken(time.Millisecond); woken {
		t.Error("a socket of another node was destroyed: the address is a service's here, and nobody's there")
	}
	t.Run("each its own services", func(t *testing.T) {
		m2.Put(rig.SlicesOf("web", rig.Up(c.web[1])...))
		m2.Write()
		m2.Settle(d2)
		c.apply(rig.SlicesOf("web", rig.Up(c.web[2])...))
		for _, w := range ways {
			w.wantServers(t, far, rig.VIP(1, w.family), c.web[1])
			w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[2])
		}
		d2.Stop()
		if _, stderr, code := rig.Shunt(t, "cleanup", "--bpffs-root", d2.Root); code != 0 {
			t.Fatalf("cleanup: %d, %s", code, stderr)
		}
		for _, w := range ways {
			w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[2])
		}
	})
}
