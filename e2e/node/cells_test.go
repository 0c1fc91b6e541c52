// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

// joining is a kind of pod network.
type joining struct {
	name string
	lab.Network
}

// networks are all kinds.
var networks = []joining{
	{"ptp", lab.Network{}},
	{"bridge", lab.Network{Bridge: true}},
	{"ptp-vxlan", lab.Network{VXLAN: true}},
	{"bridge-vxlan", lab.Network{Bridge: true, VXLAN: true}},
}

// eachNetwork returns all networks, and in short tests the simplest and the most complete
// one.
func eachNetwork() []joining {
	if testing.Short() {
		return []joining{networks[0], networks[3]}
	}
	return networks
}

// backend is a location of an endpoint.
type backend struct {
	name    string
	service int
	server  func(*cluster) *lab.Pod
	remote  bool
	host    bool // with hostNetwork
}

var backends = []backend{
	{"local", 1, func(c *cluster) *lab.Pod { return c.near }, false, false},
	{"remote", 2, func(c *cluster) *lab.Pod { return c.far }, true, false},
	{"local-host", 3, func(c *cluster) *lab.Pod { return c.hostNear }, false, true},
	{"remote-host", 4, func(c *cluster) *lab.Pod { return c.hostFar }, true, true},
}

// cell is a combination of a frontend, a location of the endpoint, a protocol and a family,
// for a client outside.
type cell struct {
	network  string // protocol
	family   int
	frontend frontend
	backend  backend
}

func (c cell) String() string {
	return fmt.Sprintf("%s %s %s %s", c.network, families[c.family], c.frontend.name, c.backend.name)
}

func cells() (all []cell) {
	eachWay(func(network string, family int) {
		for _, f := range frontends {
			for _, b := range backends {
				all = append(all, cell{network, family, f, b})
			}
		}
	})
	return all
}

// seen returns the address that the server must see: the client's own if the server is on
// the node that was addressed, otherwise the address that this node itself would use.
func (c cell) seen(k *cluster, joined lab.Network) netip.Addr {
	switch {
	case !c.backend.remote:
		return k.outside.Addrs()[c.family]
	case joined.VXLAN && !c.backend.host:
		return k.n1.PodCIDRs()[c.family].Addr() // the tunnel's address
	}
	return nodeAddrs(k.n1)[c.family]
}

// backendServices makes a service for each location of an endpoint.
func (c *cluster) backendServices() {
	c.t.Helper()
	for _, b := range backends {
		endpoints := rig.Up(b.server(c))
		if b.host {
			endpoints = rig.UpAt(hostPort, b.server(c))
		}
		c.m.Put(rig.Service(b.name, b.service, rig.Everywhere(b.service)), rig.SlicesOf(b.name, endpoints...))
	}
	c.apply()
}

// TestCells covers everything that a client outside can ask, on every kind of pod network
// and with every foreign rule set: which server answers, from which address, and which
// client it sees.
func TestCells(t *testing.T) {
	for _, joined := range eachNetwork() {
		t.Run(joined.name, func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, joined.Network)
			c.backendServices()
			place := newPlace(t, c)
			for i, set := range ruleSets {
				for _, tool := range set.eachTool(i) {
					t.Run(set.name+"/"+tool.name, func(t *testing.T) {
						place.with(t, tool, set, func() { c.askCells(t, joined.Network, set) })
					})
				}
			}
		})
	}
}

// askCells makes one exchange for every cell.
func (c *cluster) askCells(t *testing.T, joined lab.Network, set ruleSet) {
	t.Helper()
	var silences sync.WaitGroup // each waits for its timeout, all of them at the same time
	defer silences.Wait()
	for _, cell := range cells() {
		dst := cell.frontend.of(c, cell.backend.service, cell.family)
		if set.drops != nil && set.drops(cell) {
			silences.Go(func() { wantSilence(t, c.outside, cell.network, dst) })
			continue
		}
		if err := askTwice(c.outside, cell.network, dst, 3*time.Second, cell.backend.server(c), cell.seen(c, joined)); err != nil {
			t.Errorf("%s: %v", cell, err)
		}
	}
}
