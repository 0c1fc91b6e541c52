// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"shunt/lb"
)

// cluster is client-go's fake API server. Like a real one it applies selectors to watches:
// an object that starts to match is ADDED, one that no longer matches is DELETED.
type cluster struct {
	*fake.Clientset
	mu       sync.Mutex
	watchers []watch.Interface
}

func newCluster(objects ...kruntime.Object) *cluster {
	c := &cluster{Clientset: fake.NewClientset(objects...)}
	c.PrependWatchReactor("*", func(action clienttesting.Action) (bool, watch.Interface, error) {
		w, err := c.Tracker().Watch(action.GetResource(), action.GetNamespace())
		if err != nil {
			return true, nil, err
		}
		sel := action.(clienttesting.WatchAction).GetWatchRestrictions()
		c.mu.Lock()
		defer c.mu.Unlock()
		w = c.filter(w, sel.Labels, sel.Fields)
		c.watchers = append(c.watchers, w)
		return true, w, nil
	})
	return c
}

func (c *cluster) filter(w watch.Interface, l labels.Selector, f fields.Selector) watch.Interface {
	shown := make(map[string]bool)
	return watch.Filter(w, func(e watch.Event) (watch.Event, bool) {
		m, err := meta.Accessor(e.Object)
		if err != nil {
			return e, true
		}
		key := m.GetNamespace() + "/" + m.GetName()
		matches := l.Matches(labels.Set(m.GetLabels())) && f.Matches(fields.Set{"metadata.name": m.GetName()})
		was, known := shown[key]
		if !known {
			was = e.Type != watch.Added // it is older than this watch: pass the event
		}
		shown[key] = matches && e.Type != watch.Deleted
		switch {
		case matches || e.Type == watch.Deleted:
			return e, matches || was
		case was:
			e.Type = watch.Deleted
			return e, true
		}
		return e, false
	})
}

// cut ends all watches, as if the API server was gone.
func (c *cluster) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.watchers {
		w.Stop()
	}
	c.watchers = nil
}

func (c *cluster) watches() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.watchers)
}

// runAPI runs a watcher until the test ends, and checks that it ends then.
func runAPI(t *testing.T, c *cluster, log *zap.Logger) (*sink, context.CancelFunc) {
	t.Helper()
	s := newSink(t)
	a, err := NewAPI(APIOptions{Client: c.Clientset, NodeName: "n1", Sink: s, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	a.grace = 500 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("Run: %v", err)
				}
			case <-time.After(5 * time.Second):
				t.Errorf("Run did not end within 5 s:\n%s", stacks())
			}
		})
	}
	t.Cleanup(stop)
	return s, stop
}

func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

func node(name string) *v1.Node {
	return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1.LabelTopologyZone: "z1"}}}
}

func TestAPI(t *testing.T) {
	other := webService()
	other.Name, other.Labels = "other", map[string]string{labelProxyName: "someone"}
	headless := slice("headless", func(s *discoveryv1.EndpointSlice) { s.Labels[labelHeadless] = "" })
	c := newCluster(webService(), other, slice("a"), slice("b"), headless, node("n1"), node("n2"))
	s, _ := runAPI(t, c, nil)
	s.next("set node n1", "leave service shop/other", "set service shop/web", "set slice shop/a", "set slice shop/b", "synced")
	eventually(t, "four watches", func() bool { return c.watches() == 4 })

	ctx := t.Context()
	services, slices := c.CoreV1().Services("shop"), c.DiscoveryV1().EndpointSlices("shop")
	update := func(obj *v1.Service) {
		t.Helper()
		_, err := services.Update(ctx, obj, metav1.UpdateOptions{})
		must(t, err)
	}
	updateSlice := func(obj *discoveryv1.EndpointSlice) {
		t.Helper()
		_, err := slices.Update(ctx, obj, metav1.UpdateOptions{})
		must(t, err)
	}
	// A label that is set or removed on an existing object takes effect at once.
	web := webService()
	web.Labels = map[string]string{labelProxyName: "someone"}
	update(web)
	s.next("leave service shop/web")
	update(webService())
	s.next("set service shop/web")
	updateSlice(slice("a", func(s *discoveryv1.EndpointSlice) { s.Labels[labelHeadless] = "" }))
	s.next("delete slice shop/a")
	updateSlice(slice("a"))
	s.next("set slice shop/a")
	other.Labels = nil
	update(other)
	s.next("set service shop/other")

	// Changes and deletions.
	updateSlice(slice("b", func(s *discoveryv1.EndpointSlice) { s.Endpoints = nil }))
	s.next("set slice shop/b")
	updateSlice(slice("b", func(s *discoveryv1.EndpointSlice) { delete(s.Labels, discoveryv1.LabelServiceName) }))
	s.next("delete slice shop/b")
	must(t, services.Delete(ctx, "other", metav1.DeleteOptions{}))
	s.next("delete service shop/other")

	// Only this node's Node, its change and its deletion.
	n := node("n1")
	n.Spec.Taints = []v1.Taint{{Key: taintAutoscaler}}
	_, err := c.CoreV1().Nodes().Update(ctx, node("n2"), metav1.UpdateOptions{})
	must(t, err)
	_, err = c.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{})
	must(t, err)
	s.next("set node n1")
	if !s.node.Tainted || s.node.Zone != "z1" {
		t.Errorf("node: %+v", s.node)
	}
	must(t, c.CoreV1().Nodes().Delete(ctx, "n1", metav1.DeleteOptions{}))
	s.next("no node")
}

// TestSelectors: the server selects slices and the Node. Services are not selected: those
// of another proxy have addresses too.
func TestSelectors(t *testing.T) {
	c := newCluster(node("n1"))
	s, stop := runAPI(t, c, nil)
	s.next("set node n1", "synced")
	eventually(t, "four watches", func() bool { return c.watches() == 4 })
	stop()
	want := map[string]string{
		"endpointslices": "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name",
		"nodes":          "metadata.name=n1",
	}
	seen := 0
	for _, a := range c.Actions() {
		var l, f string
		switch a := a.(type) {
		case clienttesting.ListAction:
			l, f = a.GetListRestrictions().Labels.String(), a.GetListRestrictions().Fields.String()
		case clienttesting.WatchAction:
			l, f = a.GetWatchRestrictions().Labels.String(), a.GetWatchRestrictions().Fields.String()
		}
		if l+f != want[a.GetResource().Resource] || a.GetNamespace() != "" {
			t.Errorf("%s %s: selectors %q %q", a.GetVerb(), a.GetResource().Resource, l, f)
		}
		seen++
	}
	if seen < 8 {
		t.Errorf("%d requests, want list and watch of four kinds", seen)
	}
}

// TestWatchCut: changes during a time without watches arrive, and nothing else does.
func TestWatchCut(t *testing.T) {
	c := newCluster(webService(), slice("a"), slice("b"), node("n1"))
	s, _ := runAPI(t, c, nil)
	s.next("set node n1", "set service shop/web", "set slice shop/a", "set slice shop/b", "synced")
	eventually(t, "four watches", func() bool { return c.watches() == 4 })

	var down sync.Mutex
	down.Lock() // lists wait until the changes are made
	c.PrependReactor("list", "*", func(clienttesting.Action) (bool, kruntime.Object, error) {
		down.Lock()
		defer down.Unlock()
		return false, nil, nil
	})
	c.cut()
	ctx := t.Context()
	must(t, c.DiscoveryV1().EndpointSlices("shop").Delete(ctx, "a", metav1.DeleteOptions{}))
	_, err := c.DiscoveryV1().EndpointSlices("shop").Create(ctx, slice("c"), metav1.CreateOptions{})
	must(t, err)
	down.Unlock()
	s.next("set slice shop/c", "delete slice shop/a")
	eventually(t, "four watches again", func() bool { return c.watches() == 4 })
	s.same(s.take(), nil)
}

// TestAPIServerDown: failures are logged at a bounded rate, SetSynced is not called before
// everything is known, and the end of the failure is logged too.
func TestAPIServerDown(t *testing.T) {
	c := newCluster(webService(), slice("a"), node("n1"))
	var mu sync.Mutex
	refused := &url.Error{Op: "Get", URL: "https://192.0.2.1:6443/api/v1/services", Err: &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}}
	failure, tries := error(refused), 0
	c.PrependReactor("list", "services", func(clienttesting.Action) (bool, kruntime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		if tries++; tries == 2 {
			failure = apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "", errors.New("RBAC"))
		}
		return failure != nil, nil, failure
	})
	log, logs := testLog(zap.InfoLevel)
	s, _ := runAPI(t, c, log)
	eventually(t, "a few tries", func() bool { mu.Lock(); defer mu.Unlock(); return tries >= 3 })
	if s.same(s.take(), []string{"set node n1", "set slice shop/a"}); s.synced != 0 {
		t.Fatal("synced without services")
	}
	if n := said(logs, "cannot list services"); n != 1 {
		t.Errorf("a failure of %d tries is said %d times", tries, n)
	}
	for _, text := range []string{"192.0.2.1:6443", "connection refused", "is the API server's address right"} {
		if said(logs, text) != 1 {
			t.Errorf("the log does not say %q", text)
		}
	}
	mu.Lock()
	failure = nil
	mu.Unlock()
	s.next("set service shop/web", "synced")
	if said(logs, "answers again") != 1 {
		t.Error("the end of the failure is not said")
	}
	for _, e := range logs.All() {
		if strings.Contains(e.LoggerName, "reflector") || strings.Contains(e.Message, "Failed to watch") {
			t.Errorf("client-go's own line is not for operators: %s", e.Message)
		}
	}
}

// TestEndsWhileDown: Run ends at once although every reflector waits for a retry.
func TestEndsWhileDown(t *testing.T) {
	c := newCluster()
	c.PrependReactor("list", "*", func(clienttesting.Action) (bool, kruntime.Object, error) {
		return true, nil, apierrors.NewServiceUnavailable("not yet")
	})
	log, logs := testLog(zap.InfoLevel)
	s, stop := runAPI(t, c, log)
	eventually(t, "a failure", func() bool { return said(logs, "cannot list") == 3 })
	stop()
	s.same(s.take(), nil)
}

// counted counts the requests of a client.
type counted struct {
	http.RoundTripper
	n *atomic.Int32
}

func (c counted) RoundTrip(r *http.Request) (*http.Response, error) {
	c.n.Add(1)
	return c.RoundTripper.RoundTrip(r)
}

// TestEndsWhileRefused: the same with a client that streams lists, for which the wait is
// elsewhere in client-go.
func TestEndsWhileRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, l.Close()) // connections to it are refused now
	_, cfg, err := NewClient(ClientOptions{APIServer: "http://" + l.Addr().String()})
	must(t, err)
	var tries atomic.Int32
	cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper { return counted{rt, &tries} })
	client, err := kubernetes.NewForConfig(cfg)
	must(t, err)
	s := newSink(t)
	a, err := NewAPI(APIOptions{Client: client, NodeName: "n1", Sink: s})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	eventually(t, "three tries of each kind", func() bool { return tries.Load() >= 9 })
	cancel() // each reflector waits 0.8 s at least for its next attempt
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(600 * time.Millisecond):
		t.Errorf("Run did not end at once:\n%s", stacks())
	}
	s.same(s.take(), nil)
}

// TestNoNode: a missing or unreadable Node is logged, and does not keep the proxy from
// starting.
func TestNoNode(t *testing.T) {
	log, logs := testLog(zap.WarnLevel)
	s, stop := runAPI(t, newCluster(webService()), log)
	s.next("set service shop/web", "synced")
	stop()
	if said(logs, "there is no Node of this name") != 1 {
		t.Errorf("log: %v", logs.All())
	}

	c := newCluster(webService())
	c.PrependReactor("list", "nodes", func(clienttesting.Action) (bool, kruntime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "nodes"}, "n1", errors.New("RBAC"))
	})
	s, _ = runAPI(t, c, log)
	s.next("set service shop/web", "synced")
	if said(logs, "grant it list and watch on nodes") != 1 || said(logs, "could not be read yet") != 1 {
		t.Errorf("log: %v", logs.All())
	}
}

func TestNewAPIRefuses(t *testing.T) {
	for what, o := range map[string]APIOptions{
		"no client":    {Sink: newSink(t), NodeName: "n1"},
		"no sink":      {Client: fake.NewClientset(), NodeName: "n1"},
		"no node name": {Client: fake.NewClientset(), Sink: newSink(t)},
	} {
		if _, err := NewAPI(o); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	a, _ := newTestAPI(t, nil, nil)
	a.ServiceWarning(lb.ServiceName{}, "", "") // without a recorder it does nothing
}
