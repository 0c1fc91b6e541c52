// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"

	"shunt/maps"
)

// Manifests is the file that daemons read. It is replaced as a whole, so that a daemon sees
// a change at once and complete.
type Manifests struct {
	t       *testing.T
	Path    string
	objects map[string]any // by kind and name
	// generation counts writes. In the file it is the port of the only endpoint of a
	// service that sorts last: once it is in the maps, the rest of the change is too.
	generation uint16
}

// mark is the frontend of the service that shows the generation.
var mark = netip.MustParseAddrPort("10.96.255.255:9")

// NewManifests returns a manifest file in a directory. Write creates it.
func NewManifests(t *testing.T, dir string) *Manifests {
	t.Helper()
	return &Manifests{t: t, Path: filepath.Join(dir, "all.yaml"), objects: map[string]any{}}
}

func keyOf(object any) string {
	switch o := object.(type) {
	case *corev1.Service:
		return "service " + o.Name
	case *discoveryv1.EndpointSlice:
		return "slice " + o.Name
	case *corev1.Node:
		return "node " + o.Name
	}
	panic(fmt.Sprintf("no key for a %T", object))
}

// Put adds or replaces objects. The elements of a []any are added one by one.
func (m *Manifests) Put(objects ...any) {
	for _, o := range objects {
		if list, ok := o.([]any); ok {
			m.Put(list...)
			continue
		}
		m.objects[keyOf(o)] = o
	}
}

// RemoveService removes a service and its slices.
func (m *Manifests) RemoveService(name string) {
	delete(m.objects, "service "+name)
	delete(m.objects, "slice "+name+"-v4")
	delete(m.objects, "slice "+name+"-v6")
}

// Write writes the file with all objects.
func (m *Manifests) Write() {
	m.t.Helper()
	m.generation++
	var b bytes.Buffer
	all := slices.AppendSeq(m.marker(), func(yield func(any) bool) {
		for _, o := range m.objects {
			if !yield(o) {
				return
			}
		}
	})
	for _, o := range all {
		text, err := yaml.Marshal(o)
		if err != nil {
			m.t.Fatal(err)
		}
		b.WriteString("---\n")
		b.Write(text)
	}
	if err := os.WriteFile(m.Path+".new", b.Bytes(), 0o644); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(m.Path+".new", m.Path); err != nil {
		m.t.Fatal(err)
	}
}

// marker returns the service of the generation. Its slice has a new name each time: the
// last event of a change is the deletion of the previous one.
func (m *Manifests) marker() []any {
	svc := Service("zzz", 1)
	svc.Namespace = "zzz"
	svc.Spec.ClusterIP, svc.Spec.ClusterIPs = mark.Addr().String(), []string{mark.Addr().String()}
	svc.Spec.IPFamilies = svc.Spec.IPFamilies[:1]
	svc.Spec.Ports = svc.Spec.Ports[1:]
	svc.Spec.Ports[0].Port = int32(mark.Port())
	s := NewSlice("zzz", fmt.Sprintf("zzz-%d", m.generation), discoveryv1.AddressTypeIPv4)
	s.Namespace = "zzz"
	port := int32(m.generation)
	s.Ports = []discoveryv1.EndpointPort{{Name: &svc.Spec.Ports[0].Name, Protocol: &svc.Spec.Ports[0].Protocol, Port: &port}}
	s.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{mark.Addr().String()}}}
	return []any{svc, s}
}

// Settle waits until the daemon's maps hold the content of the file.
func (m *Manifests) Settle(d *Daemon) {
	m.t.Helper()
	want := []netip.AddrPort{netip.AddrPortFrom(mark.Addr(), m.generation)}
	Eventually(m.t, fmt.Sprintf("generation %d is in the maps of %s", m.generation, d.Node.Name()), func() bool {
		if !d.Alive() {
			m.t.Fatalf("the daemon ended: %v", d.Cmd.Wait())
		}
		return slices.Equal(BackendsOf(d.Dump(), mark, 17), want)
	})
}

// BackendsOf returns the backends for new connections from this node to a frontend, sorted.
func BackendsOf(dump *maps.Dump, frontend netip.AddrPort, protocol uint8) []netip.AddrPort {
	svc := dump.Frontends[maps.NewFrontendKey(frontend.Addr(), frontend.Port(), protocol)]
	ids, _ := dump.Range(svc.Inside) // a partly written change has ranges, too
	var all []netip.AddrPort
	for _, id := range ids {
		all = append(all, dump.Backends[id].AddrPort())
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return all
}
