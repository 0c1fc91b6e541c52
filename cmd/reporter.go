// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"fmt"

	"go.uber.org/zap"

	"shunt/health"
	"shunt/lb"
	"shunt/maps"
	"shunt/watcher"
)

// reporter passes the loop's reports to the health and metrics servers, the log, and the
// maps meta, problems and memory. It is the loop's Observer.
type reporter struct {
	d        *daemon
	health   *health.Server
	problems *problemReporter
	checks   keptChecks
	// checked is set once the loop has called SetHealthChecks.
	checked bool
	// first is set until the first reconcile was reported.
	first bool
}

var _ lb.Observer = (*reporter)(nil)

func newReporter(d *daemon, src *source) (*reporter, error) {
	r := &reporter{d: d, first: true, problems: newProblemReporter(d, src), checks: keptChecks{memory: d.memory, log: d.log}}
	var err error
	r.health, err = health.New(health.Options{
		Log:            d.log,
		HealthzAddress: d.cfg.healthz, MetricsAddress: d.cfg.metrics, ProbeAddress: d.cfg.probes,
		BindHardFail:    d.cfg.BindAddressHardFail,
		RequireNode:     src.hasNode,
		SelectAddresses: d.cfg.nodePorts.Selective(),
		BindFailed: func(service lb.ServiceName, port uint16, err error) {
			if src.warn != nil {
				src.warn(service, watcher.EventFailedHealthCheck,
					fmt.Sprintf("node %s, healthCheckNodePort %d: %v", d.cfg.NodeName, port, err))
			}
		},
		Config: d.cfg, Profiling: d.cfg.Profiling,
		Reasons: d.kernel, Flows: d.expiry, Hooks: d.hooks,
		Watches: src.watches, Requests: d.requests.Requests,
		Build: health.BuildInfo{Version: d.version.Version, Revision: d.version.Revision},
	})
	return r, err
}

func (r *reporter) setAdopted(a lb.Adopted) {
	r.health.SetStatus(r.d.loop)
	r.health.SetAdoptedInEffect(r.d.inEffect)
	if checks := r.checks.recall(); r.d.inEffect {
		r.health.SetNodePortAddresses(r.d.loop.Status().NodePortAddrs)
		r.health.SetHealthChecks(checks)
	}
	r.health.SetAdopted(map[string]int{
		maps.NameServices: a.Frontends, maps.NameBackends: a.Backends, maps.NameNames: a.Services})
}

// Reconciled passes the report to the metrics, map problems, the packet path and map meta. It
// logs the first reconcile at info level, and the others at debug level.
func (r *reporter) Reconciled(rep lb.Report) {
	r.health.Reconciled(rep)
	status := r.d.loop.Status()
	r.health.SetNodePortAddresses(status.NodePortAddrs)
	r.problems.write(status.Problems)
	r.d.packets.SetNodeAddrs(r.d.store.NodeIPs())
	r.d.packets.Reconciled()
	r.d.kernel.UpdateMeta(func(m *maps.DaemonMeta) {
		m.Pending = uint32(status.ServiceChangesPending + status.EndpointChangesPending)
		if !status.LastSync.IsZero() {
			m.Synced = status.LastSync.UnixNano()
		}
	})
	log := r.d.log.Debug
	if r.first {
		log = r.d.log.Info
		r.first = false
	}
	w := rep.Writes
	log("reconciled", zap.Int("services", rep.Services), zap.Duration("took", rep.Ended.Sub(rep.Started)),
		zap.Uint64("writes", w.Total()), zap.Uint64("frontend_writes", w.Frontends),
		zap.Uint64("slot_writes", w.Slots), zap.Uint64("backend_writes", w.Backends),
		zap.Uint64("name_writes", w.Names), zap.Uint64("node_addr_writes", w.NodeAddrs),
		zap.Uint64("source_range_writes", w.Sources), zap.Uint64("service_cidr_writes", w.ServiceCidrs))
}

// SetHealthChecks passes the healthCheckNodePorts to their server, and stores them for the
// next daemon.
func (r *reporter) SetHealthChecks(checks []lb.HealthCheck) {
	r.checked = true
	r.health.SetHealthChecks(checks)
	r.checks.keep(checks)
}

// synced is called after the first reconcile. If the Services have no healthCheckNodePorts,
// the loop does not call SetHealthChecks; synced then removes those of an earlier daemon.
func (r *reporter) synced() {
	if !r.checked {
		r.SetHealthChecks(nil)
	}
}
