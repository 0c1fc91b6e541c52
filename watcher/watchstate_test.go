// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	clienttesting "k8s.io/client-go/testing"
)

// TestWatchStates follows the state of the watches: before the first answer, without
// failures, while requests fail, and after that.
func TestWatchStates(t *testing.T) {
	c := newCluster(webService(), slice("a"), node("n1"))
	var mu sync.Mutex
	var fault error
	c.PrependWatchReactor("services", func(clienttesting.Action) (bool, watch.Interface, error) {
		mu.Lock()
		defer mu.Unlock()
		return fault != nil, nil, fault
	})
	s := newSink(t)
	a, err := NewAPI(APIOptions{Client: c.Clientset, NodeName: "n1", Sink: s, FixedCIDRs: true})
	must(t, err)
	state := func(resource string) WatchState {
		for _, w := range a.Watches() {
			if w.Resource == resource {
				return w
			}
		}
		t.Fatalf("no watch of %s: %+v", resource, a.Watches())
		return WatchState{}
	}
	if w := state("services"); w != (WatchState{Resource: "services"}) {
		t.Errorf("before the start: %+v", w)
	}
	began := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	defer func() { cancel(); must(t, <-done) }()
	for _, resource := range []string{"services", "endpointslices", "nodes"} {
		eventually(t, resource+" are watched", func() bool {
			w := state(resource)
			return w.Up && w.FailingSince.IsZero() && w.Error == "" && !w.LastEvent.Before(began)
		})
	}
	last := state("services").LastEvent
	changed := webService()
	changed.Spec.ClusterIP, changed.Spec.ClusterIPs = "10.96.0.99", []string{"10.96.0.99"}
	_, err = c.CoreV1().Services(changed.Namespace).Update(t.Context(), changed, metav1.UpdateOptions{})
	must(t, err)
	eventually(t, "an event is noted", func() bool { return state("services").LastEvent.After(last) })

	mu.Lock()
	fault = errors.New("no way")
	mu.Unlock()
	failed := time.Now()
	c.cut()
	eventually(t, "the failure is noted", func() bool {
		w := state("services")
		return !w.Up && w.FailingSince.After(failed) && w.Error == "no way"
	})
	eventually(t, "the others are watched again", func() bool { return state("endpointslices").Up && state("nodes").Up })
	mu.Lock()
	fault = nil
	mu.Unlock()
	eventually(t, "the end of it is noted", func() bool {
		w := state("services")
		return w.Up && w.FailingSince.IsZero() && w.Error == ""
	})
}
