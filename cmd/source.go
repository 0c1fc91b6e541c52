package cmd

import (
	"context"

	"shunt/lb"
	"shunt/watcher"
)

// source is where Services come from, as parts that run with the daemon.
type source struct {
	parts []func(context.Context) error
	// warn records a Warning event on a Service; nil where nobody takes events.
	warn func(service lb.ServiceName, reason, note string)
	// hasNode: a Node will be seen.
	hasNode bool
}

// newSource makes the watcher that the flags ask for, and the store it fills.
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
	client, _, err := watcher.NewClient(watcher.ClientOptions{
		Kubeconfig: d.cfg.Kubeconfig, APIServer: d.cfg.APIServer, QPS: d.cfg.QPS, Burst: d.cfg.Burst,
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
		FixedCIDRs: fixed, Sink: d.store, Log: d.log, Recorder: events})
	if err != nil {
		return nil, err
	}
	events.Starting()
	return &source{
		parts:   []func(context.Context) error{api.Run, events.Run},
		warn:    api.ServiceWarning,
		hasNode: true,
	}, nil
}
