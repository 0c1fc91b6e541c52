// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shunt/e2e/kube"
	"shunt/lab"
)

// within bounds every wait.
const within = 60 * time.Second

// The endpoints: so many pods, which serve on so many ports from firstPort on, over TCP and
// UDP in both families. The first half of them is on n1.
const (
	podCount  = 10
	portCount = 10
	firstPort = 8000
)

// fixture is shared by the tests of the package: one API server, and a node n1 with the
// daemon that most tests check. Each test has its own namespace.
type fixture struct {
	kube   *kube.Cluster
	api    kubernetes.Interface
	lab    *lab.Lab
	n1, n2 *node
	pods   []*lab.Pod
	client *lab.Pod // a pod of n1
	host   *lab.Pod // n1's own processes
	names  map[netip.Addr]string
	daemon *daemon

	freshMu sync.Mutex
	fresh   *node
	starts  atomic.Int64 // of daemons and nodes; makes their names unique
}

// node is a node of the lab that can reach the API server.
type node struct {
	*lab.Node
	// api is the proxy between the node's daemons and the API server, at the same address
	// and port as in the kubeconfig.
	api *kube.Proxy
}

var shared struct {
	once sync.Once
	f    *fixture
	err  error
	down []func() error
}

// setUp returns the fixture. The first call makes it.
func setUp(t *testing.T) *fixture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces, cgroups and eBPF need root: skipped")
	}
	shared.once.Do(func() {
		shared.f = &fixture{names: map[netip.Addr]string{}}
		shared.err = shared.f.start()
	})
	if shared.err != nil {
		t.Fatalf("make the cluster that all tests of this package share: %v", shared.err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of the daemon of n1 ends with:\n%s", shared.f.daemon.log.tail(30))
		}
	})
	return shared.f
}

// closeFixture removes everything, in the reverse order.
func closeFixture() error {
	var errs []error
	for i := len(shared.down) - 1; i >= 0; i-- {
		errs = append(errs, shared.down[i]())
	}
	return errors.Join(errs...)
}

func onClose(f func() error) { shared.down = append(shared.down, f) }

func (f *fixture) start() (err error) {
	ctx := context.Background()
	if f.kube, err = kube.Start(ctx, kube.Options{}); err != nil {
		return err
	}
	onClose(f.kube.Stop)
	f.api = f.kube.Client()
	if f.lab, err = lab.New(ctx, lab.Options{CloseOnSignal: true}); err != nil {
		return err
	}
	onClose(f.lab.Close)
	for name, to := range map[string]**node{"n1": &f.n1, "n2": &f.n2, "fresh": &f.fresh} {
		if *to, err = f.node(name); err != nil {
			return err
		}
	}
	if err := f.makePods(); err != nil {
		return err
	}
	if _, err := f.api.CoreV1().Nodes().Create(ctx, newNode("n1"), metav1.CreateOptions{}); err != nil {
		return err
	}
	if err := f.kube.Kubeconfig(f.kubeconfig()); err != nil {
		return err
	}
	f.daemon, err = f.run(daemonOptions{name: "main", node: f.n1,
		healthz: "0.0.0.0:10256", metrics: "127.0.0.1:10249"})
	if err != nil {
		return err
	}
	return f.daemon.awaitLog(ctx, "in effect")
}

// kubeconfig returns a file with the administrator's rights.
func (f *fixture) kubeconfig() string { return filepath.Join(f.lab.Dir(), "kubeconfig") }

// node makes a node whose processes can reach the API server.
func (f *fixture) node(name string) (*node, error) {
	n := &node{Node: f.lab.Node(name)}
	if err := f.lab.Err(); err != nil {
		return nil, err
	}
	var err error
	if n.api, err = kube.NewProxy(n.NetnsPath(), f.kube.Addr(), f.kube.Addr()); err != nil {
		return nil, err
	}
	onClose(func() error { n.api.Close(); return nil })
	n.BPFFS()
	return n, f.lab.Err()
}

// testNode makes a node for one test, with a name that begins with prefix.
func (f *fixture) testNode(t *testing.T, prefix string) *node {
	t.Helper()
	n := &node{Node: f.lab.Node(fmt.Sprintf("%s-%d", prefix, f.starts.Add(1)))}
	n.BPFFS()
	check(t, f.lab.Err())
	var err error
	n.api, err = kube.NewProxy(n.NetnsPath(), f.kube.Addr(), f.kube.Addr())
	check(t, err)
	t.Cleanup(n.api.Close)
	return n
}

// register creates a node's Node in the API server, for one test.
func (f *fixture) register(t *testing.T, n *node) {
	t.Helper()
	_, err := f.api.CoreV1().Nodes().Create(t.Context(), newNode(n.Name()), metav1.CreateOptions{})
	check(t, err)
	t.Cleanup(func() {
		err := f.api.CoreV1().Nodes().Delete(context.Background(), n.Name(), metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
}

func (f *fixture) makePods() error {
	for i := range podCount {
		n := f.n1
		if i >= podCount/2 {
			n = f.n2
		}
		p := n.Pod(fmt.Sprintf("p%d", i))
		for port := range portCount {
			p.Serve("tcp", firstPort+uint16(port))
			p.Serve("udp", firstPort+uint16(port))
		}
		f.pods = append(f.pods, p)
		if err := f.lab.Err(); err != nil {
			return err
		}
		for _, a := range p.Addrs() {
			f.names[a] = p.Name()
		}
	}
	f.client, f.host = f.n1.Pod("client"), f.n1.HostPod("host")
	return f.lab.Err()
}

// zone is n1's.
const zone = "zone-a"

func newNode(name string) *v1.Node {
	return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1.LabelTopologyZone: zone}}}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pollInterval is the pause between two checks of a condition.
const pollInterval = 10 * time.Millisecond

// poll repeats a check until it succeeds or the context ends.
func poll(ctx context.Context, what string, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %v: %w", what, within, err)
		case <-tick.C:
		}
	}
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	if err := poll(t.Context(), what, check); err != nil {
		t.Fatal(err)
	}
}
