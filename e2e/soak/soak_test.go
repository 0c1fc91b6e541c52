// SPDX-License-Identifier: Apache-2.0

package soak_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shunt/e2e/kube"
	"shunt/e2e/rig"
	"shunt/lab"
)

func TestMain(m *testing.M) { rig.Main(m) }

// soak is a node with a daemon, the traffic, and the faults.
type soak struct {
	t   *testing.T
	rnd *rand.Rand

	kube *kube.Cluster
	api  kubernetes.Interface
	// way is the proxy between the daemon and the API server.
	way *kube.Proxy

	n1, n2                *lab.Node
	near, far, spare      *lab.Pod // servers; spare is on n1
	client, host, outside *lab.Pod

	d     *rig.Daemon
	flows []*flow
	held  []*held
	// heldAsked counts exchanges on long connections, heldEnded those connections that
	// ended as the fault declares.
	heldAsked, heldEnded int
	probes               *prober
	base                 resources
}

// TestSoak runs random faults for SOAK_MINUTES, or by default for less than a minute and a
// half.
func TestSoak(t *testing.T) {
	length, seed := 20*time.Second, uint64(time.Now().UnixNano())
	if text := os.Getenv("SOAK_MINUTES"); text != "" {
		minutes, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatalf("SOAK_MINUTES: %v", err)
		}
		length = time.Duration(minutes * float64(time.Minute))
	}
	if text := os.Getenv("SOAK_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SOAK_SEED: %v", err)
		}
	}
	t.Logf("SOAK_SEED=%d", seed)
	s := newSoak(t, rand.New(rand.NewPCG(seed, 1)))
	s.start()
	// Each server is an endpoint once: map addrs keeps the addresses of past endpoints.
	s.churn()
	s.settled(names{"t", "u"})
	before, entries := s.quiet(), s.entries()
	s.hold()
	s.probes.begin()
	rounds, counts := 0, map[string]int{}
	var left []fault // every fault runs once before any is repeated
	for began := time.Now(); time.Since(began) < length && !t.Failed(); rounds++ {
		if len(left) == 0 {
			left = faults()
			s.rnd.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
		}
		f := left[0]
		left = left[1:]
		counts[f.name]++
		s.round(rounds, f)
	}
	s.probes.end()
	s.release()
	s.sameAs(before)
	s.sum(rounds, counts, entries)
	s.d.Stop()
	if log := s.d.Log.String(); strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic:") {
		t.Errorf("the daemon's log:\n%s", s.d.Log.Tail(200))
	}
	if t.Failed() {
		t.Logf("again: make soak SOAK_SEED=%d", seed)
	}
}

func newSoak(t *testing.T, rnd *rand.Rand) *soak {
	l := lab.ForTest(t)
	s := &soak{t: t, rnd: rnd, kube: kube.ForTest(t), n1: l.Node("n1"), n2: l.Node("n2")}
	s.api = s.kube.Client()
	s.near, s.spare, s.far = s.n1.Pod("near"), s.n1.Pod("spare"), s.n2.Pod("far")
	s.client, s.host, s.outside = s.n1.Pod("client"), s.n1.HostPod("host"), l.Client("outside")
	for _, p := range []*lab.Pod{s.near, s.spare, s.far} {
		for _, network := range []string{"tcp", "udp"} {
			p.Serve(network, rig.ServerPort)
		}
	}
	s.outside.RouteVia(lab.ExternalCIDR4, s.n1)
	s.outside.RouteVia(lab.ExternalCIDR6, s.n1)
	var err error
	s.way, err = kube.NewProxy(s.n1.NetnsPath(), s.kube.Addr(), s.kube.Addr())
	s.check(err)
	t.Cleanup(s.way.Close)
	s.makeObjects()
	return s
}

func (s *soak) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// start runs the daemon for the first time.
func (s *soak) start() {
	kubeconfig := filepath.Join(s.t.TempDir(), "kubeconfig")
	s.check(s.kube.Kubeconfig(kubeconfig))
	s.d = rig.NewDaemon(s.t, s.n1, "", "--kubeconfig", kubeconfig,
		// Short timeouts, so that ended flows are gone by the end of the run.
		"--conntrack-udp-timeout=10s", "--conntrack-udp-timeout-stream=45s",
		// Also for connections that ended while no hook could see it.
		"--conntrack-tcp-timeout-established=3m", "--conntrack-tcp-timeout-close-wait=3m")
	i := slices.Index(s.d.Args, "--manifests")
	s.d.Args = slices.Delete(s.d.Args, i, i+2)
	s.probes = newProber(s.d)
	s.d.Start()
	s.flows = s.allFlows()
	s.await("at first")
	s.base = s.resources()
}

// makeObjects creates a service with every kind of frontend, and the Node.
func (s *soak) makeObjects() {
	ctx := s.t.Context()
	svc := newService(web, webNumber, rig.Everywhere(webNumber))
	status := svc.Status
	made, err := s.api.CoreV1().Services(svc.Namespace).Create(ctx, svc, metav1.CreateOptions{})
	s.check(err)
	made.Status = status
	_, err = s.api.CoreV1().Services(svc.Namespace).UpdateStatus(ctx, made, metav1.UpdateOptions{})
	s.check(err)
	s.putSlices(names{"t", "u"}, s.near, s.far)
	_, err = s.api.CoreV1().Nodes().Create(ctx, nodeObject(s.n1), metav1.CreateOptions{})
	s.check(err)
}

// round runs one fault under traffic. Only failures that the fault declares may occur.
func (s *soak) round(n int, f fault) {
	s.t.Helper()
	s.pour()
	began := lab.Monotonic()
	f.do(s)
	ended := lab.Monotonic()
	s.await(fmt.Sprintf("round %d, after %s", n, f.name))
	over := lab.Monotonic()
	if took, most := time.Duration(over-ended), f.heals+rig.Patience; took > most {
		s.t.Errorf("round %d: after %s it took %v until all was well", n, f.name, took)
	}
	s.t.Logf("round %d: %s, %v, and %v until all is well", n, f.name, time.Duration(ended-began).Round(time.Millisecond),
		time.Duration(over-ended).Round(time.Millisecond))
	s.judge(n, f, began, ended)
	s.askHeld(n, f)
	s.inEffect()
	s.probes.judge(s.t, n, f)
}
