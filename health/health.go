// SPDX-License-Identifier: Apache-2.0

// Package health contains the HTTP servers of a running shunt: healthz, livez and readyz, the
// healthCheckNodePort of Services, and the metrics. It reads the state of packages lb and
// maps, and does not change it. It never decides which endpoints are used. Start reading at
// New, then Verdict.
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

// DefaultTimeout is the age of a queued change above which the proxy is unhealthy. It is
// kube-proxy's default: twice its default sync period.
const DefaultTimeout = 2 * time.Minute

// StatusSource is the reconcile loop. Status is called for every request and
// every scrape, from any goroutine.
type StatusSource interface {
	Status() lb.Status
}

// ReasonSource returns how often the eBPF programs ended with each reason, by the reason's
// name. It is called for every scrape, from any goroutine.
type ReasonSource interface {
	Reasons() (map[string]uint64, error)
}

// FlowSource reports how full map flows is, and how many flows expired or were evicted.
// It is called for every scrape and every probe, from any goroutine.
type FlowSource interface {
	FlowStats() maps.FlowStats
}

// HookSource returns the fault of each hook, by the hook's name; "" means that the hook is
// in effect. Now reads the kernel's state and is called for every scrape. Last returns the
// latest result and is called for every probe. Both are called from any goroutine.
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
	// ProbeAddress is --probe-bind-address, for the probes of shunt's own pod: at the
	// other two addresses a kube-proxy that still runs may answer. The zero value: not
	// served.
	ProbeAddress netip.AddrPort
	// BindHardFail (--bind-address-hard-fail) makes Run return an error if one of these
	// three addresses cannot be bound. Without BindHardFail the failure is logged and the
	// bind retried: a port in use must not stop the proxy.
	BindHardFail bool
	// Timeout is the age of a queued change above which the proxy is unhealthy; 0 means
	// DefaultTimeout.
	Timeout time.Duration
	// RequireNode makes this node ineligible for traffic while its Node is unknown. It is
	// false without an API server.
	RequireNode bool
	// SelectAddresses (--nodeport-addresses) makes healthCheckNodePorts listen only on
	// the addresses of SetNodePortAddresses; without it they listen on all addresses.
	SelectAddresses bool
	// BindFailed is called for the first of consecutive failures to bind a
	// healthCheckNodePort, to record the Event FailedToStartServiceHealthcheck. A
	// goroutine of Run calls it, so it must not block. It may be nil.
	BindFailed func(service lb.ServiceName, port uint16, err error)
	// Config is the effective configuration, which /configz shows as JSON.
	Config any
	// Profiling serves /debug/pprof beside the metrics.
	Profiling bool
	// Reasons may be nil: its metric is then left out.
	Reasons ReasonSource
	// Flows may be nil: its metrics are then left out.
	Flows FlowSource
	// Watches returns the state of each watch; nil: there is no API server.
	Watches func() []Watch
	// Requests counts the requests to the API server; nil: a new one.
	Requests *Requests
	Build    BuildInfo
	// Hooks may be nil: its metrics are then left out.
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
// an error only if an address could not be bound or a server failed, and BindHardFail is
// set. It may be called once.
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

// SetStatus sets the source of the proxy's status. Before that call the proxy is starting:
// /healthz answers 503 unless SetAdoptedInEffect has set true. The source is no field of
// Options because the reconcile loop is created after its observer.
func (s *Server) SetStatus(source StatusSource) { s.checker.setSource(source) }

// SetAdoptedInEffect sets whether the adopted maps of an earlier daemon are in effect. If
// they are, the proxy is healthy before it has read anything from the API server.
func (s *Server) SetAdoptedInEffect(is bool) { s.checker.adopted.Store(is) }

// SetHealthChecks replaces the healthCheckNodePorts that are served. It returns at once;
// the sockets are opened and closed later.
func (s *Server) SetHealthChecks(checks []lb.HealthCheck) { s.nodePorts.setChecks(checks) }

// SetNodePortAddresses replaces the addresses on which healthCheckNodePorts listen. Without
// Options.SelectAddresses it does nothing. It returns at once; the sockets are opened and
// closed later.
func (s *Server) SetNodePortAddresses(addrs []netip.Addr) { s.nodePorts.setAddresses(addrs) }

// Reconciled counts the results of one reconcile.
func (s *Server) Reconciled(r lb.Report) { s.collector.reconciled(r) }

// SocketsDestroyed counts sockets that were destroyed because their endpoint was
// removed.
func (s *Server) SocketsDestroyed(protocol lb.Protocol, n int) {
	s.collector.socketsDestroyed(protocol, n)
}

// DeviceFailed counts a failed attempt to attach programs to a network device.
func (s *Server) DeviceFailed() { s.collector.deviceFailures.Inc() }

// HookRepaired counts a hook that was not in effect and was repaired.
func (s *Server) HookRepaired(name string) { s.collector.repairs.WithLabelValues(name).Inc() }

// SetAdopted sets how many entries of each map were adopted at start, by the map's name.
func (s *Server) SetAdopted(entries map[string]int) { s.collector.setAdopted(entries) }

// HealthzAddr returns the address on which the server of HealthzAddress listens now, with the
// port that the kernel chose for port 0. It returns the zero value while the server does not
// listen.
func (s *Server) HealthzAddr() netip.AddrPort { return s.healthz.bound() }

// ProbeAddr is HealthzAddr for the server of ProbeAddress.
func (s *Server) ProbeAddr() netip.AddrPort { return s.probes.bound() }

// MetricsAddr is HealthzAddr for the server of MetricsAddress.
func (s *Server) MetricsAddr() netip.AddrPort { return s.metrics.bound() }
