// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	v1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"shunt/lab"
)

// unallocated checks that a connection is refused at once because no service has the
// address.
func (w *world) unallocated(from *lab.Pod, network string, to netip.AddrPort) {
	w.t.Helper()
	if a := from.Ask(network, to); !errors.Is(a.Err, syscall.EHOSTUNREACH) {
		w.t.Fatalf("%s from %s to %v: answered by %q (%v), want EHOSTUNREACH", network, from.Name(), to, a.Server, a.Err)
	}
}

// expectCIDR waits until a range is, or is not, in the daemon's maps.
func (w *world) expectCIDR(cidr string, there bool) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("service CIDR %s is in the maps: %t", cidr, there), func() error {
		d, err := dump(w.daemon.o.root)
		if err == nil && slices.Contains(d.ServiceCIDRs, netip.MustParsePrefix(cidr)) != there {
			err = fmt.Errorf("there are %v", d.ServiceCIDRs)
		}
		return err
	})
}

// TestServiceCIDRs adds a range to the initial ones of the API server, makes a service in
// it, and removes the range.
func TestServiceCIDRs(t *testing.T) {
	w := setUp(t).in(t, "cidrs")
	const cidr, ip, free = "10.222.0.0/24", "10.222.0.7", "10.222.0.8"
	for _, network := range []string{"tcp", "udp"} {
		w.silent(w.client, network, addr(free, 80))
	}
	api := w.api.NetworkingV1().ServiceCIDRs()
	// The finalizer simulates that of the controller, which does not run here.
	_, err := api.Create(t.Context(), &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "more", Finalizers: []string{"test.example/in-use"}},
		Spec:       networkingv1.ServiceCIDRSpec{CIDRs: []string{cidr}}}, metav1.CreateOptions{})
	check(t, err)
	release := func(ctx context.Context) error {
		_, err := api.Patch(ctx, "more", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		return err
	}
	t.Cleanup(func() {
		ctx := context.Background()
		err := errors.Join(release(ctx), api.Delete(ctx, "more", metav1.DeleteOptions{}))
		if t.Failed() { // otherwise it is gone
			t.Logf("ServiceCIDR more is taken away: %v", err)
		}
	})
	w.expectCIDR(cidr, true)
	for _, from := range []*lab.Pod{w.client, w.host} {
		for _, network := range []string{"tcp", "udp"} {
			w.unallocated(from, network, addr(free, 80))
			w.unallocated(from, network, addr(ip, 80))
		}
	}
	w.create("web", []v1.ServicePort{tcp("", 80)}, func(s *v1.Service) { s.Spec.ClusterIP = ip })
	w.createSlice("web", "web-1", onePort, v4(w.pods[0]))
	w.expect(t, w.namespace, fmt.Sprintf("web ClusterIP %s:80/TCP Cluster p0:8000", ip))
	w.reach(w.client, "tcp", addr(ip, 80), "p0")
	w.refused(w.client, "tcp", addr(ip, 81))
	w.unallocated(w.client, "tcp", addr(free, 80))
	w.expectFresh(t)

	check(t, api.Delete(t.Context(), "more", metav1.DeleteOptions{}))
	w.remove("web")
	w.expect(t, w.namespace)
	w.unallocated(w.client, "tcp", addr(ip, 80)) // the range is being deleted, but still exists
	check(t, release(t.Context()))
	w.expectCIDR(cidr, false)
	w.silent(w.client, "tcp", addr(ip, 80))
	w.expectFresh(t)
}
