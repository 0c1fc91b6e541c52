// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shunt/maps"
)

const manyServices = 1000

// manyService returns a service: IPv4, IPv6 or both, TCP or UDP, by its number.
func manyService(i int) (*v1.Service, string) {
	port, network := tcp("main", 80), "tcp"
	if i%5 == 0 {
		port, network = udp("main", 80), "udp"
	}
	s := &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("svc-%d", i)},
		Spec: v1.ServiceSpec{Ports: []v1.ServicePort{port}}}
	switch i % 4 {
	case 0:
		s.Spec.IPFamilies = []v1.IPFamily{v1.IPv6Protocol}
	case 1:
		s.Spec.IPFamilyPolicy = ptr(v1.IPFamilyPolicyRequireDualStack)
	}
	return s, network
}

// manyPort returns the port of a service's endpoints.
func manyPort(i int) int32 { return firstPort + int32(i%portCount) }

// TestThousandServices is the main use: a thousand services of ten endpoints each are
// created in the API server, and every one answers, by one of its own endpoints.
func TestThousandServices(t *testing.T) {
	w := setUp(t).in(t, "many")
	made := make([]*v1.Service, manyServices)
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(16)
	for i := range made {
		group.Go(func() (err error) {
			s, _ := manyService(i)
			if made[i], err = w.services().Create(ctx, s, metav1.CreateOptions{}); err != nil {
				return err
			}
			ports := []discoveryv1.EndpointPort{target("main", s.Spec.Ports[0].Protocol, manyPort(i))}
			for _, f := range made[i].Spec.IPFamilies {
				eps := v4(w.pods...)
				if f == v1.IPv6Protocol {
					eps = v6(w.pods...)
				}
				sl := newSlice(s.Name, fmt.Sprintf("%s-%s", s.Name, strings.ToLower(string(f))), ports, eps)
				if _, err := w.slices().Create(ctx, sl, metav1.CreateOptions{}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	check(t, group.Wait())
	var want []string
	for i, s := range made {
		want = append(want, w.manyLines(i, s)...)
	}
	w.expect(t, w.namespace, want...)
	asked := 0
	for i, s := range made {
		_, network := manyService(i)
		for _, ip := range s.Spec.ClusterIPs {
			w.answered(network, addr(ip, 80), uint16(manyPort(i)))
			asked++
		}
	}
	if want := manyServices * 5 / 4; asked != want {
		t.Errorf("%d addresses were asked, want %d", asked, want)
	}
	all := w.podNames()
	for i := range portCount { // of some services, every endpoint
		_, network := manyService(i)
		for _, ip := range made[i].Spec.ClusterIPs {
			w.reach(w.client, network, addr(ip, 80), all...)
		}
	}
	w.expectFresh(t)
	w.expectWrites()
}

func (w *world) podNames() (names []string) {
	for _, p := range w.pods {
		names = append(names, p.Name())
	}
	return names
}

func (w *world) manyLines(i int, s *v1.Service) (lines []string) {
	var to []string
	for _, name := range w.podNames() {
		to = append(to, fmt.Sprintf("%s:%d", name, manyPort(i)))
	}
	for _, ip := range s.Spec.ClusterIPs {
		lines = append(lines, fmt.Sprintf("%s:main ClusterIP %s:80/%s Cluster %s",
			s.Name, host(ip), s.Spec.Ports[0].Protocol, strings.Join(to, " ")))
	}
	return lines
}

// answered makes one exchange. A pod must answer at that port, and see its own address as
// the destination.
func (w *world) answered(network string, to netip.AddrPort, port uint16) {
	w.t.Helper()
	a := w.client.Ask(network, to)
	at := a.ServedAt.Addr().Unmap()
	if a.Err != nil || w.names[at] != a.Server || !slices.Contains(w.podNames(), a.Server) || a.ServedAt.Port() != port {
		w.t.Fatalf("%s to %v: answered by %q at %v (%v), want one of the pods at port %d", network, to, a.Server, a.ServedAt, a.Err, port)
	}
}

// expectWrites changes one endpoint of one of the services. The daemon must write only what
// that requires.
func (w *world) expectWrites() {
	w.t.Helper()
	before := w.daemon.metrics(w.t)
	w.updateSlice("svc-2-ipv4", func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses[0] = "10.244.1.250" })
	eventually(w.t, "the changed endpoint is in the maps", func() error {
		d, err := dump(w.daemon.o.root)
		if err != nil {
			return err
		}
		for _, be := range d.Backends {
			if be.AddrPort() == addr("10.244.1.250", uint16(manyPort(2))) && be.Flags&maps.ClusterSet != 0 {
				return nil
			}
		}
		return fmt.Errorf("it is not among %d", len(d.Backends))
	})
	eventually(w.t, "the writes are counted", func() error {
		after := w.daemon.metrics(w.t)
		for kind, want := range map[string]float64{"frontends": 1, "slots": podCount, "backends": 2, "names": 0} {
			name := `shunt_map_writes_total{kind="` + kind + `"}`
			if got := after[name] - before[name]; got != want {
				return fmt.Errorf("%v writes to %s, want %v", got, kind, want)
			}
		}
		return nil
	})
}
