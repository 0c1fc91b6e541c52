// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"shunt/e2e/rig"
	"shunt/lab"
	"shunt/maps"
)

// traffic is a client that connects again and again until it is stopped.
type traffic struct {
	t    *testing.T
	name string
	*lab.Hammering
}

// startTraffic starts clients of service n over TCP, connected UDP and unconnected UDP, in
// both families, from a pod and from the node.
func startTraffic(t *testing.T, c *cluster, n int) []traffic {
	var all []traffic
	for i, w := range []way{ways[0], ways[1], ways[3], ways[7]} {
		from := []*lab.Pod{c.client, c.host}[i%2]
		opts := lab.HammerOptions{Count: 1 << 20, Rate: 300, Unconnected: w.sendto}
		all = append(all, traffic{t, from.Name() + " " + w.String(), from.StartHammer(w.network, rig.VIP(n, w.family), opts)})
	}
	return all
}

// wantAnswered stops the traffic. Every connection must have been answered by one of the
// servers.
func wantAnswered(t *testing.T, all []traffic, servers ...*lab.Pod) {
	t.Helper()
	for _, h := range all {
		s, err := h.Stop()
		if err != nil {
			t.Fatal(err)
		}
		if s.Done == 0 || s.Answered != s.Done {
			t.Errorf("%s: %d of %d answered, errors %v (%s)", h.name, s.Answered, s.Done, s.Errors, s.FirstError)
		}
		for server := range s.Servers {
			if !contains(servers, server) {
				t.Errorf("%s: %s answered, which it should not have", h.name, server)
			}
		}
	}
}

// progress waits until each kind of traffic has made some more connections.
func (c *cluster) progress() {
	c.t.Helper()
	count := func() (n uint64) {
		r := c.d.Reasons()
		return r["translated"] + r["affinity_kept"]
	}
	before := count()
	rig.Eventually(c.t, "connections go on", func() bool { return count() >= before+200 })
}

// writesAfterStart returns how many entries the first reconcile of a daemon wrote.
func writesAfterStart(t *testing.T, d *rig.Daemon) float64 {
	t.Helper()
	var fields map[string]any
	rig.Eventually(t, "the first reconcile is in the log", func() bool {
		fields = d.Log.Find("reconciled")
		return fields != nil
	})
	return fields["writes"].(float64)
}

// TestKill kills the daemon under traffic and starts it again: no connection fails, and
// unchanged entries are not written again.
func TestKill(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	for i := 1; i <= 20; i++ {
		name := fmt.Sprintf("web-%d", i)
		c.m.Put(rig.Service(name, i, rig.Everywhere(i)), rig.SlicesOf(name, rig.Up(c.web[0], c.web[1])...))
	}
	c.apply()
	clients := c.clients(1)
	traffic := startTraffic(t, c, 1)
	before := c.d.Dump().Text()
	for round := range 3 {
		c.progress()
		c.d.Kill()
		c.progress() // without a daemon
		c.d.Start()
		if n := writesAfterStart(t, c.d); n != 0 {
			t.Errorf("round %d: %v writes though nothing has changed", round, n)
		}
		started := c.d.Log.Find("started")
		if _, there := started["revision"].(string); !there || started["version"] != "devel" { // go test sets neither
			t.Errorf("round %d: started version %v, revision %v", round, started["version"], started["revision"])
		}
		if n := started["adopted_services"].(float64); n != 81 { // 20 services with two ports in two families, and the mark service
			t.Errorf("round %d: adopted %v services, want 81", round, n)
		}
		metrics := c.d.Metrics()
		for _, kind := range []string{"frontends", "slots", "backends", "names", "node_addrs"} {
			if n := metrics[fmt.Sprintf("shunt_map_writes_total{kind=%q}", kind)]; n != 0 {
				t.Errorf("round %d: metrics count %v writes of %s", round, n, kind)
			}
		}
	}
	wantAnswered(t, traffic, c.web[0], c.web[1])
	if after := c.d.Dump().Text(); after != before {
		t.Errorf("the maps held\n%s\nand hold now\n%s", before, after)
	}
	for k, server := range clients {
		k.wantKept(rig.VIP(1, k.w.family), server)
	}
}

// TestChangesWhileAway: changes made while no daemon ran are in effect when the next one is
// healthy, also for sockets that were connected before and meanwhile.
func TestChangesWhileAway(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...), rig.Service("old", 2), rig.SlicesOf("old", rig.Up(c.web[0])...))
	clients, ofOld := c.clients(1), c.clients(2, c.client)
	c.d.Kill()
	meanwhile := c.clients(1)
	nobody := connectedUDP[0].openTo(t, c.client, rig.VIP(3, 4))
	c.m.Put(rig.SlicesOf("web", rig.Up(c.web[1])...), rig.Service("new", 3), rig.SlicesOf("new", rig.Up(c.web[2])...))
	c.m.RemoveService("old")
	c.m.Write()
	for _, w := range ways {
		w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[0]) // no daemon has applied the change
	}
	c.d.Start()
	c.m.Settle(c.d)
	for _, w := range ways {
		w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[1])
		w.wantServers(t, c.host, rig.VIP(3, w.family), c.web[2])
	}
	for _, all := range []map[*talker]string{clients, meanwhile, ofOld} {
		for k := range all {
			k.wantDestroyed()
		}
	}
	nobody.wantDestroyed()
	if n := countOf(c.d.Dump(), "old"); n != 0 {
		t.Errorf("%d frontends of the service that was deleted meanwhile are left", n)
	}
}

// countOf returns the number of a service's frontends in the maps.
func countOf(d *maps.Dump, service string) (n int) {
	for _, svc := range d.Frontends {
		if d.Names[svc.Id].Name == service {
			n++
		}
	}
	return n
}

// TestStop: SIGTERM ends the daemon with success and leaves everything in effect.
func TestStop(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0], c.web[1])...), rig.Service("empty", 2), rig.SlicesOf("empty"))
	clients := c.clients(1)
	c.d.Stop()
	if c.d.Log.Find("stopped; what was programmed stays in effect") == nil {
		t.Errorf("no word of it in the log:\n%s", c.d.Log)
	}
	for _, w := range ways {
		w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[0], c.web[1])
		w.wantErrno(t, c.client, rig.VIP(2, w.family), syscall.ECONNREFUSED)
	}
	for k, server := range clients {
		k.wantKept(rig.VIP(1, k.w.family), server)
	}
}

// TestSecondDaemon: a second daemon with the same directory refuses to start, reports why,
// and disturbs nothing.
func TestSecondDaemon(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...))
	before := c.d.Dump().Text()
	_, stderr, code := rig.Shunt(t, "run", "--manifests", c.m.Path, "--node-name", "n1", "--cgroup-root", c.n1.Cgroup(),
		"--bpffs-root", c.d.Root, "--healthz-bind-address=", "--metrics-bind-address=", "--probe-bind-address=")
	if code != 1 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "another shunt daemon is at work with "+c.d.Root) {
		t.Errorf("exit code %d, said:\n%s", code, stderr)
	}
	if after := c.d.Dump().Text(); after != before {
		t.Errorf("the maps held\n%s\nand hold now\n%s", before, after)
	}
	c.apply(rig.SlicesOf("web", rig.Up(c.web[1])...))
	for _, w := range ways {
		w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[1])
	}
}

// TestResize: a daemon that starts with other map sizes replaces the maps, by larger or
// smaller ones, under traffic, and carries over the flows and affinity of sockets and
// clients.
func TestResize(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.web[0], c.web[1])...),
		rig.Service("sticky", 2, rig.WithAffinity(3600)), rig.SlicesOf("sticky", rig.Up(c.web...)...))
	sticky := ways[0].stuck(t, c.client, rig.VIP(2, 4))
	clients := c.clients(1)
	var tcp []*talker
	for _, w := range ways[:3] {
		k := w.openTo(t, c.client, rig.VIP(1, w.family))
		k.ask(rig.VIP(1, w.family))
		tcp = append(tcp, k)
	}
	unconnected := udpWays[0].open(t, c.client)
	server := unconnected.askTo(rig.VIP(1, 4))
	before := c.d.Dump().Text()
	traffic := startTraffic(t, c, 1)
	for _, size := range []int{2048, 512} {
		c.progress()
		c.d.Stop()
		c.d.Start("--services-map-size", fmt.Sprint(size), "--backends-map-size", fmt.Sprint(size),
			"--slots-map-size", fmt.Sprint(size), "--affinity-map-size", fmt.Sprint(size))
		if c.d.Log.Find("the maps of the daemon before are replaced; they serve until the new ones are filled") == nil {
			t.Errorf("%d: no word of it in the log:\n%s", size, c.d.Log.Tail(20))
		}
		if after := c.d.Dump().Text(); after != before {
			t.Errorf("%d: the maps held\n%s\nand hold now\n%s", size, before, after)
		}
		c.progress()
	}
	wantAnswered(t, traffic, c.web[0], c.web[1])
	for k, server := range clients {
		k.wantKept(rig.VIP(1, k.w.family), server)
	}
	for _, k := range tcp {
		k.ask(rig.VIP(1, k.w.family))
		k.wantPeer(rig.VIP(1, k.w.family))
	}
	if got := unconnected.askTo(rig.VIP(1, 4)); got != server {
		t.Errorf("the flow of an unconnected socket went from %s to %s", server, got)
	}
	if got := ways[0].stuck(t, c.client, rig.VIP(2, 4)); got != sticky {
		t.Errorf("a client with session affinity went from %s to %s", sticky, got)
	}
	// The sockets' flows still name the backends: the sweep finds them.
	c.apply(rig.SlicesOf("web", rig.Up(c.web[2])...))
	for k := range clients {
		k.wantDestroyed()
	}
}
