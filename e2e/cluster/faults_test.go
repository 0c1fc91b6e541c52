// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/tools/clientcmd"

	"shunt/lab"
)

// faulty is a service whose endpoints the fault tests change, and a client that connects to
// it all the time.
type faulty struct {
	*world
	root string // of the daemon under test
	ip   string
	load *lab.Hammering
}

// faulty makes the service, and starts the client once the daemon has the service.
func (w *world) faulty(d *daemon, client *lab.Pod) *faulty {
	w.t.Helper()
	s := &faulty{world: w, root: d.o.root}
	s.ip = w.create("web", []v1.ServicePort{tcp("", 80)}).Spec.ClusterIP
	w.createSlice("web", "web-1", onePort, v4(w.pods[0], w.pods[5]))
	s.has("p0", "p5")
	s.load = client.StartHammer("tcp", addr(s.ip, 80), lab.HammerOptions{Duration: 10 * time.Minute, Rate: 200})
	return s
}

// has waits until the daemon has exactly this service, with these endpoints.
func (s *faulty) has(pods ...string) {
	s.t.Helper()
	line := fmt.Sprintf("web ClusterIP %s:80/TCP Cluster", s.ip)
	for _, p := range pods {
		line += " " + p + ":8000"
	}
	s.expectOf(s.t, s.root, s.namespace, line)
}

// to replaces the endpoints of the service.
func (s *faulty) to(pods ...*lab.Pod) {
	s.t.Helper()
	s.updateSlice("web-1", func(sl *discoveryv1.EndpointSlice) { sl.Endpoints = v4(pods...) })
}

// unhurt stops the client. None of its connections may have failed.
func (s *faulty) unhurt() {
	s.t.Helper()
	sum, err := s.load.Stop()
	check(s.t, err)
	if sum.Done == 0 || sum.Answered != sum.Done {
		s.t.Errorf("of %d connections %d were answered: %s", sum.Done, sum.Answered, sum.FirstError)
	}
}

// TestAPIServerKilled kills the API server under traffic and starts it again.
func TestAPIServerKilled(t *testing.T) {
	w := setUp(t).in(t, "killed")
	s := w.faulty(w.daemon, w.client)
	w.kube.KillAPIServer()
	since := time.Now()
	w.daemon.await(t, "cannot watch", "what is programmed stays")
	w.watched(t, 0, "services", "endpointslices", "nodes", "servicecidrs")
	w.daemon.answers(t, "/healthz", 200, `"nodeEligible":true`) // no change is waiting to be programmed
	w.reach(w.client, "tcp", addr(s.ip, 80), "p0", "p5")
	check(t, w.kube.StartAPIServer(t.Context()))
	s.to(w.pods[1], w.pods[6])
	ip := w.create("after", []v1.ServicePort{tcp("", 80)}).Spec.ClusterIP
	w.expect(t, w.namespace, fmt.Sprintf("web ClusterIP %s:80/TCP Cluster p1:8000 p6:8000", s.ip),
		fmt.Sprintf("after ClusterIP %s:80/TCP Cluster", ip))
	t.Logf("the API server was away, and the daemon behind, for %v", time.Since(since))
	w.reach(w.client, "tcp", addr(s.ip, 80), "p1", "p6")
	s.unhurt()
	w.daemon.await(t, "the API server answers again")
	w.watched(t, 1, "services", "endpointslices", "nodes", "servicecidrs")
	w.expectFresh(t)
}

// watched waits until the metrics and the status report whether each watch is open.
func (w *world) watched(t *testing.T, up float64, resources ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("shunt_watch_up is %v", up), func() error {
		all := w.daemon.metrics(t)
		for _, r := range resources {
			if v, there := all[fmt.Sprintf("shunt_watch_up{resource=%q}", r)]; !there || v != up {
				return fmt.Errorf("of %s it is %v (%t)", r, v, there)
			}
			if v := all[fmt.Sprintf("shunt_watch_last_event_timestamp_seconds{resource=%q}", r)]; v == 0 {
				return fmt.Errorf("no event of %s", r)
			}
		}
		code := map[float64]string{0: "<error>", 1: "200"}[up]
		for name, v := range all {
			if strings.HasPrefix(name, "rest_client_requests_total{") && strings.Contains(name, `code="`+code+`"`) && v > 0 {
				return nil
			}
		}
		return fmt.Errorf("no rest_client_requests_total with code %s", code)
	})
	eventually(t, "shunt status says so", func() error {
		c := exec.Command("/proc/self/exe", "status", "--bpffs-root", w.daemon.o.root)
		c.Env = shuntEnv()
		text, _ := c.Output() // the exit code is about the whole node
		want := map[float64]string{0: "are NOT open", 1: "answers: all watches are open"}[up]
		if !strings.Contains(string(text), want) {
			return fmt.Errorf("no %q in:\n%s", want, text)
		}
		return nil
	})
}

// TestWatchCut resets the daemon's connections repeatedly while objects change.
func TestWatchCut(t *testing.T) {
	w := setUp(t).in(t, "cut")
	s := w.faulty(w.daemon, w.client)
	for i := range 5 {
		a, b := w.pods[i], w.pods[i+1]
		w.n1.api.Cut()
		s.to(a, b)
		if i%2 == 0 {
			w.n1.api.Cut()
		}
		s.has(a.Name(), b.Name())
	}
	s.unhurt()
	w.expectFresh(t)
}

// TestRefused refuses every connection of the node to the API server for a time in which
// objects of all kinds are changed, deleted, and recreated under the same names.
func TestRefused(t *testing.T) {
	w := setUp(t).in(t, "refused")
	p := w.pods
	s := w.faulty(w.daemon, w.client)
	gone := w.create("gone", []v1.ServicePort{tcp("", 80)}).Spec.ClusterIP
	w.createSlice("gone", "gone-1", onePort, v4(p[2]))
	anew := w.create("anew", []v1.ServicePort{tcp("", 80)}).Spec.ClusterIP
	w.createSlice("anew", "anew-1", onePort, v4(p[3]))
	line := func(name, ip, pods string) string {
		return fmt.Sprintf("%s ClusterIP %s:80/TCP Cluster %s", name, ip, pods)
	}
	before := []string{line("web", s.ip, "p0:8000 p5:8000"), line("gone", gone, "p2:8000"), line("anew", anew, "p3:8000")}
	w.expect(t, w.namespace, before...)

	w.n1.api.Refuse()
	w.daemon.await(t, "connection refused", "what is programmed stays")
	s.to(p[1], p[6])
	w.remove("gone")
	w.removeSlice("gone-1")
	w.remove("anew")
	w.removeSlice("anew-1")
	another := w.create("anew", []v1.ServicePort{tcp("", 80)}).Spec.ClusterIP
	w.createSlice("anew", "anew-1", onePort, v4(p[4]))
	created := w.create("created", []v1.ServicePort{udp("", 80)}).Spec.ClusterIP
	w.createSlice("created", "created-1", []discoveryv1.EndpointPort{target("", v1.ProtocolUDP, 8000)}, v4(p[4]))
	w.expect(t, w.namespace, before...)
	w.reach(w.client, "tcp", addr(gone, 80), "p2")

	check(t, w.n1.api.Accept())
	w.expect(t, w.namespace, line("web", s.ip, "p1:8000 p6:8000"), line("anew", another, "p4:8000"),
		fmt.Sprintf("created ClusterIP %s:80/UDP Cluster p4:8000", created))
	w.reach(w.client, "tcp", addr(another, 80), "p4")
	w.reach(w.client, "udp", addr(created, 80), "p4")
	w.unallocated(w.client, "tcp", addr(gone, 80))
	s.unhurt()
	w.expectFresh(t)
}

// TestStartWithoutAPIServer kills a daemon, starts it while the API server cannot be
// reached, and makes it reachable later.
func TestStartWithoutAPIServer(t *testing.T) {
	t.Parallel()
	w := setUp(t).in(t, "away")
	n := w.testNode(t, "away")
	client := n.Pod("client")
	d := w.runFor(t, daemonOptions{name: "away", node: n, healthz: "127.0.0.1:10256"})
	d.await(t, `"in effect"`)
	d.answers(t, "/livez", 200, "lastUpdated")
	d.answers(t, "/healthz", 503, "this Node was not seen yet") // there is no Node with this name
	s := w.faulty(d, client)

	d.kill(t)
	n.api.Refuse()
	s.to(w.pods[1], w.pods[6])
	d = d.again(t, w.fixture)
	d.await(t, "cannot", "connection refused", "what is programmed stays")
	// Neither probes nor load balancers may affect working services.
	d.answers(t, "/livez", 200, "what an earlier daemon programmed is in effect")
	d.answers(t, "/healthz", 200, "the API server has not answered for services since ")
	s.has("p0", "p5") // as the earlier daemon programmed it
	w.reach(client, "tcp", addr(s.ip, 80), "p0", "p5")
	w.register(t, n)

	check(t, n.api.Accept())
	s.has("p1", "p6")
	w.reach(client, "tcp", addr(s.ip, 80), "p1", "p6")
	d.answers(t, "/livez", 200, "lastUpdated")
	d.answers(t, "/healthz", 200, `"nodeEligible":true`)
	s.unhurt()
}

// TestChangesWhileDown kills a daemon under traffic, changes one of its services, and
// starts it again: it adopts the maps, and writes only what the change requires.
func TestChangesWhileDown(t *testing.T) {
	w := setUp(t).in(t, "down")
	n := w.testNode(t, "down")
	client := n.Pod("client")
	for i := range 20 {
		name := fmt.Sprint("other-", i)
		w.create(name, []v1.ServicePort{tcp("a", 80), udp("b", 81)})
		w.createSlice(name, name+"-1", []discoveryv1.EndpointPort{target("a", v1.ProtocolTCP, 8000), target("b", v1.ProtocolUDP, 8001)}, v4(w.pods...))
	}
	d := w.runFor(t, daemonOptions{name: "down", node: n})
	ip := w.create("web", []v1.ServicePort{tcp("", 80)}).Spec.ClusterIP
	w.createSlice("web", "web-1", onePort, v4(w.pods[0], w.pods[5]))
	holds := func(pods string) {
		t.Helper()
		eventually(t, "the daemon has "+pods, func() error {
			list, err := shuntServices(d.o.root, ip+":80")
			if err == nil && (len(list) != 1 || w.line(list[0]) != fmt.Sprintf("web ClusterIP %s:80/TCP Cluster %s", ip, pods)) {
				err = fmt.Errorf("it has %v", list)
			}
			return err
		})
	}
	d.await(t, `"in effect"`)
	holds("p0:8000 p5:8000")
	load := client.StartHammer("tcp", addr(ip, 80), lab.HammerOptions{Duration: 10 * time.Minute, Rate: 200})
	for round, pods := range [][]*lab.Pod{{w.pods[0], w.pods[6]}, {w.pods[7], w.pods[8], w.pods[9]}, nil} {
		d.kill(t)
		changed := map[string]float64{}
		switch round {
		case 0: // one endpoint replaced: a new slot range, one backend added, one removed
			changed = map[string]float64{"frontend_writes": 1, "slot_writes": 2, "backend_writes": 2}
		case 1: // all replaced by three others
			changed = map[string]float64{"frontend_writes": 1, "slot_writes": 3, "backend_writes": 5}
		}
		if pods != nil {
			w.updateSlice("web-1", func(s *discoveryv1.EndpointSlice) { s.Endpoints = v4(pods...) })
		}
		d = d.again(t, w.fixture)
		d.await(t, `"in effect"`)
		if n := d.log.field(t, "started", "adopted_frontends"); n < 20*3+2 {
			t.Errorf("adopted %v frontends", n)
		}
		for _, kind := range []string{"frontend_writes", "slot_writes", "backend_writes", "name_writes", "node_addr_writes"} {
			if got := d.log.field(t, "reconciled", kind); got != changed[kind] {
				t.Errorf("round %d: %v %s after the start, want %v", round, got, kind, changed[kind])
			}
		}
	}
	holds("p7:8000 p8:8000 p9:8000")
	w.reach(client, "tcp", addr(ip, 80), "p7", "p8", "p9")
	sum, err := load.Stop()
	check(t, err)
	if sum.Done == 0 || sum.Answered != sum.Done {
		t.Errorf("of %d connections %d were answered: %s", sum.Done, sum.Answered, sum.FirstError)
	}
}

// TestWrongToken replaces a daemon by one whose credentials the API server does not accept.
func TestWrongToken(t *testing.T) {
	t.Parallel()
	w := setUp(t).in(t, "token")
	n := w.testNode(t, "token")
	client := n.Pod("client")
	o := daemonOptions{name: "token", node: n, healthz: "127.0.0.1:10256"}
	d := w.runFor(t, o)
	s := w.faulty(d, client)
	d.kill(t)

	config, err := clientcmd.LoadFromFile(w.kubeconfig())
	check(t, err)
	for _, user := range config.AuthInfos {
		user.Token = "wrong"
	}
	o.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	check(t, clientcmd.WriteToFile(*config, o.kubeconfig))
	d = w.runFor(t, o)
	for _, resource := range []string{"services", "endpointslices", "nodes"} {
		d.await(t, "cannot watch "+resource, "the API server does not accept the credentials; check the token or client certificate")
	}
	d.answers(t, "/livez", 200, "the API server has not answered for services since ")
	s.to(w.pods[1])
	// After several attempts, each resource still has one line.
	eventually(t, "the daemon tries again", func() error {
		if time.Since(d.began) < 5*time.Second {
			return errors.New("it has had no time")
		}
		return d.alive()
	})
	for _, resource := range []string{"services", "endpointslices", "nodes"} {
		if n := d.log.count("cannot", resource+":"); n != 1 {
			t.Errorf("%d lines say that %s can't be read, in 5 s:\n%s", n, resource, d.log.tail(30))
		}
	}
	s.has("p0", "p5")
	w.reach(client, "tcp", addr(s.ip, 80), "p0", "p5")
	s.unhurt()
}
