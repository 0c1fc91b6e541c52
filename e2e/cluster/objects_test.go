// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	typeddiscovery "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/util/retry"

	"shunt/lab"
)

// world is a test's namespace, and the fixture.
type world struct {
	*fixture
	t         *testing.T
	namespace string
}

// in makes a namespace for a test, with a name that begins with prefix. Its objects are
// deleted with the test.
func (f *fixture) in(t *testing.T, prefix string) *world {
	t.Helper()
	made, err := f.api.CoreV1().Namespaces().Create(t.Context(),
		&v1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: prefix + "-"}}, metav1.CreateOptions{})
	check(t, err)
	namespace := made.Name
	w := &world{f, t, namespace}
	t.Cleanup(func() {
		ctx := context.Background()
		var group errgroup.Group
		group.SetLimit(16)
		list, err := w.services().List(ctx, metav1.ListOptions{})
		for i := range list.Items {
			group.Go(func() error { return w.services().Delete(ctx, list.Items[i].Name, metav1.DeleteOptions{}) })
		}
		err = errors.Join(err, group.Wait(), w.slices().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}))
		if err == nil { // the next test counts from here
			err = poll(ctx, "the daemon has nothing of namespace "+namespace, func() error {
				d, err := dump(f.daemon.o.root)
				if err == nil && len(f.lines(frontends(d), namespace)) > 0 {
					err = errors.New("it still has some")
				}
				return err
			})
		}
		if err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) services() typedv1.ServiceInterface { return w.api.CoreV1().Services(w.namespace) }

func (w *world) slices() typeddiscovery.EndpointSliceInterface {
	return w.api.DiscoveryV1().EndpointSlices(w.namespace)
}

// tcp and udp are ports of a service.
func tcp(name string, port int32) v1.ServicePort {
	return v1.ServicePort{Name: name, Protocol: v1.ProtocolTCP, Port: port}
}

func udp(name string, port int32) v1.ServicePort {
	return v1.ServicePort{Name: name, Protocol: v1.ProtocolUDP, Port: port}
}

// create creates a service of type ClusterIP. change may change it before.
func (w *world) create(name string, ports []v1.ServicePort, change ...func(*v1.Service)) *v1.Service {
	w.t.Helper()
	s := &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.ServiceSpec{Ports: ports}}
	for _, c := range change {
		c(s)
	}
	s, err := w.services().Create(w.t.Context(), s, metav1.CreateOptions{})
	check(w.t, err)
	return s
}

// update changes a service and returns the result.
func (w *world) update(name string, change func(*v1.Service)) (s *v1.Service) {
	w.t.Helper()
	check(w.t, retry.RetryOnConflict(retry.DefaultRetry, func() (err error) {
		if s, err = w.services().Get(w.t.Context(), name, metav1.GetOptions{}); err != nil {
			return err
		}
		change(s)
		s, err = w.services().Update(w.t.Context(), s, metav1.UpdateOptions{})
		return err
	}))
	return s
}

// ingress sets status.loadBalancer.ingress, as a cloud controller does.
func (w *world) ingress(name string, ingress ...v1.LoadBalancerIngress) {
	w.t.Helper()
	check(w.t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		s, err := w.services().Get(w.t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		s.Status.LoadBalancer.Ingress = ingress
		_, err = w.services().UpdateStatus(w.t.Context(), s, metav1.UpdateOptions{})
		return err
	}))
}

func (w *world) remove(name string) {
	w.t.Helper()
	check(w.t, w.services().Delete(w.t.Context(), name, metav1.DeleteOptions{}))
}

// target returns a port of endpoints.
func target(name string, protocol v1.Protocol, port int32) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &port}
}

// v4 and v6 return ready endpoints on pods, with the pods' nodes.
func v4(pods ...*lab.Pod) []discoveryv1.Endpoint { return endpoints((*lab.Pod).Addr4, pods) }

func v6(pods ...*lab.Pod) []discoveryv1.Endpoint { return endpoints((*lab.Pod).Addr6, pods) }

func endpoints(addr func(*lab.Pod) netip.Addr, pods []*lab.Pod) (all []discoveryv1.Endpoint) {
	for _, p := range pods {
		node := p.Node().Name()
		all = append(all, discoveryv1.Endpoint{
			Addresses: []string{addr(p).String()}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: ptr(true), Serving: ptr(true), Terminating: ptr(false)},
		})
	}
	return all
}

func ptr[T any](v T) *T { return &v }

// newSlice returns a slice in the family of its first endpoint, IPv4 without endpoints.
func newSlice(service, name string, ports []discoveryv1.EndpointPort, eps []discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: ports, Endpoints: eps,
	}
	if len(eps) > 0 && netip.MustParseAddr(eps[0].Addresses[0]).Is6() {
		s.AddressType = discoveryv1.AddressTypeIPv6
	}
	return s
}

// createSlice creates a slice of a service.
func (w *world) createSlice(service, name string, ports []discoveryv1.EndpointPort, eps []discoveryv1.Endpoint,
	change ...func(*discoveryv1.EndpointSlice)) {
	w.t.Helper()
	s := newSlice(service, name, ports, eps)
	for _, c := range change {
		c(s)
	}
	_, err := w.slices().Create(w.t.Context(), s, metav1.CreateOptions{})
	check(w.t, err)
}

func (w *world) updateSlice(name string, change func(*discoveryv1.EndpointSlice)) {
	w.t.Helper()
	check(w.t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		s, err := w.slices().Get(w.t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(s)
		_, err = w.slices().Update(w.t.Context(), s, metav1.UpdateOptions{})
		return err
	}))
}

func (w *world) removeSlice(name string) {
	w.t.Helper()
	check(w.t, w.slices().Delete(w.t.Context(), name, metav1.DeleteOptions{}))
}

// addr returns an address and port. IPv6 addresses have no brackets.
func addr(ip string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(ip), port)
}

// host returns an address as in expected lines.
func host(ip string) string {
	if netip.MustParseAddr(ip).Is6() {
		return "[" + ip + "]"
	}
	return ip
}

// reach connects until each of these pods, and no other, has answered.
func (w *world) reach(from *lab.Pod, network string, to netip.AddrPort, pods ...string) {
	w.t.Helper()
	want := map[string]bool{}
	for _, p := range pods {
		want[p] = true
	}
	seen := map[string]bool{}
	for range 60 * len(pods) { // the chance to miss one is 1 in 10^20
		a := from.Ask(network, to)
		if a.Err != nil || !want[a.Server] {
			w.t.Fatalf("%s from %s to %v: answered by %q (%v), want one of %q", network, from.Name(), to, a.Server, a.Err, pods)
		}
		if seen[a.Server] = true; len(seen) == len(want) {
			return
		}
	}
	w.t.Fatalf("%s from %s to %v: only %v have answered, want all of %q", network, from.Name(), to, seen, pods)
}

// refused checks that a connection is refused.
func (w *world) refused(from *lab.Pod, network string, to netip.AddrPort) {
	w.t.Helper()
	if a := from.Ask(network, to); !errors.Is(a.Err, syscall.ECONNREFUSED) {
		w.t.Fatalf("%s from %s to %v: answered by %q (%v), want ECONNREFUSED", network, from.Name(), to, a.Server, a.Err)
	}
}

// silent checks that no answer arrives, as at an address without a service.
func (w *world) silent(from *lab.Pod, network string, to netip.AddrPort) {
	w.t.Helper()
	a := from.Request(network, to, lab.RequestOptions{Timeout: 200 * time.Millisecond})
	if !errors.Is(a.Err, syscall.ETIMEDOUT) {
		w.t.Fatalf("%s from %s to %v: answered by %q (%v), want silence", network, from.Name(), to, a.Server, a.Err)
	}
}

// awaitNextSecond waits until an object created now is younger than a service.
func (w *world) awaitNextSecond(service string) {
	w.t.Helper()
	s, err := w.services().Get(w.t.Context(), service, metav1.GetOptions{})
	check(w.t, err)
	eventually(w.t, "the clock has moved on", func() error {
		if time.Now().Before(s.CreationTimestamp.Add(time.Second)) {
			return errors.New("it has not")
		}
		return nil
	})
}

// event waits for an Event in this world's namespace, or in default if the object has none.
func (w *world) event(kind, reason, object, name string) (note string) {
	w.t.Helper()
	namespace := w.namespace
	if object == "Node" {
		namespace = metav1.NamespaceDefault
	}
	eventually(w.t, "the event "+reason+" on "+object+" "+name, func() error {
		list, err := w.api.EventsV1().Events(namespace).List(w.t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.Type == kind && e.Reason == reason && e.Regarding.Kind == object && e.Regarding.Name == name {
				note = e.Note
				return nil
			}
		}
		return errors.New("it is not among " + strconv.Itoa(len(list.Items)))
	})
	return note
}

func (w *world) get(name string) *v1.Service {
	w.t.Helper()
	s, err := w.services().Get(w.t.Context(), name, metav1.GetOptions{})
	check(w.t, err)
	return s
}
