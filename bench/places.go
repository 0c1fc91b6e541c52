// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"shunt/lab"
)

// place is a node with a contender.
type place struct {
	contender
	name   string
	node   *lab.Node
	client *lab.Pod
	// prober asks while a change is made.
	prober       *lab.Pod
	server, next *lab.Pod
	// servers count the answers of each server of the moving endpoint.
	servers map[netip.Addr]*lab.Server
}

// outside is shared by all places: a node without a proxy, and clients outside all nodes.
type outside struct {
	node   *lab.Node
	server *lab.Pod // on that node
	client *lab.Pod
	// routed is a client with routes to pods through the node of `direct`, which carries
	// the replies too.
	routed *lab.Pod
}

// makePlaces makes a node of the same shape for each contender, and drops contenders that
// cannot run here.
func (r *runner) makePlaces() error {
	if err := r.makeOutside(); err != nil {
		return err
	}
	for _, name := range Names {
		if !slices.Contains(r.Contenders, name) {
			continue
		}
		p := &place{name: name, servers: map[netip.Addr]*lab.Server{}, node: r.lab.Node(name)}
		if err := r.lab.Err(); err != nil {
			return fmt.Errorf("make nodes and pods: %w", err)
		}
		var info ContenderInfo
		p.contender, info = r.newContender(name, p.node)
		r.report.Contenders = append(r.report.Contenders, info)
		if p.contender == nil {
			continue
		}
		if err := r.makePods(p); err != nil {
			return err
		}
		r.places = append(r.places, p)
	}
	return nil
}

func (r *runner) makePods(p *place) error {
	p.server, p.next = p.node.Pod("server"), p.node.Pod("next")
	p.client, p.prober = p.node.Pod("client"), p.node.Pod("prober")
	for e := range slices.Max(r.Endpoints) {
		p.server.AddAddr(endpoint(e))
	}
	p.next.AddAddr(nextAddr)
	p.server.Serve("udp4", backendPort)
	p.servers[serverAddr] = p.server.Serve("tcp4", backendPort)
	p.servers[nextAddr] = p.next.Serve("tcp4", backendPort)
	err := errors.Join(r.lab.Err(), noRedirects(p.node.Do))
	if err == nil && p.name == nameDirect {
		r.out.routed.RouteVia(lab.SharedCIDR4, p.node)
		r.out.routed.RouteVia(r.out.node.PodCIDRs()[0], p.node)
		r.out.node.HostPod("routes").RouteVia(netip.PrefixFrom(r.out.routed.Addr4(), 32), p.node)
		err = r.lab.Err()
	}
	if err != nil {
		return fmt.Errorf("make nodes and pods: %w", err)
	}
	return nil
}

func (r *runner) makeOutside() error {
	o := outside{node: r.lab.Node("far")}
	o.server = o.node.Pod("far-server")
	o.client, o.routed = r.lab.Client("outside"), r.lab.Client("routed")
	for e := 1; e < slices.Max(r.Endpoints); e++ {
		o.server.AddAddr(farEndpoint(o.server.Addr4(), e))
	}
	o.server.Serve("udp4", backendPort)
	o.server.Serve("tcp4", backendPort)
	err := r.lab.Err()
	if err == nil {
		err = errors.Join(noRedirects(o.node.Do), noRedirects(o.client.Do), noRedirects(o.routed.Do))
	}
	if err != nil {
		return fmt.Errorf("make nodes and pods: %w", err)
	}
	r.out = o
	return nil
}

// noRedirects makes a network namespace neither send nor accept ICMP redirects: all nodes
// and clients are on one link, and a redirect would take a client past the node to be
// measured.
func noRedirects(do func(func() error) error) error {
	return do(func() error {
		for _, device := range []string{"all", "default", "eth0"} {
			for _, key := range []string{"send_redirects", "accept_redirects"} {
				file := filepath.Join("/proc/sys/net/ipv4/conf", device, key)
				if err := os.WriteFile(file, []byte("0"), 0o644); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// closePlaces ends what the lab does not own.
func (r *runner) closePlaces() {
	for _, p := range r.places {
		p.closeRelay()
	}
}

func (p *place) closeRelay() {
	if w, ok := p.contender.(*subscriber); ok && w.relay != nil {
		w.relay.close()
	}
}

// rest waits until a contender that watches the API server is idle, and stops its process
// until wake, so that the process uses no CPU while others are measured.
func (p *place) rest(ctx context.Context) error {
	w, ok := p.contender.(*subscriber)
	if !ok {
		return nil
	}
	if err := w.settle(ctx); err != nil {
		return err
	}
	return w.pause()
}

// wake resumes the process, and waits until it has caught up.
func (p *place) wake(ctx context.Context) error {
	w, ok := p.contender.(*subscriber)
	if !ok {
		return nil
	}
	if err := w.resume(); err != nil {
		return err
	}
	return w.settle(ctx)
}
