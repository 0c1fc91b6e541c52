// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	stdmaps "maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

const kindServiceCIDR = "ServiceCIDR"

// serviceCIDR contains the fields of a ServiceCIDR (networking.k8s.io/v1) that shunt uses.
type serviceCIDR struct {
	name   string
	ranges []netip.Prefix
}

func equalServiceCIDR(a, b *serviceCIDR) bool {
	return a.name == b.name && slices.Equal(a.ranges, b.ranges)
}

// serviceCIDR converts a ServiceCIDR; the result is never nil. A ServiceCIDR with a deletion
// timestamp is converted too: the API server retains it while Services use its addresses.
func (c *Converter) serviceCIDR(s *networkingv1.ServiceCIDR) (*serviceCIDR, []Warning) {
	p := &warnings{of: Warning{Kind: kindServiceCIDR, Name: s.Name}}
	out := &serviceCIDR{name: s.Name}
	for i, text := range s.Spec.CIDRs {
		r, note := parseRange(text)
		if note != "" {
			p.add(path{"spec.cidrs", i, ""}.String(), "%s %s: ignored", show(text), note)
			continue
		}
		out.ranges = append(out.ranges, r)
	}
	return out, p.list
}

// cidrs contains the ranges of all ServiceCIDRs. It passes their union to pass once all
// ranges are known, and after each change.
type cidrs struct {
	store *store[string, serviceCIDR]
	pass  func([]netip.Prefix)
	// asked is set once the watch of ServiceCIDRs starts: the API server has the resource.
	asked atomic.Bool

	// announced is closed when the ranges are known, or known not to exist.
	announced chan struct{}
	once      sync.Once

	mu    sync.Mutex
	all   map[string][]netip.Prefix
	known bool
}

func newCIDRs(convert func(any) (item[string, serviceCIDR], bool), pass func([]netip.Prefix)) *cidrs {
	c := &cidrs{pass: pass, all: map[string][]netip.Prefix{}, announced: make(chan struct{})}
	c.store = newStore(handling[string, serviceCIDR]{convert, equalServiceCIDR,
		func(s *serviceCIDR) { c.change(func() { c.all[s.name] = s.ranges }) },
		func(name string) { c.change(func() { delete(c.all, name) }) },
	})
	return c
}

func (c *cidrs) change(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	if c.known {
		c.pass(slices.Concat(slices.Collect(stdmaps.Values(c.all))...))
	}
}

// announce passes the current ranges to pass. From then on every change is passed too.
func (c *cidrs) announce() {
	c.change(func() { c.known = true })
	c.once.Do(func() { close(c.announced) })
}

// await waits until the ranges are known, and reports whether they are.
func (c *cidrs) await(ctx context.Context) bool {
	select {
	case <-c.announced:
		return true
	case <-ctx.Done():
	}
	select {
	case <-c.announced: // both were ready, and the first select chose ctx
		return true
	default:
		return false
	}
}

func (a *API) serviceCIDR(obj any) (item[string, serviceCIDR], bool) {
	s, ok := obj.(*networkingv1.ServiceCIDR)
	if !ok {
		return item[string, serviceCIDR]{}, false
	}
	m, w := a.converter.serviceCIDR(s)
	return item[string, serviceCIDR]{s.Name, s.UID, m, w}, true
}

// cidrsInterval bounds the time between two requests for ServiceCIDRs to an API server that
// does not have that resource: a newer API server may have replaced it.
const cidrsInterval = 10 * time.Minute

// followCIDRs watches ServiceCIDRs once the API server has that resource (since
// Kubernetes 1.33). The first sync waits for the ranges, as for the Node, for nodeGrace at
// most. Until the ranges are known, the programmed ranges remain.
func (a *API) followCIDRs(ctx context.Context) {
	api := a.Client.NetworkingV1().ServiceCIDRs()
	wait, said := time.Second, false
	for {
		_, err := api.List(ctx, metav1.ListOptions{Limit: 1})
		if err == nil || apierrors.IsForbidden(err) { // Forbidden: link logs it, with a hint
			break
		}
		if apierrors.IsNotFound(err) {
			if !said {
				said = true
				a.Log.Info("this API server has no ServiceCIDRs: addresses that no service has are not refused, " +
					"unless --service-cidr names them")
			}
			a.cidrs.announce()
			wait = cidrsInterval
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
			wait = min(2*wait, 10*time.Second)
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		select {
		case <-a.cidrs.store.synced:
			a.cidrs.announce()
		case <-ctx.Done():
		}
	})
	a.cidrs.asked.Store(true)
	all := func(*metav1.ListOptions) {}
	lw := listWatch(api, all, a.cidrLink, a.Client)
	a.reflect(ctx, lw, &networkingv1.ServiceCIDR{}, cache.ReflectorStore(a.cidrs.store))
}
