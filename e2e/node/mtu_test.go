package node_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"shunt/e2e/lab"
	"shunt/e2e/rig"
)

const (
	// much is enough to go on for a while after half of it.
	much = 64 << 20
	gib  = 1 << 30
)

// path is a cluster with a router, which stands in some way and takes only smaller
// packets there.
type path struct {
	*cluster
	router             *lab.Node
	atRouter, at1, at2 *lab.Pod
}

func newPath(t *testing.T) *path {
	c := startCluster(t, lab.Network{})
	p := &path{cluster: c, router: c.Node("n3")}
	p.atRouter, p.at1, p.at2 = p.router.HostPod("at-router"), c.n1.HostPod("at-1"), c.n2.HostPod("at-2")
	for _, r := range serviceRanges {
		p.atRouter.RouteVia(r, c.n1)
	}
	c.backendServices()
	return p
}

// transfer moves bytes through a frontend and changes the path half-way. The sums of
// both sides must agree.
func (p *path) transfer(t *testing.T, dst netip.AddrPort, opts lab.TransferOptions, change func()) lab.TransferReport {
	t.Helper()
	x, err := p.outside.StartTransfer(dst, opts)
	if err != nil {
		t.Fatalf("to %v: %v", dst, err)
	}
	rig.Eventually(t, "half of the bytes are there", func() bool {
		n, err := x.Bytes()
		return err != nil || n >= (opts.Up+opts.Down)/2
	})
	if n, err := x.Bytes(); err != nil || n >= opts.Up+opts.Down {
		t.Fatalf("all %d bytes were moved before the path could change (%v): too few", n, err)
	}
	change()
	r, err := x.Wait()
	if err != nil {
		t.Fatalf("to %v: %v; %+v", dst, err, r)
	}
	return r
}

// TestPathMTU: the largest packet that a path takes gets smaller under a transfer, in
// every place where that can be, and the side that sends hears of it.
func TestPathMTU(t *testing.T) {
	t.Parallel()
	p := newPath(t)
	for family, name := range families {
		pods := p.n2.PodCIDRs()[family]
		client := netip.PrefixFrom(p.outside.Addrs()[family], p.outside.Addrs()[family].BitLen())
		for _, test := range []struct {
			name   string
			n      int // service
			up     bool
			mtu    int // of the path
			before func()
			change func(mtu int)
		}{
			{
				name: "to a remote backend, said by the node itself", n: 2, up: true, mtu: 1400,
				change: func(mtu int) { p.at1.SetRoute(lab.Route{Dst: pods, Via: p.n2, MTU: mtu}) },
			},
			{
				name: "to a remote backend, said by a router", n: 2, up: true, mtu: 1380,
				before: func() {
					p.atRouter.SetRoute(lab.Route{Dst: pods, Via: p.n2})
					p.at1.SetRoute(lab.Route{Dst: pods, Via: p.router})
				},
				change: func(mtu int) { p.atRouter.SetRoute(lab.Route{Dst: pods, Via: p.n2, MTU: mtu}) },
			},
			{
				name: "from a remote backend, said by a router before the client", n: 2, mtu: 1360,
				before: func() {
					p.atRouter.SetRoute(lab.Route{Dst: client})
					p.at1.SetRoute(lab.Route{Dst: client, Via: p.router})
				},
				change: func(mtu int) { p.atRouter.SetRoute(lab.Route{Dst: client, MTU: mtu}) },
			},
			{
				name: "from a remote backend, said by the node itself", n: 2, mtu: 1340,
				change: func(mtu int) { p.at1.SetRoute(lab.Route{Dst: client, MTU: mtu}) },
			},
			{
				name: "from a local backend, said by a router before the client", n: 1, mtu: 1320,
				before: func() {
					p.atRouter.SetRoute(lab.Route{Dst: client})
					p.at1.SetRoute(lab.Route{Dst: client, Via: p.router})
				},
				change: func(mtu int) { p.atRouter.SetRoute(lab.Route{Dst: client, MTU: mtu}) },
			},
			{
				name: "from the node's own network, said by a router before the client", n: 3, mtu: 1300,
				before: func() {
					p.atRouter.SetRoute(lab.Route{Dst: client})
					p.at1.SetRoute(lab.Route{Dst: client, Via: p.router})
				},
				change: func(mtu int) { p.atRouter.SetRoute(lab.Route{Dst: client, MTU: mtu}) },
			},
			{
				name: "to a local backend, said by the node itself", n: 1, up: true, mtu: 1390,
				change: func(mtu int) {
					own := p.near.Addrs()[family]
					p.at1.SetRoute(lab.Route{Dst: netip.PrefixFrom(own, own.BitLen()), Device: p.near.Veth(), MTU: mtu})
				},
			},
		} {
			for i, f := range frontends[:externalIP] {
				t.Run(fmt.Sprintf("%s/%s/%s", name, f.name, test.name), func(t *testing.T) {
					p.straight(family)
					if test.before != nil {
						test.before()
					}
					// A destination's path MTU is remembered: each has its own.
					mtu := test.mtu - 4*i
					opts := lab.TransferOptions{Up: much}
					if !test.up {
						opts = lab.TransferOptions{Down: much}
					}
					r := p.transfer(t, f.of(p.cluster, test.n, family), opts, func() { test.change(mtu) })
					if got := r.ClientMTU + r.ServerMTU; got != mtu {
						t.Errorf("the sender has a path MTU of %d, want %d", got, mtu)
					}
				})
			}
		}
	}
}

// straight takes the router out of all paths.
func (p *path) straight(family int) {
	client := p.outside.Addrs()[family]
	near := p.near.Addrs()[family]
	p.at1.SetRoute(lab.Route{Dst: p.n2.PodCIDRs()[family], Via: p.n2})
	p.at1.SetRoute(lab.Route{Dst: netip.PrefixFrom(client, client.BitLen())})
	p.at1.SetRoute(lab.Route{Dst: netip.PrefixFrom(near, near.BitLen()), Device: p.near.Veth()})
	p.atRouter.SetRoute(lab.Route{Dst: p.n2.PodCIDRs()[family], Via: p.n2})
	p.atRouter.SetRoute(lab.Route{Dst: netip.PrefixFrom(client, client.BitLen())})
	// What was learnt of the paths before.
	for _, pod := range []*lab.Pod{p.outside, p.near, p.far, p.at1, p.at2, p.atRouter} {
		for _, version := range []string{"-4", "-6"} {
			_, _ = runIn(pod, "", "ip", version, "route", "flush", "cache") // what stays shows by a wrong MTU
		}
	}
}

// TestGigabyte moves a gigabyte through a node port to a remote backend, while the
// path's MTU is lowered half-way.
func TestGigabyte(t *testing.T) {
	p := newPath(t)
	for family, name := range families {
		dst := p.nodePortAt(2, family)
		r := p.transfer(t, dst, lab.TransferOptions{Up: gib}, func() {
			p.at1.SetRoute(lab.Route{Dst: p.n2.PodCIDRs()[family], Via: p.n2, MTU: 1400})
		})
		if r.ClientMTU != 1400 || r.Server != p.far.Name() {
			t.Errorf("%s: %+v; want a path MTU of 1400", name, r)
		}
		t.Logf("%s: 1 GiB in %v", name, r.Elapsed.Round(time.Millisecond))
	}
}

// TestFragments: datagrams of 8 kB, in pieces, both ways, on every kind of network and
// with and without the tracking of connections, which puts pieces together.
func TestFragments(t *testing.T) {
	for _, joined := range networks {
		t.Run(joined.name, func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, joined.Network)
			c.backendServices()
			place := newPlace(t, c)
			for _, set := range []string{"none", "flannel-masquerade", "invalid-dropped"} {
				set := ruleSetOf(set)
				tool := set.tools()[0]
				place.with(t, tool, set, func() {
					for family := range families {
						for _, b := range backends {
							for _, f := range frontends {
								name := fmt.Sprintf("%s, %s, %s, %s", set.name, families[family], f.name, b.name)
								c.talkInPieces(t, name, family, f.of(c, b.service, family))
							}
						}
					}
				})
			}
		})
	}
}

// talkInPieces asks with 8 kB and wants 8 kB back. The first ones may be lost where
// the path's MTU has still to be learnt.
func (c *cluster) talkInPieces(t *testing.T, name string, family int, dst netip.AddrPort) {
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

// TestNoRedirects: a node that forwards by the link a packet came from tells the
// sender of a shorter way (ICMP redirect). It is the way to the pod: a client must
// not take it for one to the service.
func TestNoRedirects(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	c.backendServices()
	eachWay(func(network string, family int) {
		for _, b := range backends {
			for _, f := range frontends {
				dst := f.of(c, b.service, family)
				for range 3 {
					if a := ask(c.outside, network, dst, 0); a.Err != nil {
						t.Errorf("%s, %s: %v", f.name, b.name, a.Err)
					}
				}
				out, err := runIn(c.outside, "", "ip", "route", "get", dst.Addr().String())
				if err != nil {
					t.Fatalf("ip route get: %v: %s", err, out)
				}
				if strings.Contains(out, "redirected") || strings.Contains(out, "via "+nodeAddrs(c.n2)[family].String()+" ") {
					t.Errorf("%s, %s: the client was led astray: %s", f.name, b.name, out)
				}
			}
		}
	})
}
