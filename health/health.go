// SPDX-License-Identifier: Apache-2.0

// Package health owns what others ask of a running shunt over HTTP: healthz and
// livez, the healthCheckNodePort of services, and the metrics. It reads what
// package lb and package maps report and never changes what they hold; it never
// decides which endpoints are used. Start reading at New, then Verdict.
package health

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"shunt/lb"
	"shunt/maps"
)

// ProxyMode is what /proxyMode answers, where kube-proxy names the kernel
// mechanism that it programs.
const ProxyMode = "shunt"

// DefaultTimeout is how old a queued change may get before the proxy counts as
// unhealthy: twice kube-proxy's default sync period, as kube-proxy has it.
const DefaultTimeout = 2 * time.Minute

// StatusSource is the reconcile loop. Status is called for every request and
// every scrape, from any goroutine.
type StatusSource interface {
	Status() lb.Status
}

// ReasonSource reads the kernel's counts of the reasons by which programs ended,
// by the reason's name. It is asked for every scrape, from any goroutine.
type ReasonSource interface {
	Reasons() (map[string]uint64, error)
}

// FlowSource says how full map flows is, and what became of its flows. It is asked
// for every scrape and every probe, from any goroutine.
type FlowSource interface {
	FlowStats() maps.FlowStats
}

// HookSource says what is wrong with each hook, by its name, with "" for one that is in
// effect. Now looks at the kernel and is asked for every scrape, Last is what was found
// last and is asked for every probe, both from any goroutine.
type HookSource interface {
	Now() map[string]string
	Last() map[string]string
}

// BuildInfo is what shunt_build_info says of the binary.
type BuildInfo struct {
	Version, Revision string
}

// Options say what is served, where, and from which sources.
type Options struct {
	// Log is required.
	Log *zap.Logger
	// HealthzAddress is of --healthz-bind-address, MetricsAddress of
	// --metrics-bind-address. The zero value: not served. A wildcard of either
	// family serves both.
	HealthzAddress, MetricsAddress netip.AddrPort
	// ProbeAddress is of --probe-bind-address: for the probes of our own pod, since a
	// kube-proxy that still runs answers at the other two. The zero value: not served.
	ProbeAddress netip.AddrPort
	// BindHardFail (--bind-address-hard-fail) makes Run return when one of the
	// two addresses cannot be bound. Without it the failure is logged and tried
	// again: a taken port must not cost a node its services.
	BindHardFail bool
	// Timeout is how old a queued change may get, 0 means DefaultTimeout.
	Timeout time.Duration
	// RequireNode is false where there is no API server, and so no Node that
	// could ever be seen.
	RequireNode bool
	// SelectAddresses: healthCheckNodePorts listen only on the addresses that
	// SetNodePortAddresses gave (--nodeport-addresses), and not on all.
	SelectAddresses bool
	// BindFailed is told when a healthCheckNodePort cannot be bound, once for
	// each spell of failures, from a goroutine of Run, which it must not block.
	// It makes the event FailedToStartServiceHealthcheck. It may be nil.
	BindFailed func(service lb.ServiceName, port uint16, err error)
	// Config is the effective configuration, what /configz shows as JSON.
	Config any
	// Profiling serves /debug/pprof beside the metrics.
	Profiling bool
	// Reasons may be nil: their metric is left out then.
	Reasons ReasonSource
	// Flows may be nil: its metrics are left out then.
	Flows FlowSource
	// Watches says how the watches of the API server go; nil: there is none.
	Watches func() []Watch
	// Requests counts those to the API server; nil: a new one.
	Requests *Requests
	Build    BuildInfo
	// Hooks may be nil: their metrics are left out then.
	Hooks HookSource
	// Now is the clock, nil means time.Now.
	Now func() time.Time
}

// Server serves all of it. It implements lb.Observer.
type Server struct {
	opts      Options
	checker   *checker
	collector *collector
	nodePorts *nodePorts
	healthz   *site
	metrics   *site
	probes    *site
}

var _ lb.Observer = (*Server)(nil)

// New checks the options. It opens nothing: Run does.
func New(opts Options) (*Server, error) {
	if opts.Log == nil {
		return nil, errors.New("health: Options.Log is missing: give it a logger, zap.NewNop() to be silent")
	}
	if opts.Timeout < 0 {
		return nil, fmt.Errorf("health: a timeout of %s is negative: give a positive one, or 0 for %s", opts.Timeout, DefaultTimeout)
	}
	if opts.Timeout == 0 {
		opts.Timeout = DefaultTimeout
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Requests == nil {
		opts.Requests = NewRequests()
	}
	s := &Server{
		opts: opts,
		checker: &checker{
			timeout:     opts.Timeout,
			requireNode: opts.RequireNode,
			now:         opts.Now,
			flows:       opts.Flows,
			watches:     opts.Watches,
			hooks:       opts.Hooks,
		},
	}
	s.collector = newCollector(s.checker, opts)
	s.nodePorts = newNodePorts(s.checker, opts)
	if opts.HealthzAddress.IsValid() {
		s.healthz = &site{name: "healthz", flag: "--healthz-bind-address", addr: opts.HealthzAddress,
			handler: healthzMux(s.checker, s.collector), log: opts.Log}
	}
	if opts.ProbeAddress.IsValid() {
		s.probes = &site{name: "probes", flag: "--probe-bind-address", addr: opts.ProbeAddress,
			handler: probesMux(s.checker), log: opts.Log}
	}
	if opts.MetricsAddress.IsValid() {
		handler, err := metricsMux(s.checker, s.collector, opts)
		if err != nil {
			return nil, err
		}
		s.metrics = &site{name: "metrics", flag: "--metrics-bind-address", addr: opts.MetricsAddress,
			handler: handler, log: opts.Log}
	}
	return s, nil
}

// Run serves until ctx is done, and then ends within a second. It returns nil
// then; an error only where an address could not be bound and BindHardFail says
// that this matters. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, site := range []*site{s.healthz, s.metrics, s.probes} {
		if site != nil {
			group.Go(func() error { return site.run(ctx, s.opts.BindHardFail) })
		}
	}
	group.Go(func() error {
		s.nodePorts.run(ctx)
		return nil
	})
	return group.Wait()
}

// SetStatus gives the source of truth. Until then the proxy counts as starting,
// which is not healthy. It exists because the reconcile loop is made after its
// observer.
func (s *Server) SetStatus(source StatusSource) { s.checker.setSource(source) }

// SetAdoptedInEffect says whether what an earlier daemon programmed is in effect: then
// a start is healthy before anything could be read from the API server.
func (s *Server) SetAdoptedInEffect(is bool) { s.checker.adopted.Store(is) }

// SetHealthChecks replaces the healthCheckNodePorts that are served. It returns
// at once; sockets follow.
func (s *Server) SetHealthChecks(checks []lb.HealthCheck) { s.nodePorts.setChecks(checks) }

// SetNodePortAddresses replaces the addresses that healthCheckNodePorts listen
// on where Options.SelectAddresses is set, and does nothing where it is not. It
// returns at once; sockets follow.
func (s *Server) SetNodePortAddresses(addrs []netip.Addr) { s.nodePorts.setAddresses(addrs) }

// Reconciled counts what one reconcile did.
func (s *Server) Reconciled(r lb.Report) { s.collector.reconciled(r) }

// SocketsDestroyed counts sockets that were destroyed since their endpoint was
// removed.
func (s *Server) SocketsDestroyed(protocol lb.Protocol, n int) {
	s.collector.socketsDestroyed(protocol, n)
}

// DeviceFailed counts an attempt to attach to a network device that failed.
func (s *Server) DeviceFailed() { s.collector.deviceFailures.Inc() }

// HookRepaired counts a hook that was not in effect and was put right.
func (s *Server) HookRepaired(name string) { s.collector.repairs.WithLabelValues(name).Inc() }

// SetAdopted says how many entries of each map were found at start and kept, by
// the map's name.
func (s *Server) SetAdopted(entries map[string]int) { s.collector.setAdopted(entries) }

// HealthzAddr and MetricsAddr are where the two servers listen now, the zero
// value while they don't: with port 0 the kernel chooses the port.
func (s *Server) HealthzAddr() netip.AddrPort { return s.healthz.bound() }

// ProbeAddr is described at HealthzAddr.
func (s *Server) ProbeAddr() netip.AddrPort { return s.probes.bound() }

// MetricsAddr is described at HealthzAddr.
func (s *Server) MetricsAddr() netip.AddrPort { return s.metrics.bound() }
