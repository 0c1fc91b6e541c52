// SPDX-License-Identifier: Apache-2.0

// Package health has the HTTP servers of a running shunt: healthz, livez and readyz, the
// healthCheckNodePort of services, and the metrics. It reads what packages lb and maps
// report, and changes nothing there. It never decides which endpoints are used. Start
// reading at New, then Verdict.
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

// ProxyMode is the answer of /proxyMode, where kube-proxy returns its mode (iptables,
// ipvs, nftables).
const ProxyMode = "shunt"

// DefaultTimeout is how old a queued change may get before the proxy counts as
// unhealthy. kube-proxy too uses twice its default sync period.
const DefaultTimeout = 2 * time.Minute

// StatusSource is the reconcile loop. Status is called for every request and
// every scrape, from any goroutine.
type StatusSource interface {
	Status() lb.Status
}

// ReasonSource reads how often the eBPF programs ended for each reason, by the reason's
// name. It is called for every scrape, from any goroutine.
type ReasonSource interface {
	Reasons() (map[string]uint64, error)
}

// FlowSource reports how full map flows is, and how many flows expired or were evicted.
// It is called for every scrape and every probe, from any goroutine.
type FlowSource interface {
	FlowStats() maps.FlowStats
}

// HookSource reports what is wrong with each hook, by its name; "" means that the hook is
// in effect. Now reads the kernel and is called for every scrape. Last returns the latest
// result and is called for every probe. Both are called from any goroutine.
type HookSource interface {
	Now() map[string]string
	Last() map[string]string
}

// BuildInfo has the labels of shunt_build_info.
type BuildInfo struct {
	Version, Revision string
}

// Options are what is served, at which addresses, and from which sources.
type Options struct {
	// Log is required.
	Log *zap.Logger
	// HealthzAddress is --healthz-bind-address, MetricsAddress is
	// --metrics-bind-address. The zero value: not served. A wildcard of either family
	// serves both families.
	HealthzAddress, MetricsAddress netip.AddrPort
	// ProbeAddress is --probe-bind-address, for the probes of shunt's own pod: a
	// kube-proxy that still runs answers at the other two. The zero value: not served.
	ProbeAddress netip.AddrPort
	// BindHardFail (--bind-address-hard-fail) makes Run return when one of these three
	// addresses cannot be bound. Without it the failure is logged and tried again: a
	// port in use must not cost a node its services.
	BindHardFail bool
	// Timeout is how old a queued change may get; 0 means DefaultTimeout.
	Timeout time.Duration
	// RequireNode is false where there is no API server, from which a Node could be
	// read.
	RequireNode bool
	// SelectAddresses (--nodeport-addresses) makes healthCheckNodePorts listen only on
	// the addresses of SetNodePortAddresses, and not on all.
	SelectAddresses bool
	// BindFailed is called when a healthCheckNodePort cannot be bound, once for
	// failures in a row. A goroutine of Run calls it, so it must not block. It
	// records the Event FailedToStartServiceHealthcheck. It may be nil.
	BindFailed func(service lb.ServiceName, port uint16, err error)
	// Config is the effective configuration, which /configz shows as JSON.
	Config any
	// Profiling serves /debug/pprof beside the metrics.
	Profiling bool
	// Reasons may be nil: their metric is left out then.
	Reasons ReasonSource
	// Flows may be nil: its metrics are left out then.
	Flows FlowSource
	// Watches returns the state of each watch; nil: there is no API server.
	Watches func() []Watch
	// Requests counts the requests to the API server; nil: a new one.
	Requests *Requests
	Build    BuildInfo
	// Hooks may be nil: their metrics are left out then.
	Hooks HookSource
	// Now is the clock, nil means time.Now.
	Now func() time.Time
}

// Server serves everything in Options. It implements lb.Observer.
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

// New checks the options. It opens no socket: Run does.
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

// Run serves until ctx is done. It then ends within a second and returns nil. It returns
// an error only where an address could not be bound and BindHardFail is set. It may be
// called once.
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

// SetStatus sets the source of the proxy's status. Until then the proxy counts as
// starting: /healthz answers 503 unless SetAdoptedInEffect has set true. SetStatus exists
// because the reconcile loop is made after its observer.
func (s *Server) SetStatus(source StatusSource) { s.checker.setSource(source) }

// SetAdoptedInEffect sets whether what an earlier daemon programmed is in effect. Then a
// start is healthy before anything was read from the API server.
func (s *Server) SetAdoptedInEffect(is bool) { s.checker.adopted.Store(is) }

// SetHealthChecks replaces the healthCheckNodePorts that are served. It returns at once;
// the sockets are opened and closed later.
func (s *Server) SetHealthChecks(checks []lb.HealthCheck) { s.nodePorts.setChecks(checks) }

// SetNodePortAddresses replaces the addresses that healthCheckNodePorts listen on where
// Options.SelectAddresses is set, and does nothing where it is not. It returns at once;
// the sockets are opened and closed later.
func (s *Server) SetNodePortAddresses(addrs []netip.Addr) { s.nodePorts.setAddresses(addrs) }

// Reconciled counts the results of one reconcile.
func (s *Server) Reconciled(r lb.Report) { s.collector.reconciled(r) }

// SocketsDestroyed counts sockets that were destroyed because their endpoint was
// removed.
func (s *Server) SocketsDestroyed(protocol lb.Protocol, n int) {
	s.collector.socketsDestroyed(protocol, n)
}

// DeviceFailed counts an attempt to attach to a network device that failed.
func (s *Server) DeviceFailed() { s.collector.deviceFailures.Inc() }

// HookRepaired counts a hook that was not in effect and was repaired.
func (s *Server) HookRepaired(name string) { s.collector.repairs.WithLabelValues(name).Inc() }

// SetAdopted sets how many entries of each map were found at start and kept, by the
// map's name.
func (s *Server) SetAdopted(entries map[string]int) { s.collector.setAdopted(entries) }

// HealthzAddr returns where the server of HealthzAddress listens now, the zero value
// while it does not listen. With port 0 the kernel chooses the port.
func (s *Server) HealthzAddr() netip.AddrPort { return s.healthz.bound() }

// ProbeAddr returns the same for ProbeAddress as HealthzAddr for HealthzAddress.
func (s *Server) ProbeAddr() netip.AddrPort { return s.probes.bound() }

// MetricsAddr returns the same for MetricsAddress as HealthzAddr for HealthzAddress.
func (s *Server) MetricsAddr() netip.AddrPort { return s.metrics.bound() }
