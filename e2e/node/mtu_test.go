// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

const (
	// much exceeds all buffers.
	much = 32 << 20
	gib  = 1 << 30
)

// path is a cluster with a router, which can be put on a path and has a smaller MTU there.
type path struct {
	*cluster
	router        *lab.Node
	atRouter, at1 *lab.Pod
	tunnel        bool
}

func newPath(t *testing.T, joined lab.Network) *path {
	c := startCluster(t, joined)
	p := &path{cluster: c, router: c.Node("n3"), tunnel: joined.VXLAN}
	p.atRouter, p.at1 = p.router.HostPod("at-router"), c.n1.HostPod("at-1")
	for _, r := range serviceRanges {
		p.atRouter.RouteVia(r, c.n1)
	}
	c.backendServices()
	return p
}

// transfer moves bytes through a frontend and changes the path half-way. The checksums of
// both sides must agree.
func (p *path) transfer(t *testing.T, dst netip.AddrPort, opts lab.TransferOptions, change func()) lab.TransferReport {
	t.Helper()
	opts.Pause = (opts.Up + opts.Down) / 2
	x, err := p.outside.StartTransfer(dst, opts)
	if err != nil {
		t.Fatalf("to %v: %v", dst, err)
	}
	if err := x.Paused(); err != nil {
		t.Fatal(err)
	}
	change()
	if err := x.Resume(); err != nil {
		t.Fatal(err)
	}
	r, err := x.Wait()
	if err != nil {
		t.Fatalf("to %v: %v; %+v", dst, err, r)
	}
	return r
}

// toPods sets the first node's route to the second's pods.
func (p *path) toPods(family, mtu int) {
	p.at1.SetRoute(lab.Route{Dst: p.n2.PodCIDRs()[family], Via: p.n2, Tunnel: p.tunnel, MTU: mtu})
}

// toClient sets from's route to the client, through the router if via is set.
func (p *path) toClient(from *lab.Pod, family int, via *lab.Node, mtu int) {
	client := p.outside.Addrs()[family]
	from.SetRoute(lab.Route{Dst: netip.PrefixFrom(client, client.BitLen()), Via: via, MTU: mtu})
}

// toNear sets the first node's route to its pod.
func (p *path) toNear(family, mtu int) {
	near := p.near.Addrs()[family]
	p.at1.SetRoute(lab.Route{Dst: netip.PrefixFrom(near, near.BitLen()), Device: p.near.NodeDevice(), MTU: mtu})
}

// straight removes the router from all paths, and clears what was learnt of them.
func (p *path) straight(t *testing.T, family int) {
	t.Helper()
	p.toPods(family, 0)
	p.toNear(family, 0)
	p.toClient(p.at1, family, nil, 0)
	p.toClient(p.atRouter, family, nil, 0)
	if !p.tunnel {
		p.atRouter.SetRoute(lab.Route{Dst: p.n2.PodCIDRs()[family], Via: p.n2})
	}
	for _, pod := range []*lab.Pod{p.outside, p.near, p.far, p.at1, p.hostFar, p.atRouter} {
		if out, err := runIn(pod, "", "ip", []string{"-4", "-6"}[family], "route", "flush", "cache"); err != nil {
			t.Fatalf("forget the paths: %v: %s", err, out)
		}
	}
}

// bend is a change that lowers a path's MTU.
type bend struct {
	name    string
	service int  // of backendServices
	up      bool // the client sends
	mtu     int
	routed  bool // other nodes' pods are reached by plain routes only
	before  func(p *path, family int)
	change  func(p *path, family, mtu int)
}

func behindRouter(p *path, family int) {
	p.toClient(p.atRouter, family, nil, 0)
	p.toClient(p.at1, family, p.router, 0)
}

func routerToClient(p *path, family, mtu int) { p.toClient(p.atRouter, family, nil, mtu) }

var bends = []bend{
	{name: "to a remote backend, said by the node itself", service: 2, up: true, mtu: 1400,
		change: func(p *path, family, mtu int) { p.toPods(family, mtu) }},
	{name: "to a remote backend, said by a router", service: 2, up: true, mtu: 1390, routed: true,
		before: func(p *path, family int) {
			p.at1.SetRoute(lab.Route{Dst: p.n2.PodCIDRs()[family], Via: p.router})
		},
		change: func(p *path, family, mtu int) {
			p.atRouter.SetRoute(lab.Route{Dst: p.n2.PodCIDRs()[family], Via: p.n2, MTU: mtu})
		}},
	{name: "to a local backend, said by the node itself", service: 1, up: true, mtu: 1380,
		change: func(p *path, family, mtu int) { p.toNear(family, mtu) }},
	{name: "from a remote backend, said by the node itself", service: 2, mtu: 1370,
		change: func(p *path, family, mtu int) { p.toClient(p.at1, family, nil, mtu) }},
	{name: "from a remote backend, said by a router before the client", service: 2, mtu: 1360,
		before: behindRouter, change: routerToClient},
	{name: "from a local backend, said by a router before the client", service: 1, mtu: 1350,
		before: behindRouter, change: routerToClient},
	{name: "from the node's own network, said by a router before the client", service: 3, mtu: 1340,
		before: behindRouter, change: routerToClient},
}

// TestPathMTU: the MTU of a path is lowered during a transfer, at every possible hop, and
// the sender learns of it, also through conntrack, for which the ICMP error belongs to a
// connection (RELATED).
func TestPathMTU(t *testing.T) {
	for _, joined := range eachNetwork() {
		if joined.Bridge && !joined.VXLAN {
			continue // the other networks cover this
		}
		t.Run(joined.name, func(t *testing.T) {
			t.Parallel()
			p := newPath(t, joined.Network)
			place := newPlace(t, p.cluster)
			for _, set := range []string{"none", "forward-dropped-but-pods"} {
				set := ruleSetOf(set)
				tool := set.tools()[0]
				place.with(t, tool, set, func() {
					for family := range families {
						for _, bend := range bends {
							if bend.routed && joined.VXLAN {
								continue
							}
							for i, f := range frontends[:externalIP] {
								t.Run(fmt.Sprintf("%s/%s/%s/%s", set.name, families[family], f.name, bend.name), func(t *testing.T) {
									p.bent(t, bend, f, family, bend.mtu-4*i)
								})
							}
						}
					}
				})
			}
		})
	}
}

// bent moves bytes along a path whose MTU is lowered to mtu bytes.
func (p *path) bent(t *testing.T, b bend, f frontend, family, mtu int) {
	p.straight(t, family)
	if b.before != nil {
		b.before(p, family)
	}
	opts := lab.TransferOptions{Up: much}
	if !b.up {
		opts = lab.TransferOptions{Down: much}
	}
	r := p.transfer(t, f.of(p.cluster, b.service, family), opts, func() { b.change(p, family, mtu) })
	if got := r.ClientMTU + r.ServerMTU; got != mtu {
		t.Errorf("the sender has a path MTU of %d, want %d", got, mtu)
	}
}

// TestGigabyte moves a gigabyte through a node port to a remote backend, while the path's
// MTU is lowered half-way.
func TestGigabyte(t *testing.T) {
	p := newPath(t, lab.Network{})
	amount := rig.InShort(gib/8, gib)
	for family, name := range families {
		r := p.transfer(t, p.nodePortAt(2, family), lab.TransferOptions{Up: int64(amount)}, func() { p.toPods(family, 1400) })
		if r.ClientMTU != 1400 || r.Server != p.far.Name() {
			t.Errorf("%s: %+v; want a path MTU of 1400", name, r)
		}
		t.Logf("%s: %d MiB in %v", name, amount>>20, r.Elapsed.Round(time.Millisecond))
	}
}

// TestFragments: fragmented datagrams of 8 kB in both directions, on every kind of network,
// with and without conntrack, which reassembles fragments.
func TestFragments(t *testing.T) {
	for _, joined := range eachNetwork() {
		t.Run(joined.name, func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, joined.Network)
			c.backendServices()
			place := newPlace(t, c)
			for _, set := range []string{"flannel-masquerade", "none", "invalid-dropped"} {
				set := ruleSetOf(set)
				tool := set.tools()[0]
				place.with(t, tool, set, func() {
					for family := range families {
						for _, b := range backends {
							for _, f := range frontends {
								name := fmt.Sprintf("%s, %s, %s, %s", set.name, families[family], f.name, b.name)
								c.talkInFragments(t, name, family, f.of(c, b.service, family))
							}
						}
					}
				})
			}
		})
	}
}

// talkInFragments sends 8 kB and expects 8 kB back. The first datagrams may be lost until the
// path's MTU is known.
func (c *cluster) talkInFragments(t *testing.T, name string, family int, dst netip.AddrPort) {
	t.Helper()
	s := c.outside.Socket([]string{"udp4", "udp6"}[family])
	defer s.Close()
	token := strings.Repeat("0123456789abcdef", 512)
	talk := func(i int) error {
		mine := fmt.Sprintf("%04d%s", i, token)
		if err := s.SendTo(dst, []byte(mine+"\n")); err != nil {
			return err
		}
		for {
			data, from, err := s.Recv(500 * time.Millisecond)
			if err != nil {
				return err
			}
			got, _, _ := strings.Cut(string(data), " ")
			if got == mine && from == dst {
				return nil
			}
			if from != dst || len(got) != len(mine) {
				return fmt.Errorf("%d bytes from %v, want %d from %v", len(got), from, len(mine), dst)
			}
		}
	}
	n := 0
	for ; ; n++ {
		err := talk(n)
		if err == nil {
			break
		}
		if n == 4 {
			t.Errorf("%s: no datagram of 8 kB came through: %v", name, err)
			return
		}
	}
	for i := range 5 {
		if err := talk(n + 1 + i); err != nil {
			t.Errorf("%s: datagram %d after the first that came through: %v", name, i, err)
		}
	}
}
