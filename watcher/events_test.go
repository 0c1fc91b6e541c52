// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	v1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"shunt/lb"
)

func runEvents(t *testing.T, c *fake.Clientset, log *zap.Logger) *Events {
	t.Helper()
	e := NewEvents(c, "n1", log)
	e.Starting() // before Run: the Event waits in the queue
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return e
}

func TestEvents(t *testing.T) {
	c := fake.NewClientset()
	e := runEvents(t, c, nil)
	service := lb.ServiceName{Namespace: "shop", Name: "web"}
	e.ServiceWarning(service, "u1", EventFailedHealthCheck, "100% of "+strings.Repeat("long ", 400))
	e.ServiceWarning(service, "u1", EventIncorrectIPVersion, "wrong")

	var got []eventsv1.Event
	eventually(t, "three events", func() bool {
		list, err := c.EventsV1().Events("").List(t.Context(), metav1.ListOptions{})
		must(t, err)
		got = list.Items
		return len(got) == 3
	})
	slices.SortFunc(got, func(a, b eventsv1.Event) int { return strings.Compare(a.Reason, b.Reason) })
	want := []struct {
		kind, reason, namespace string
		regarding               v1.ObjectReference
	}{
		{"Warning", "FailedToStartServiceHealthcheck", "shop", v1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: "shop", Name: "web", UID: "u1"}},
		{"Warning", "KubeProxyIncorrectIPVersion", "shop", v1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: "shop", Name: "web", UID: "u1"}},
		{"Normal", "Starting", "default", v1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: "n1", UID: "n1"}},
	}
	for i, w := range want {
		g := got[i]
		if g.Type != w.kind || g.Reason != w.reason || g.Namespace != w.namespace || g.Regarding != w.regarding ||
			g.ReportingController != "shunt" || g.ReportingInstance == "" || g.Action == "" || g.Note == "" {
			t.Errorf("event %d: %+v", i, g)
		}
		if len(g.Note) > 1024 || strings.Contains(g.Note, "%!") {
			t.Errorf("note of %d bytes: %s", len(g.Note), g.Note)
		}
	}
}

// TestEventRefused: an Event that the API server refuses is logged.
func TestEventRefused(t *testing.T) {
	c := fake.NewClientset()
	c.PrependReactor("create", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewBadRequest("no")
	})
	log, logs := testLog(zap.InfoLevel)
	runEvents(t, c, log)
	eventually(t, "a line in the log", func() bool { return said(logs, "rejected event") == 1 })
}

// TestEventsFull: with a full queue an Event is dropped, and the caller does not block.
func TestEventsFull(t *testing.T) {
	log, logs := testLog(zap.InfoLevel)
	e := NewEvents(fake.NewClientset(), "n1", log)
	for range queuedEvents + 3 {
		e.Starting()
	}
	if n := said(logs, "too many Events"); n != 3 {
		t.Errorf("%d events are said to be dropped, want 3", n)
	}
}
