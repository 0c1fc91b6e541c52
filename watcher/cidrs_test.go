// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"
)

func cidrObject(name string, ranges ...string) *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: ranges}}
}

// ranges waits until the sink has these service CIDRs.
func (s *sink) ranges(want ...string) {
	s.t.Helper()
	got := func() []string {
		s.mu.Lock()
		defer s.mu.Unlock()
		var all []string
		for _, p := range s.cidrs {
			all = append(all, p.String())
		}
		return all
	}
	slices.Sort(want)
	eventually(s.t, "service CIDRs "+strings.Join(want, " "), func() bool {
		have := got()
		slices.Sort(have)
		return s.said() > 0 && slices.Equal(have, want)
	})
}

// said returns the number of calls of SetServiceCIDRs.
func (s *sink) said() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cidrsSet
}

// TestServiceCIDRs: the sink gets the union of all objects' ranges, as objects are created
// and deleted. A text that is not a range is logged and left out.
func TestServiceCIDRs(t *testing.T) {
	log, logs := testLog(zap.InfoLevel)
	c := newCluster(node("n1"), cidrObject("kubernetes", "10.96.0.0/16", "fd00:10:96::/112"))
	s, _ := runAPI(t, c, log)
	s.ranges("10.96.0.0/16", "fd00:10:96::/112")
	if n := s.said(); n != 1 {
		t.Errorf("they were set %d times before all were known", n-1)
	}
	eventually(t, "four watches", func() bool { return c.watches() == 4 })
	ctx, api := t.Context(), c.NetworkingV1().ServiceCIDRs()
	_, err := api.Create(ctx, cidrObject("more", "10.97.0.1/16", "10.98.0.0", "::ffff:10.99.0.0/112"), metav1.CreateOptions{})
	must(t, err)
	s.ranges("10.96.0.0/16", "10.97.0.0/16", "10.99.0.0/16", "fd00:10:96::/112")
	if said(logs, `ServiceCIDR more: spec.cidrs[1]: "10.98.0.0" is not a CIDR: ignored`) != 1 {
		t.Errorf("log: %v", logs.All())
	}
	gone := metav1.Now()
	leaving := cidrObject("kubernetes", "10.96.0.0/16", "fd00:10:96::/112")
	leaving.DeletionTimestamp, leaving.Finalizers = &gone, []string{"networking.k8s.io/service-cidr-finalizer"}
	_, err = api.Update(ctx, leaving, metav1.UpdateOptions{})
	must(t, err)
	must(t, api.Delete(ctx, "more", metav1.DeleteOptions{}))
	s.ranges("10.96.0.0/16", "fd00:10:96::/112") // an object that is being deleted counts
	must(t, api.Delete(ctx, "kubernetes", metav1.DeleteOptions{}))
	s.ranges()
}

// TestNoServiceCIDRs: with an API server without ServiceCIDRs the sink gets an empty list;
// with one that is down or refuses it gets none. The proxy starts in every case.
func TestNoServiceCIDRs(t *testing.T) {
	resource := schema.GroupResource{Group: "networking.k8s.io", Resource: "servicecidrs"}
	for _, c := range []struct {
		what    string
		err     error
		known   bool
		mention string
	}{
		{"the API has none", apierrors.NewNotFound(resource, ""), true, "this API server has no ServiceCIDRs"},
		{"the account may not", apierrors.NewForbidden(resource, "", errors.New("RBAC")), false, "grant it list and watch on servicecidrs"},
		{"the API server is down", apierrors.NewServiceUnavailable("not yet"), false, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			log, logs := testLog(zap.InfoLevel)
			api := newCluster(webService(), node("n1"))
			var mu sync.Mutex
			tries := 0
			api.PrependReactor("list", "servicecidrs", func(clienttesting.Action) (bool, kruntime.Object, error) {
				mu.Lock()
				defer mu.Unlock()
				tries++
				return true, nil, c.err
			})
			s, _ := runAPI(t, api, log)
			s.next("set node n1", "set service shop/web", "synced")
			eventually(t, "a try", func() bool { mu.Lock(); defer mu.Unlock(); return tries > 0 })
			if c.mention != "" {
				eventually(t, "it is said", func() bool { return said(logs, c.mention) == 1 })
			}
			if c.known {
				s.ranges()
			} else if s.said() != 0 {
				t.Errorf("service CIDRs were set to %v", s.cidrs)
			}
		})
	}
}

// TestFixedCIDRs: with configured ranges, ServiceCIDRs are neither listed nor watched.
func TestFixedCIDRs(t *testing.T) {
	c := newCluster(node("n1"), cidrObject("kubernetes", "10.96.0.0/16"))
	s := newSink(t)
	a, err := NewAPI(APIOptions{Client: c.Clientset, NodeName: "n1", Sink: s, FixedCIDRs: true})
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- a.Run(t.Context()) }()
	s.next("set node n1", "synced")
	eventually(t, "three watches", func() bool { return c.watches() == 3 })
	for _, action := range c.Actions() {
		if action.GetResource().Resource == "servicecidrs" {
			t.Errorf("%s servicecidrs", action.GetVerb())
		}
	}
	if s.said() != 0 {
		t.Errorf("service CIDRs were set to %v", s.cidrs)
	}
}
