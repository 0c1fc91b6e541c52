// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shunt/lb"
)

// bigSlice returns the i-th slice of a cluster of 5,000 nodes in 3 zones. As after
// decoding, every endpoint has strings of its own. The EndpointSlice controller puts at
// most 100 endpoints in a slice by default.
func bigSlice(i, endpoints int) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: fmt.Sprintf("web-%d-x7k2p", i),
			Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("web-%d", i), "app": "web", "managed-by": "controller"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr(strings.Clone("http")), Protocol: ptr(v1.ProtocolTCP), Port: ptr(int32(8080))}},
	}
	for j := range endpoints {
		n := i*endpoints + j
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{fmt.Sprintf("10.%d.%d.%d", n>>16&255, n>>8&255, n&255)},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr(true), Serving: ptr(true), Terminating: ptr(false)},
			NodeName:   ptr(fmt.Sprintf("worker-%d.example.internal", n%5000)),
			Zone:       ptr(fmt.Sprintf("region-1%c", 'a'+n%3)),
			Hints:      &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: fmt.Sprintf("region-1%c", 'a'+n%3)}}},
			TargetRef:  &v1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: fmt.Sprintf("web-%d-%d", i, j), UID: "0a1b2c3d"},
		})
	}
	return s
}

// BenchmarkSlice converts a slice of 100 endpoints.
func BenchmarkSlice(b *testing.B) {
	var c Converter
	s := bigSlice(0, 100)
	b.ReportAllocs()
	for b.Loop() {
		if m, _ := c.Slice(s); len(m.Endpoints) != 100 {
			b.Fatal(m)
		}
	}
}

// BenchmarkService converts a service that uses every field.
func BenchmarkService(b *testing.B) {
	var c Converter
	s := webService()
	b.ReportAllocs()
	for b.Loop() {
		if m, _ := c.Service(s); m == nil {
			b.Fatal("skipped")
		}
	}
}

// BenchmarkParse reads a manifest of a service with one slice.
func BenchmarkParse(b *testing.B) {
	text := []byte(docs(serviceDoc("web", "10.96.0.1"), sliceDoc("web-1", "web", "10.1.0.1")))
	var c Converter
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		for _, d := range splitDocuments(text) {
			if p := c.parse(d); len(p.objects) != 1 {
				b.Fatal(p)
			}
		}
	}
}

// heap returns the live bytes of the heap.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// quietSink is an lb.Sink that keeps nothing.
type quietSink struct{}

func (quietSink) SetService(*lb.Service)       {}
func (quietSink) DeleteService(lb.ServiceName) {}
func (quietSink) SetSlice(*lb.EndpointSlice)   {}
func (quietSink) DeleteSlice(lb.SliceName)     {}
func (quietSink) SetNode(*lb.Node)             {}
func (quietSink) SetSynced()                   {}

// TestMemory measures the memory of the watcher for each endpoint: the model, and its
// share of the slice, of the store's map and of the shared strings.
func TestMemory(t *testing.T) {
	for _, c := range []struct{ slices, endpoints, most int }{
		{1000, 100, 75}, // a few large services
		{10000, 10, 110},
	} {
		a, _ := newTestAPI(t, nil, nil)
		a.slices.set = quietSink{}.SetSlice
		before := heap()
		for i := range c.slices {
			must(t, a.slices.Add(bigSlice(i, c.endpoints)))
		}
		held := heap() - before
		each := held / int64(c.slices*c.endpoints)
		t.Logf("%d slices of %d endpoints: %d kB, %d bytes an endpoint", c.slices, c.endpoints, held>>10, each)
		if each > int64(c.most) {
			t.Errorf("%d bytes an endpoint, more than %d", each, c.most)
		}
		runtime.KeepAlive(a)
	}
}
