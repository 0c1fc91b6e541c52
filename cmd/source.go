// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"context"

	"go.uber.org/zap"

	"shunt/health"
	"shunt/lb"
	"shunt/maps"
	"shunt/watcher"
)

// source is where Services are read from: an API server or manifest files.
type source struct {
	// parts run with the daemon.
	parts []func(context.Context) error
	// warn records an Event of type Warning on a Service; nil without an API server.
	warn func(service lb.ServiceName, reason, note string)
	// watches returns the state of each watch; nil without an API server.
	watches func() []health.Watch
	// hasNode is set if an API server is the source: it has this node's Node.
	hasNode bool
	// recall reads the endpoints of the API server that an earlier daemon stored in map
	// memory; nil without an API server.
	recall func()
}

// newSource returns the source that the flags select. The source's parts fill d.store.
func newSource(d *daemon) (*source, error) {
	if d.cfg.Manifests != "" {
		m, err := watcher.NewManifests(watcher.ManifestsOptions{
			Path: d.cfg.Manifests, NodeName: d.cfg.NodeName, Sink: d.store, Log: d.log})
		if err != nil {
			return nil, err
		}
		d.store.SetServiceCIDRs(d.cfg.serviceCIDRs)
		return &source{parts: []func(context.Context) error{m.Run}}, nil
	}
	servers := d.servers()
	client, _, err := watcher.NewClient(watcher.ClientOptions{
		Kubeconfig: d.cfg.Kubeconfig, APIServer: d.cfg.APIServer, Servers: servers, QPS: d.cfg.QPS, Burst: d.cfg.Burst,
		ContentType: d.cfg.ContentType, AcceptContentTypes: d.cfg.AcceptContentTypes})
	if err != nil {
		return nil, err
	}
	events := watcher.NewEvents(client, d.cfg.NodeName, d.log)
	fixed := len(d.cfg.serviceCIDRs) > 0
	if fixed {
		d.store.SetServiceCIDRs(d.cfg.serviceCIDRs)
	}
	api, err := watcher.NewAPI(watcher.APIOptions{Client: client, NodeName: d.cfg.NodeName,
		FixedCIDRs: fixed, Sink: d.store, Log: d.log, Recorder: events, Hint: servers.Hint})
	if err != nil {
		return nil, err
	}
	events.Starting()
	return &source{
		parts:   []func(context.Context) error{api.Run, events.Run, servers.Run},
		warn:    api.ServiceWarning,
		watches: watches(api),
		hasNode: true,
		recall:  func() { d.recallServers(servers) },
	}, nil
}

// servers returns the Servers that dial the API server. They dial its endpoints directly,
// in case this daemon itself serves the API server's address.
func (d *daemon) servers() *watcher.Servers {
	return watcher.NewServers(watcher.ServersOptions{
		Leads: d.leads,
		Uses:  d.reserved.useAPI,
		Save:  func(found watcher.Endpoints) error { return d.memory.Put(maps.MemoryServers, found) },
		Room:  maps.MemoryText,
		Log:   d.log,
	})
}

func (d *daemon) recallServers(servers *watcher.Servers) {
	var found watcher.Endpoints
	if err := d.memory.Get(maps.MemoryServers, &found); err != nil {
		d.log.Warn("the endpoints of the API server that an earlier daemon found are not known", zap.Error(err))
	}
	servers.Recall(found)
}
