// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"shunt/lb"
)

// recorded is a Recorder that keeps its Events.
type recorded struct{ list []string }

func (r *recorded) ServiceWarning(s lb.ServiceName, uid types.UID, reason, note string) {
	r.list = append(r.list, s.String()+" "+string(uid)+" "+reason+": "+note)
}

func newTestAPI(t *testing.T, log *zap.Logger, r Recorder) (*API, *sink) {
	t.Helper()
	s := newSink(t)
	a, err := NewAPI(APIOptions{Client: fake.NewClientset(), NodeName: "n1", Sink: s, Log: log, Recorder: r})
	if err != nil {
		t.Fatal(err)
	}
	return a, s
}

func slice(name string, change ...func(*discoveryv1.EndpointSlice)) *discoveryv1.EndpointSlice {
	s := webSlice()
	s.Name = name
	for _, c := range change {
		c(s)
	}
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRelist: a list after a lost watch passes only the difference to the Sink, and sets
// before it removes.
func TestRelist(t *testing.T) {
	a, s := newTestAPI(t, nil, nil)
	must(t, a.slices.Replace([]any{slice("a"), slice("b"), slice("c")}, "1"))
	s.same(s.take(), []string{"set slice shop/a", "set slice shop/b", "set slice shop/c"})
	select {
	case <-a.slices.synced:
	default:
		t.Fatal("the first list is passed on, but not synced")
	}
	held := s.slices[lb.SliceName{Namespace: "shop", Name: "a"}]

	must(t, a.slices.Replace([]any{slice("a"), slice("b"), slice("c")}, "1"))
	s.same(s.take(), nil)
	if a.slices.held[held.Name].model != held {
		t.Error("an equal object replaced the one that the Sink has: there are two in memory")
	}

	ready := func(e *discoveryv1.EndpointSlice) { e.Endpoints[1].Conditions.Ready = ptr(false) }
	must(t, a.slices.Replace([]any{slice("a"), slice("b", ready), slice("d")}, "2"))
	calls := s.take()
	s.same(calls, []string{"set slice shop/b", "set slice shop/d", "delete slice shop/c"})
	if calls[2] != "delete slice shop/c" {
		t.Errorf("removed before all was set: %q", calls)
	}
	must(t, a.slices.Replace(nil, "3"))
	s.same(s.take(), []string{"delete slice shop/a", "delete slice shop/b", "delete slice shop/d"})
}

// TestStreamedList: Replace accepts the results of the transformer, as a streamed list has
// them.
func TestStreamedList(t *testing.T) {
	a, s := newTestAPI(t, nil, nil)
	made, err := a.slices.Transformer()(slice("a"))
	must(t, err)
	again, err := a.slices.Transformer()(made)
	must(t, err)
	must(t, a.slices.Replace([]any{again}, "1"))
	s.same(s.take(), []string{"set slice shop/a"})
	if _, err := a.slices.Transformer()(&v1.Pod{}); err == nil {
		t.Error("an object of another type is taken")
	}
	if a.slices.Add("nonsense") == nil || a.slices.Replace([]any{"nonsense"}, "") == nil {
		t.Error("what is no object is taken")
	}
}

// TestServiceTurns follows one service through all kinds of changes.
func TestServiceTurns(t *testing.T) {
	a, s := newTestAPI(t, nil, nil)
	must(t, a.services.Add(webService()))
	s.same(s.take(), []string{"set service shop/web"})

	touched := webService()
	touched.Annotations = map[string]string{"irrelevant": "change"}
	touched.ResourceVersion = "7"
	must(t, a.services.Update(touched))
	s.same(s.take(), nil)

	external := webService()
	external.Spec.Type = v1.ServiceTypeExternalName
	must(t, a.services.Update(external))
	s.same(s.take(), []string{"leave service shop/web"})
	must(t, a.services.Update(external))
	s.same(s.take(), nil)

	must(t, a.services.Update(webService()))
	s.same(s.take(), []string{"set service shop/web"})
	name := lb.ServiceName{Namespace: "shop", Name: "web"}
	if a.services.uid(name) != "u1" {
		t.Errorf("UID %q", a.services.uid(name))
	}

	// Deleted and created again between two lists: one replacement.
	other := webService()
	other.UID, other.CreationTimestamp.Time = "u2", other.CreationTimestamp.Add(1e9)
	must(t, a.services.Update(other))
	s.same(s.take(), []string{"set service shop/web"})
	if a.services.uid(name) != "u2" {
		t.Errorf("UID %q after it was made again", a.services.uid(name))
	}
	other = other.DeepCopy() // created again, with an equal model
	other.UID = "u3"
	must(t, a.services.Update(other))
	if s.same(s.take(), nil); a.services.uid(name) != "u3" {
		t.Errorf("UID %q after it was made again as it was", a.services.uid(name))
	}

	must(t, a.services.Delete(other))
	s.same(s.take(), []string{"delete service shop/web"})
	must(t, a.services.Delete(other))
	s.same(s.take(), nil)
}

// TestWarnings: each warning is logged once, and again only after it was gone. An Event is
// recorded on the Service, with its UID.
func TestWarnings(t *testing.T) {
	log, logs := testLog(zap.WarnLevel)
	r := &recorded{}
	a, _ := newTestAPI(t, log, r)
	must(t, a.services.Add(webService()))
	bad := func(addrs ...string) *discoveryv1.EndpointSlice {
		return slice("a", func(s *discoveryv1.EndpointSlice) {
			for _, addr := range addrs {
				s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr}})
			}
		})
	}
	must(t, a.slices.Replace([]any{bad("fd00::1")}, "1"))
	must(t, a.slices.Replace([]any{bad("fd00::1")}, "1"))
	must(t, a.slices.Update(bad("10.1.0.7", "fd00::1"))) // the index changes
	const text = `"fd00::1" is IPv6, but addressType is IPv4: endpoint ignored`
	if n := said(logs, text); n != 1 || logs.Len() != 1 {
		t.Errorf("said %d times, in %d lines", n, logs.Len())
	}
	if len(r.list) != 1 || !strings.Contains(r.list[0], "shop/web u1 "+EventIncorrectIPVersion+": EndpointSlice shop/a: endpoints[2].addresses[0]: "+text) {
		t.Errorf("events: %q", r.list)
	}

	must(t, a.slices.Update(bad()))
	must(t, a.slices.Update(bad("fd00::1")))
	if n := said(logs, text); n != 2 {
		t.Errorf("a fault that came back: said %d times", n)
	}
	must(t, a.slices.Delete(bad()))
	if len(a.slices.reports.said) != 0 {
		t.Error("something is remembered of an object that is gone")
	}
	must(t, a.slices.Add(bad("fd00::1")))
	must(t, a.slices.Replace(nil, "2"))
	if len(a.slices.reports.said) != 0 {
		t.Error("something is remembered of an object that a list no longer has")
	}

	before := logs.Len()
	var many []string
	for i := range 1000 {
		many = append(many, strings.Repeat("x", i%50)+"!")
	}
	must(t, a.slices.Add(bad(many...)))
	if n := logs.Len() - before; n != mostSaid+1 {
		t.Errorf("one object put %d lines in the log", n)
	}
	a.ServiceWarning(lb.ServiceName{Namespace: "shop", Name: "web"}, EventFailedHealthCheck, "the port is taken")
	if last := r.list[len(r.list)-1]; last != "shop/web u1 FailedToStartServiceHealthcheck: the port is taken" {
		t.Errorf("event: %q", last)
	}
}

// TestWarningsOfManyVersions: an object whose every version has other faults has few lines
// in the log, with the number that was left out. Another object has lines of its own.
func TestWarningsOfManyVersions(t *testing.T) {
	log, logs := testLog(zap.WarnLevel)
	a, _ := newTestAPI(t, log, nil)
	clock := time.Unix(0, 0)
	a.slices.reports.now = func() time.Time { return clock }
	version := func(name string, n int) *discoveryv1.EndpointSlice {
		return slice(name, func(s *discoveryv1.EndpointSlice) {
			for i := range 11 {
				s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("bad-%d-%d", n, i)}})
			}
		})
	}
	for n := range 100 {
		must(t, a.slices.Update(version("a", n)))
	}
	if logs.Len() != mostSaid+1 {
		t.Errorf("100 versions put %d lines in the log, want %d", logs.Len(), mostSaid+1)
	}
	must(t, a.slices.Update(version("b", 0)))
	if logs.Len() != 2*(mostSaid+1) {
		t.Errorf("another object put %d lines in the log", logs.Len()-mostSaid-1)
	}
	clock = clock.Add(sayAgainIn)
	must(t, a.slices.Update(version("a", 100)))
	last := logs.All()[logs.Len()-1]
	for _, entry := range logs.All()[2*(mostSaid+1):] {
		if n, counts := entry.ContextMap()["warnings_left_out"]; counts && n == int64(100*11-mostSaid) {
			return
		}
	}
	t.Errorf("no later line counts %d that were left out; the last is %v", 100*11-mostSaid, last)
}

// TestWarningsOfManyObjects: log lines and Events are also bounded for an object that is
// created again and again under new names, each time with the same fault.
func TestWarningsOfManyObjects(t *testing.T) {
	log, logs := testLog(zap.WarnLevel)
	rec, now := &recorded{}, time.Unix(0, 0)
	r := reporter[lb.ServiceName]{log: log, recorder: rec, uidOf: func(lb.ServiceName) types.UID { return "" },
		now: func() time.Time { return now }}
	made := 0
	again := func(n int) {
		for range n {
			made++
			name := lb.ServiceName{Namespace: "shop", Name: fmt.Sprint("web", made)}
			w := Warning{Kind: kindService, Namespace: name.Namespace, Name: name.Name, Field: "spec.externalIPs[0]",
				Problem: "bad", Event: EventIncorrectIPVersion, Service: name}
			r.report(name, []Warning{w})
			r.forget(name)
		}
	}
	again(5000)
	if n := logs.Len(); n != mostSaidOfAll+1 {
		t.Errorf("5,000 objects put %d lines in the log, want %d", n, mostSaidOfAll+1)
	}
	if n := len(rec.list); n != mostEvents {
		t.Errorf("5,000 objects made %d Events, want %d", n, mostEvents)
	}
	logs.TakeAll()
	now = now.Add(3 * sayAgainOfAllIn)
	again(100)
	lines := logs.TakeAll()
	if len(lines) != 4 || lines[0].ContextMap()["lines_left_out_of_all"] != int64(5000-mostSaidOfAll) {
		t.Errorf("later there are %d lines, the first %v", len(lines), lines[0].ContextMap())
	}
}
