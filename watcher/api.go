// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"shunt/lb"
)

// nodeGrace is how long SetSynced waits for this node's Node and the ServiceCIDRs after
// Services and EndpointSlices are known. Topology hints select endpoints by the Node's zone:
// a first reconcile without the zone would move every flow that follows zone hints, and the
// second reconcile would move the flow back. The wait is bounded, so that the proxy also
// starts while its Node can't be read.
const nodeGrace = 5 * time.Second

// APIOptions are the options of NewAPI.
type APIOptions struct {
	Client kubernetes.Interface
	// NodeName is metadata.name of this node's Node.
	NodeName string
	// FixedCIDRs means that flags set the service CIDRs: ServiceCIDRs are not watched.
	FixedCIDRs bool
	Sink       lb.Sink
	Log        *zap.Logger
	// Hint returns advice for the log while no API server answers. If Hint is nil or
	// returns "", the advice is derived from the error.
	Hint func() string
	// Recorder records Events. If it is nil, warnings are only logged.
	Recorder Recorder
}

// API watches an API server.
type API struct {
	APIOptions
	converter Converter
	services  *store[lb.ServiceName, lb.Service]
	slices    *store[lb.SliceName, lb.EndpointSlice]
	node      *store[string, lb.Node]
	cidrs     *cidrs
	// Each link follows the watch of one resource.
	nodeLink, serviceLink, sliceLink, cidrLink *link
	grace                                      time.Duration // nodeGrace
}

// NewAPI checks the options. It sends no request: Run does.
func NewAPI(o APIOptions) (*API, error) {
	switch {
	case o.Client == nil || o.Sink == nil:
		return nil, errors.New("watch the API server: no client or no sink given")
	case o.NodeName == "":
		return nil, errors.New("watch the API server: the name of this node is not known: give --node-name")
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	a := &API{APIOptions: o, grace: nodeGrace}
	a.services = newStore(handling[lb.ServiceName, lb.Service]{a.service, equalService, o.Sink.SetService, o.Sink.DeleteService})
	a.slices = newStore(handling[lb.SliceName, lb.EndpointSlice]{a.slice, equalSlice, o.Sink.SetSlice, o.Sink.DeleteSlice})
	a.node = newStore(handling[string, lb.Node]{a.ownNode, equalNode, o.Sink.SetNode, func(string) { o.Sink.SetNode(nil) }})
	all := newBudget()
	a.services.reports = reporter[lb.ServiceName]{log: o.Log, recorder: o.Recorder, uidOf: a.services.uid, all: all}
	a.slices.reports = reporter[lb.SliceName]{log: o.Log, recorder: o.Recorder, uidOf: a.services.uid, all: all}
	a.node.reports = reporter[string]{log: o.Log}
	a.cidrs = newCIDRs(a.serviceCIDR, o.Sink.SetServiceCIDRs)
	a.cidrs.store.reports = reporter[string]{log: o.Log}
	follow := func(resource string) *link { return &link{resource: resource, log: o.Log, hint: o.Hint} }
	a.nodeLink, a.serviceLink = follow("nodes"), follow("services")
	a.sliceLink, a.cidrLink = follow("endpointslices"), follow("servicecidrs")
	a.node.heard, a.services.heard, a.slices.heard, a.cidrs.store.heard =
		a.nodeLink.heard, a.serviceLink.heard, a.sliceLink.heard, a.cidrLink.heard
	return a, nil
}

func (a *API) service(obj any) (item[lb.ServiceName, lb.Service], bool) {
	s, ok := obj.(*v1.Service)
	if !ok {
		return item[lb.ServiceName, lb.Service]{}, false
	}
	m, w := a.converter.Service(s)
	return item[lb.ServiceName, lb.Service]{lb.ServiceName{Namespace: s.Namespace, Name: s.Name}, s.UID, m, w}, true
}

// slice leaves the UID empty: no Event is recorded on a slice.
func (a *API) slice(obj any) (item[lb.SliceName, lb.EndpointSlice], bool) {
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return item[lb.SliceName, lb.EndpointSlice]{}, false
	}
	m, w := a.converter.Slice(s)
	return item[lb.SliceName, lb.EndpointSlice]{lb.SliceName{Namespace: s.Namespace, Name: s.Name}, "", m, w}, true
}

// ownNode converts this node's Node. It ignores other Nodes, in case the API server does not
// apply the field selector.
func (a *API) ownNode(obj any) (item[string, lb.Node], bool) {
	n, ok := obj.(*v1.Node)
	if !ok {
		return item[string, lb.Node]{}, false
	}
	if n.Name != a.NodeName {
		return item[string, lb.Node]{key: n.Name}, true
	}
	m, w := a.converter.Node(n)
	return item[string, lb.Node]{n.Name, n.UID, m, w}, true
}

// ServiceWarning records an Event of type Warning on a Service, with the Service's
// current UID. Other packages call it. Without a Recorder it does nothing.
func (a *API) ServiceWarning(service lb.ServiceName, reason, note string) {
	if a.Recorder != nil {
		a.Recorder.ServiceWarning(service, a.services.uid(service), reason, note)
	}
}

// Watches returns the state of every watch. It may be called at any time.
func (a *API) Watches() []WatchState {
	links := []*link{a.serviceLink, a.sliceLink, a.nodeLink}
	if !a.FixedCIDRs && a.cidrs.asked.Load() {
		links = append(links, a.cidrLink)
	}
	states := make([]WatchState, len(links))
	for i, l := range links {
		states[i] = l.state()
	}
	return states
}

// Run watches until ctx is done. It logs failures and retries. It returns nil, after
// all goroutines that it started have ended.
func (a *API) Run(ctx context.Context) error {
	all := func(*metav1.ListOptions) {}
	ours := func(o *metav1.ListOptions) { o.LabelSelector = sliceSelector }
	own := fields.OneTermEqualSelector(metav1.ObjectNameField, a.NodeName).String()
	ofNode := func(o *metav1.ListOptions) { o.FieldSelector = own }
	core, discovery := a.Client.CoreV1(), a.Client.DiscoveryV1()
	var wg sync.WaitGroup
	defer wg.Wait()
	reflect := func(lw cache.ListerWatcher, example any, s cache.ReflectorStore) {
		wg.Go(func() { a.reflect(ctx, lw, example, s) })
	}
	reflect(listWatch(core.Nodes(), ofNode, a.nodeLink, a.Client), &v1.Node{}, a.node)
	reflect(listWatch(core.Services(metav1.NamespaceAll), all, a.serviceLink, a.Client), &v1.Service{}, a.services)
	reflect(listWatch(discovery.EndpointSlices(metav1.NamespaceAll), ours, a.sliceLink, a.Client),
		&discoveryv1.EndpointSlice{}, a.slices)
	if !a.FixedCIDRs {
		wg.Go(func() { a.followCIDRs(ctx) })
	}
	wg.Go(func() { a.announce(ctx) })
	<-ctx.Done()
	return nil
}

// reflect runs one reflector until ctx is done. It retries sooner than a controller's
// reflector: at most 10–20 s apart instead of 30–60 s, because a proxy with outdated
// endpoints sends connections to dead backends. The reflector's own log lines have debug
// level; link logs the failures that an operator must know.
func (a *API) reflect(ctx context.Context, lw cache.ListerWatcher, example any, s cache.ReflectorStore) {
	logger := zapr.NewLogger(a.Log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return demoted{c} })))
	r := cache.NewReflectorWithOptions(lw, example, s, cache.ReflectorOptions{
		Logger:  &logger,
		Clock:   endingClock{ctx: ctx},
		Backoff: &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 20, Cap: 10 * time.Second},
	})
	r.RunWithContext(klog.NewContext(ctx, logger))
}

// announce calls SetSynced, once.
func (a *API) announce(ctx context.Context) {
	start := time.Now()
	for _, synced := range []chan struct{}{a.services.synced, a.slices.synced} {
		select {
		case <-synced:
		case <-ctx.Done():
			return
		}
	}
	late, cancel := context.WithTimeout(ctx, a.grace)
	defer cancel()
	select {
	case <-a.node.synced:
		if a.node.len() == 0 {
			a.Log.Warn("there is no Node of this name: zone hints are not followed; check --node-name", zap.String("node", a.NodeName))
		}
	case <-late.Done():
		a.Log.Warn("this Node could not be read yet: zone hints are not followed until it is", zap.String("node", a.NodeName))
	}
	if !a.FixedCIDRs && !a.cidrs.await(late) { // else external IPs in them would be served for a moment
		a.Log.Warn("the service CIDRs could not be read yet: until they are, external IPs and " +
			"load-balancer IPs in them are not refused, unless an earlier daemon knew them")
	}
	if ctx.Err() != nil {
		return
	}
	a.Log.Info("all services and endpoints of the API server are known",
		zap.Int("services", a.services.len()), zap.Int("slices", a.slices.len()), zap.Duration("took", time.Since(start)))
	a.Sink.SetSynced()
}

// endingClock ends a reflector's wait for a retry when ctx is done. client-go itself ignores
// ctx while it waits between attempts at the first streamed list.
type endingClock struct {
	clock.RealClock
	ctx context.Context
}

func (c endingClock) After(d time.Duration) <-chan time.Time {
	ch := make(chan time.Time, 1)
	go func() {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case now := <-t.C:
			ch <- now
		case <-c.ctx.Done():
			ch <- time.Now()
		}
	}()
	return ch
}

// demoted is a Core that logs every entry at debug level.
type demoted struct{ zapcore.Core }

func (d demoted) Enabled(zapcore.Level) bool { return d.Core.Enabled(zapcore.DebugLevel) }

func (d demoted) With(f []zapcore.Field) zapcore.Core { return demoted{d.Core.With(f)} }

func (d demoted) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	e.Level = min(e.Level, zapcore.DebugLevel)
	return d.Core.Check(e, ce)
}
