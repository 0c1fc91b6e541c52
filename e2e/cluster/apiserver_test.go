// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typeddiscovery "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/tools/clientcmd"

	"shunt/e2e/kube"
)

// serverSlice is the EndpointSlice of the kubernetes Service, which the API server does not
// write in this test.
type serverSlice struct {
	t   *testing.T
	api typeddiscovery.EndpointSliceInterface
}

// set replaces the endpoints. Without arguments the slice is empty.
func (s serverSlice) set(endpoints ...netip.AddrPort) {
	s.t.Helper()
	slice, err := s.api.Get(s.t.Context(), "kubernetes", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		slice, err = s.api.Create(s.t.Context(), &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
			AddressType: discoveryv1.AddressTypeIPv4}, metav1.CreateOptions{})
	}
	check(s.t, err)
	slice.Endpoints, slice.Ports = nil, nil
	for _, e := range endpoints {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{e.Addr().String()}})
		slice.Ports = []discoveryv1.EndpointPort{target("https", v1.ProtocolTCP, int32(e.Port()))}
	}
	_, err = s.api.Update(s.t.Context(), slice, metav1.UpdateOptions{})
	check(s.t, err)
}

// targets returns the endpoints for clients on the node.
func (fe frontend) targets() string {
	var all []string
	for _, be := range fe.Inside {
		all = append(all, fmt.Sprintf("%s:%d", be.Address, be.Port))
	}
	return strings.Join(all, " ")
}

// kubeconfigOf writes a kubeconfig with another address of the API server.
func (f *fixture) kubeconfigOf(t *testing.T, server string) string {
	t.Helper()
	config, err := clientcmd.LoadFromFile(f.kubeconfig())
	check(t, err)
	for _, c := range config.Clusters {
		c.Server, c.TLSServerName = server, "kubernetes.default.svc"
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	check(t, clientcmd.WriteToFile(*config, path))
	return path
}

// TestAPIServerBehindOwnService has a daemon that reaches the API server only through the
// kubernetes Service, which the daemon programs itself. However the Service's EndpointSlice
// changes, at run time and while the daemon is down, the daemon must reach the API server
// again.
func TestAPIServerBehindOwnService(t *testing.T) {
	w := setUp(t).in(t, "own-service")
	n := w.testNode(t, "own")
	way, err := kube.NewProxy(n.NetnsPath(), netip.AddrPortFrom(n.Addr4(), 0).String(), w.kube.Addr())
	check(t, err)
	t.Cleanup(way.Close)
	endpoint, closed := netip.MustParseAddrPort(way.Addr()), netip.AddrPortFrom(n.Addr4(), 1)
	slice := serverSlice{t, w.api.DiscoveryV1().EndpointSlices("default")}
	slice.set(endpoint)
	t.Cleanup(func() { check(t, slice.api.Delete(context.Background(), "kubernetes", metav1.DeleteOptions{})) })
	service, err := w.api.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	check(t, err)
	const name = "kubernetes"
	programmed := func(d *daemon, endpoints string) {
		t.Helper()
		eventually(t, fmt.Sprintf("the kubernetes Service leads to %q", endpoints), func() error {
			list, err := shuntServices(d.o.root, service.Spec.ClusterIP+":443")
			if err == nil && (len(list) != 1 || list[0].targets() != endpoints) {
				err = fmt.Errorf("it has %v", list)
			}
			return err
		})
	}
	created := 0
	informed := func(d *daemon) {
		t.Helper()
		created++
		svc := fmt.Sprint(name, "-", created)
		ip := w.create(svc, []v1.ServicePort{tcp("", 80)}).Spec.ClusterIP
		eventually(t, "the daemon hears of a new Service", func() error {
			list, err := shuntServices(d.o.root, ip+":80")
			if err == nil && len(list) != 1 {
				err = fmt.Errorf("it has %v; its log ends with:\n%s", list, d.log.tail(5))
			}
			return err
		})
	}

	// The first daemon uses another address, as on a node where kube-proxy still runs.
	o := daemonOptions{name: "own", node: n}
	d := w.runFor(t, o)
	programmed(d, endpoint.String())
	d.stop(t)
	n.api.Close()
	o.kubeconfig = w.kubeconfigOf(t, "https://"+service.Spec.ClusterIP+":443")
	d = w.runFor(t, o)
	d.await(t, `"in effect"`)
	informed(d)

	for _, c := range []struct {
		name      string
		endpoints []netip.AddrPort
		now       string
	}{
		{"empty", nil, ""},
		{"elsewhere", []netip.AddrPort{closed}, closed.String()},
	} {
		t.Logf("the slice becomes: %s", c.name)
		slice.set(c.endpoints...)
		programmed(d, c.now)
		way.Cut()
		informed(d)
		d.kill(t)
		d = d.again(t, w.fixture)
		d.await(t, `"in effect"`)
		informed(d)
		way.Cut()
		informed(d)

		slice.set(endpoint)
		programmed(d, endpoint.String())
		d.kill(t)
		t.Logf("the slice becomes, while the daemon is down: %s", c.name)
		slice.set(c.endpoints...)
		for range 2 {
			d = d.again(t, w.fixture)
			d.await(t, `"in effect"`)
			programmed(d, c.now)
			way.Cut()
			informed(d)
			d.kill(t)
		}
		d = d.again(t, w.fixture)
		d.await(t, `"in effect"`)
		slice.set(endpoint)
		programmed(d, endpoint.String())
	}
}
