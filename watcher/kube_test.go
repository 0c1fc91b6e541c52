// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shunt/e2e/kube" //nolint:depguard // a real API server to test against; it knows nothing of the watcher
	"shunt/lb"
)

// TestRealAPIServer runs the watcher against a real kube-apiserver and etcd: objects of
// every kind, labels that are set and removed, watches that are cut, objects that change
// while the watcher is not connected, a server that is killed and started again. The Sink
// must get every difference once, and nothing else.
func TestRealAPIServer(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a control plane")
	}
	c := kube.ForTest(t)
	h := &realTest{T: t, Cluster: c, admin: c.Client(), sink: newSink(t)}
	ctx := t.Context()
	_, err := h.admin.CoreV1().Namespaces().Create(ctx, &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{})
	must(t, err)
	_, err = h.admin.CoreV1().Nodes().Create(ctx, node("n1"), metav1.CreateOptions{})
	must(t, err)
	h.create(realService("web", nil))
	h.create(realService("other", map[string]string{labelProxyName: "someone"}))
	h.createSlice(realSlice("web-1", "web", "10.1.0.1", nil))
	h.createSlice(realSlice("hidden", "web", "10.1.0.9", map[string]string{labelHeadless: ""}))

	stop := h.run()
	h.next("set node n1", "leave service shop/other", "set service shop/web", "set slice shop/web-1", "synced")
	web := h.sink.service(lb.ServiceName{Namespace: "shop", Name: "web"})
	if len(web.ClusterIPs) != 2 || web.Created.IsZero() || web.Ports[0].NodePort == 0 {
		t.Errorf("web: %+v", web)
	}
	h.labels()
	h.cut()
	h.restart()
	h.event()
	stop()
}

type realTest struct {
	*testing.T
	*kube.Cluster
	admin kubernetes.Interface
	sink  *sink
	api   *API
}

// run starts the watcher with the client that the daemon uses: in protobuf, from a
// kubeconfig file, through the proxy whose connections can be cut.
func (h *realTest) run() (stop func()) {
	file := filepath.Join(h.TempDir(), "kubeconfig")
	must(h.T, h.Kubeconfig(file))
	h.Setenv(EnvAPIServer, "")
	client, _, err := NewClient(ClientOptions{Kubeconfig: file})
	must(h.T, err)
	events := NewEvents(client, "n1", nil)
	log, logs := testLog(-10) // every log line of client-go
	h.api, err = NewAPI(APIOptions{Client: client, NodeName: "n1", Sink: h.sink, Log: log, Recorder: events})
	must(h.T, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- h.api.Run(ctx) }()
	go func() { done <- events.Run(ctx) }()
	h.Cleanup(cancel)
	return func() {
		cancel()
		for range 2 {
			select {
			case err := <-done:
				must(h.T, err)
			case <-time.After(deadline):
				h.Fatal("a watcher does not end:\n" + stacks())
			}
		}
		if said(logs, "watchlist mode") > 0 || said(logs, "Caches populated") == 0 {
			h.Error("the lists were not streamed")
		}
	}
}

// next is sink.next without the API server's own objects (default/kubernetes).
func (h *realTest) next(want ...string) {
	h.Helper()
	var got []string
	for end := time.Now().Add(time.Minute); time.Now().Before(end) && len(got) < len(want); time.Sleep(5 * time.Millisecond) {
		for _, call := range h.sink.take() {
			if !strings.HasSuffix(call, " default/kubernetes") {
				got = append(got, call)
			}
		}
	}
	h.sink.same(got, want)
}

func realService(name string, labels map[string]string) *v1.Service {
	return &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: labels},
		Spec: v1.ServiceSpec{
			Type: v1.ServiceTypeNodePort, IPFamilyPolicy: ptr(v1.IPFamilyPolicyRequireDualStack),
			Ports: []v1.ServicePort{{Port: 80}},
		},
	}
}

func realSlice(name, service, addr string, labels map[string]string) *discoveryv1.EndpointSlice {
	all := map[string]string{discoveryv1.LabelServiceName: service}
	for k, v := range labels {
		all[k] = v
	}
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: all},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Port: ptr(int32(8080))}}, // the API server sets the name ""
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{addr}}},
	}
}

func (h *realTest) create(s *v1.Service) {
	h.Helper()
	_, err := h.admin.CoreV1().Services("shop").Create(h.Context(), s, metav1.CreateOptions{})
	must(h.T, err)
}

func (h *realTest) createSlice(s *discoveryv1.EndpointSlice) {
	h.Helper()
	_, err := h.admin.DiscoveryV1().EndpointSlices("shop").Create(h.Context(), s, metav1.CreateOptions{})
	must(h.T, err)
}

func (h *realTest) updateSlice(s *discoveryv1.EndpointSlice) {
	h.Helper()
	_, err := h.admin.DiscoveryV1().EndpointSlices("shop").Update(h.Context(), s, metav1.UpdateOptions{})
	must(h.T, err)
}

func (h *realTest) relabel(name string, labels map[string]string) {
	h.Helper()
	services := h.admin.CoreV1().Services("shop")
	s, err := services.Get(h.Context(), name, metav1.GetOptions{})
	must(h.T, err)
	s.Labels = labels
	_, err = services.Update(h.Context(), s, metav1.UpdateOptions{})
	must(h.T, err)
}

func (h *realTest) labels() {
	h.Helper()
	proxied := map[string]string{labelProxyName: "someone"}
	h.relabel("web", proxied)
	h.next("leave service shop/web")
	h.relabel("web", nil)
	h.next("set service shop/web")
	h.relabel("web", map[string]string{"irrelevant": "label"})
	h.relabel("other", nil)
	h.next("set service shop/other")
	h.relabel("other", proxied)
	h.next("leave service shop/other")

	h.updateSlice(realSlice("web-1", "web", "10.1.0.1", map[string]string{labelHeadless: ""}))
	h.next("delete slice shop/web-1")
	h.updateSlice(realSlice("web-1", "web", "10.1.0.1", proxied))
	h.updateSlice(realSlice("web-1", "web", "10.1.0.1", nil))
	h.next("set slice shop/web-1")
}

// cut cuts the watches, and changes objects while the watcher is not connected.
func (h *realTest) cut() {
	h.Helper()
	h.CutWatches()
	h.createSlice(realSlice("web-2", "web", "10.1.0.2", nil))
	h.next("set slice shop/web-2")

	h.Proxy().Refuse()
	services, slices := h.admin.CoreV1().Services("shop"), h.admin.DiscoveryV1().EndpointSlices("shop")
	must(h.T, services.Delete(h.Context(), "web", metav1.DeleteOptions{}))
	h.create(realService("web", nil)) // the same name, another UID and address
	h.create(realService("brief", nil))
	must(h.T, services.Delete(h.Context(), "brief", metav1.DeleteOptions{}))
	must(h.T, slices.Delete(h.Context(), "web-2", metav1.DeleteOptions{}))
	h.createSlice(realSlice("web-3", "web", "10.1.0.3", nil))
	must(h.T, h.Proxy().Accept())
	h.awaitState("web-1", "web-3")
	s, err := services.Get(h.Context(), "web", metav1.GetOptions{})
	must(h.T, err)
	if name := (lb.ServiceName{Namespace: "shop", Name: "web"}); h.api.services.uid(name) != s.UID {
		h.Errorf("UID %s, want %s", h.api.services.uid(name), s.UID)
	}
}

// awaitState waits until the sink has exactly these slices, and the current web.
func (h *realTest) awaitState(slicesOfShop ...string) {
	h.Helper()
	s, err := h.admin.CoreV1().Services("shop").Get(h.Context(), "web", metav1.GetOptions{})
	must(h.T, err)
	eventually(h.T, "the state of the API server", func() bool {
		var names []string
		for _, n := range h.sink.sliceNames() {
			if n.Namespace == "shop" {
				names = append(names, n.Name)
			}
		}
		slices.Sort(names)
		web := h.sink.service(lb.ServiceName{Namespace: "shop", Name: "web"})
		return slices.Equal(names, slicesOfShop) && web != nil && web.ClusterIPs[0].String() == s.Spec.ClusterIP
	})
	h.sink.take()
}

// restart kills the API server and starts it again: the sink gets no change by that.
func (h *realTest) restart() {
	h.Helper()
	h.KillAPIServer()
	must(h.T, h.StartAPIServer(h.Context()))
	h.createSlice(realSlice("web-4", "web", "10.1.0.4", nil))
	h.next("set slice shop/web-4")
	h.relabel("web", map[string]string{"irrelevant": "again"})
	must(h.T, h.admin.CoreV1().Nodes().Delete(h.Context(), "n1", metav1.DeleteOptions{}))
	must(h.T, h.admin.CoreV1().Services("shop").Delete(h.Context(), "web", metav1.DeleteOptions{}))
	h.next("no node", "delete service shop/web")
}

// event records an Event on a Service: a real API server accepts it.
func (h *realTest) event() {
	h.Helper()
	h.create(realService("checked", nil))
	h.next("set service shop/checked")
	h.api.ServiceWarning(lb.ServiceName{Namespace: "shop", Name: "checked"}, EventFailedHealthCheck, "port 30000 is taken")
	s, err := h.admin.CoreV1().Services("shop").Get(h.Context(), "checked", metav1.GetOptions{})
	must(h.T, err)
	// The API server has just been restarted. client-go retries a write on the connection
	// to the old process after 10 s or more.
	within(h.T, 90*time.Second, "an Event", func() bool {
		list, err := h.admin.EventsV1().Events("shop").List(h.Context(), metav1.ListOptions{})
		must(h.T, err)
		return len(list.Items) == 1 && list.Items[0].Reason == EventFailedHealthCheck && list.Items[0].Regarding.UID == s.UID
	})
}
