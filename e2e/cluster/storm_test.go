// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"shunt/lab"
)

// mutations is the number of mutated objects in a storm.
const mutations = 1000

// valid returns a service and a slice of it that use every field that shunt reads.
func (w *world) valid(name string) (*v1.Service, *discoveryv1.EndpointSlice) {
	s := &v1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: name},
		Spec: v1.ServiceSpec{
			Type: v1.ServiceTypeLoadBalancer, Ports: []v1.ServicePort{tcp("a", 80), udp("b", 81)},
			IPFamilies: []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol}, IPFamilyPolicy: ptr(v1.IPFamilyPolicyRequireDualStack),
			ExternalIPs: []string{"198.51.100.99"}, LoadBalancerSourceRanges: []string{"10.0.0.0/8"},
			ExternalTrafficPolicy: v1.ServiceExternalTrafficPolicyLocal, InternalTrafficPolicy: ptr(v1.ServiceInternalTrafficPolicyCluster),
			SessionAffinity:       v1.ServiceAffinityClientIP,
			SessionAffinityConfig: &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{TimeoutSeconds: ptr(int32(600))}},
		},
	}
	ports := []discoveryv1.EndpointPort{target("a", v1.ProtocolTCP, 8000), target("b", v1.ProtocolUDP, 8001)}
	e := newSlice(name, name+"-1", ports, v4(w.pods[:3]...))
	e.TypeMeta = metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}
	e.Namespace = w.namespace
	e.Endpoints[0].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}, ForNodes: []discoveryv1.ForNode{{Name: "n1"}}}
	return s, e
}

// TestMutatedObjects sends a thousand mutated Services and EndpointSlices to the API
// server. It refuses many; those that it accepts must not affect other services.
func TestMutatedObjects(t *testing.T) {
	f := setUp(t)
	canary := f.in(t, "canary").faulty(f.daemon, f.client)
	w := f.in(t, "storm")
	var taken, refused atomic.Int64
	var group errgroup.Group
	group.SetLimit(4)
	for seed := range mutations / 2 {
		group.Go(func() error {
			r := rand.New(rand.NewPCG(uint64(seed), 3))
			s, e := w.valid(fmt.Sprint("s", seed%40)) // created, then changed repeatedly
			for path, body := range map[string][]byte{
				"/api/v1/namespaces/" + w.namespace + "/services":                         mutated(r, s),
				"/apis/discovery.k8s.io/v1/namespaces/" + w.namespace + "/endpointslices": mutated(r, e),
			} {
				name := s.Name
				if path[:5] == "/apis" {
					name = e.Name
				}
				err := w.put(path, name, body)
				switch {
				case err == nil:
					taken.Add(1)
				case isRefusal(err):
					refused.Add(1)
				default:
					return fmt.Errorf("%s: %w", body, err)
				}
			}
			return nil
		})
	}
	check(t, group.Wait())
	t.Logf("the API server took %d mutated objects and refused %d", taken.Load(), refused.Load())
	if taken.Load() < 100 || refused.Load() < 100 {
		t.Error("the mutations are too tame or too wild")
	}
	canary.to(w.pods[1], w.pods[6])
	canary.has("p1", "p6")
	canary.unhurt()
	check(t, w.daemon.alive())
	w.daemon.sound(t)
	w.expectFresh(t)
}

// isRefusal reports whether an error is an answer of the API server. (For a duplicate node
// port it has another error type.)
func isRefusal(err error) bool {
	status := apierrors.APIStatus(nil)
	return errors.As(err, &status)
}

// put replaces an object, or creates it if it does not exist.
func (w *world) put(path, name string, body []byte) error {
	client := w.api.CoreV1().RESTClient()
	err := client.Put().AbsPath(path, name).SetHeader("Content-Type", "application/json").Body(body).Do(w.t.Context()).Error()
	if apierrors.IsNotFound(err) {
		err = client.Post().AbsPath(path).SetHeader("Content-Type", "application/json").Body(body).Do(w.t.Context()).Error()
	}
	return err
}

// TestMutatedManifests has a daemon read a thousand mutated objects from files, which no
// API server has checked.
func TestMutatedManifests(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	n := f.testNode(t, "files")
	client := n.Pod("client")
	w := &world{f, t, "files"}
	dir := t.TempDir()
	const ip, ip6, mark = "10.96.200.1", "fd00:10:96::c801", "10.96.200.2"
	for name, at := range map[string]string{"canary": ip, "canary6": ip6, "mark": mark} {
		w.write(filepath.Join(dir, "0-"+name+".yaml"), w.manifest(name, at, 80)...)
	}
	o := daemonOptions{name: "files", node: n, manifests: dir, healthz: "127.0.0.1:10256"}
	d := w.runFor(t, o)
	d.await(t, `"in effect"`)
	load := client.StartHammer("tcp", addr(ip, 80), lab.HammerOptions{Duration: 10 * time.Minute, Rate: 100})
	load6 := client.StartHammer("tcp6", addr(ip6, 80), lab.HammerOptions{Duration: 10 * time.Minute, Rate: 100})
	const batch = 50
	for round := range mutations/batch + 1 {
		for i := range batch / 2 {
			s, e := w.valid(fmt.Sprint("s", i))
			s.Spec.ClusterIP = fmt.Sprintf("10.96.201.%d", i)
			s.Spec.ClusterIPs = []string{s.Spec.ClusterIP, fmt.Sprintf("fd00:10:96::c9%02x", i)}
			r := rand.New(rand.NewPCG(uint64(round*batch+i), 4))
			file := filepath.Join(dir, fmt.Sprintf("s%d.yaml", i))
			if round < mutations/batch {
				w.write(file, mutated(r, s), mutated(r, e))
			} else { // valid again: nothing of earlier bad versions may remain
				w.write(file, text(t, s), text(t, e))
			}
		}
		port := 1000 + int32(round)
		w.write(filepath.Join(dir, "0-mark.yaml"), w.manifest("mark", mark, port)...)
		eventually(t, fmt.Sprintf("round %d is read", round), func() error {
			list, err := shuntServices(d.o.root, fmt.Sprintf("%s:%d", mark, port))
			if err == nil && len(list) != 1 {
				err = fmt.Errorf("%d frontends have the mark's address", len(list))
			}
			return errors.Join(err, d.alive())
		})
		w.reach(client, "tcp", addr(mark, uint16(port)), "p0", "p5")
	}
	for _, l := range []*lab.Hammering{load, load6} {
		sum, err := l.Stop()
		check(t, err)
		if sum.Done == 0 || sum.Answered != sum.Done {
			t.Errorf("of %d connections %d were answered: %s", sum.Done, sum.Answered, sum.FirstError)
		}
	}
	d.answers(t, "/livez", 200, "lastUpdated")
	if n := d.log.count(`"warn"`) + d.log.count(`"error"`); n < 100 {
		t.Errorf("only %d lines say what is wrong with the manifests", n)
	}
	w.sameAsFresh(d, client)
}

// sameAsFresh checks that a daemon's maps equal those of another daemon that starts now.
func (w *world) sameAsFresh(d *daemon, client *lab.Pod) {
	w.t.Helper()
	o := d.o
	o.name, o.root, o.healthz, o.cgroup = "files-fresh", filepath.Join(o.node.BPFFS(), "files-fresh"), "", client.Cgroup()
	fresh := w.runFor(w.t, o)
	fresh.await(w.t, `"in effect"`)
	eventually(w.t, "the maps are those of a fresh daemon", func() error {
		a, err := mapsText(d.o.root)
		if err != nil {
			return err
		}
		b, err := mapsText(o.root)
		return errors.Join(err, sameLines(a, b))
	})
}

// manifest returns a service with two pods behind it.
func (w *world) manifest(name, ip string, port int32) [][]byte {
	s := &v1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: name},
		Spec:       v1.ServiceSpec{ClusterIP: ip, Ports: []v1.ServicePort{tcp("", port)}}}
	eps := v4(w.pods[0], w.pods[5])
	if addr(ip, 80).Addr().Is6() {
		eps = v6(w.pods[0], w.pods[5])
	}
	e := newSlice(name, name+"-1", onePort, eps)
	e.TypeMeta, e.Namespace = metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}, w.namespace
	return [][]byte{text(w.t, s), text(w.t, e)}
}

func text(t *testing.T, object any) []byte {
	t.Helper()
	out, err := yaml.Marshal(object)
	check(t, err)
	return out
}

// write replaces a file in one step, as editors and ConfigMap volumes do.
func (w *world) write(file string, documents ...[]byte) {
	w.t.Helper()
	next := file + ".next"
	check(w.t, os.WriteFile(next, bytes.Join(documents, []byte("\n---\n")), 0o600))
	check(w.t, os.Rename(next, file))
}
