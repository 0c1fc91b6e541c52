// SPDX-License-Identifier: Apache-2.0

package contract

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"shunt/lb"
	"shunt/maps"
	"shunt/maps/mapstest"
	"shunt/watcher"
)

// The node in the test, and its servers.
var (
	thisNode  = "me"
	nodeAddrs = []netip.Addr{netip.MustParseAddr("192.168.0.1"), netip.MustParseAddr("fd00:1::1")}
	sizes     = maps.Sizes{Services: 1024, Slots: 1024, Backends: 1024, Affinity: 16, Sources: 16, Flows: 16}
)

func places() map[string]Server {
	at := map[string]Server{}
	n := 0
	for name, here := range ServerNames() {
		n++
		node := map[bool]string{true: thisNode, false: "other"}[here]
		at[name] = Server{node, []netip.Addr{
			netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", n)), netip.MustParseAddr(fmt.Sprintf("fd00::%d", n))}}
	}
	return at
}

// TestPlan checks the table against the maps that the loop makes from its objects: the
// result of a look-up for each client.
func TestPlan(t *testing.T) {
	cases, err := Cases()
	if err != nil {
		t.Fatal(err)
	}
	for name, tables := range map[string]func(*testing.T) maps.Tables{
		"fake":   func(*testing.T) maps.Tables { return maps.NewFake(sizes) },
		"kernel": func(t *testing.T) maps.Tables { return mapstest.New(t, sizes) },
	} {
		t.Run(name, func(t *testing.T) {
			at := places()
			dump := program(t, tables(t), Objects(at))
			for _, c := range cases {
				for _, family := range []int{4, 6} {
					for _, protocol := range []lb.Protocol{lb.TCP, lb.UDP} {
						dst := c.Dst(family, nodeAddrs)
						got := lookUp(dump, c.Client, maps.NewFrontendKey(dst.Addr(), dst.Port(), uint8(protocol)), at)
						if got != c.Want {
							t.Errorf("%s, IPv%d, %s: %s asks %s: %s, want %s", c, family, protocol, c.Client, dst, got, c.Want)
						}
					}
				}
			}
		})
	}
}

// program passes the objects to a loop, and returns the content of the maps.
func program(t *testing.T, tables maps.Tables, objects []any) (dump *maps.Dump) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		store := lb.NewStore(time.Now)
		loop := lb.NewLoop(lb.LoopOptions{Store: store, Tables: tables, Log: zap.NewNop(), Now: time.Now, NodeName: thisNode})
		var converter watcher.Converter
		for _, o := range objects {
			var warnings []watcher.Warning
			switch o := o.(type) {
			case *corev1.Service:
				var svc *lb.Service
				svc, warnings = converter.Service(o)
				store.SetService(svc)
			case *discoveryv1.EndpointSlice:
				var sl *lb.EndpointSlice
				sl, warnings = converter.Slice(o)
				store.SetSlice(sl)
			}
			if len(warnings) > 0 {
				t.Errorf("warnings: %v", warnings)
			}
		}
		store.SetNodeAddrs(nodeAddrs)
		store.SetSynced()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- loop.Run(ctx) }()
		<-loop.Synced()
		cancel()
		err := <-ended
		if err == nil {
			err = loop.Status().Err
		}
		if err == nil {
			dump, err = tables.Dump()
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	return dump
}

// lookUp does the look-up of lb.h by the frontend's key: first its own entry, then that of
// a node port if the address takes node ports; then the slot range for the client's side.
// It adds tc.c's part: the source is this node's if neither client nor backend is here.
func lookUp(d *maps.Dump, c Client, key maps.FrontendKey, at map[string]Server) string {
	svc, there := d.Frontends[key]
	if addr := key.AddrPort().Addr(); !there {
		if _, takes := d.NodeAddrs[addr]; !takes {
			return "no frontend"
		}
		any := netip.IPv4Unspecified()
		if addr.Is6() {
			any = netip.IPv6Unspecified()
		}
		if svc, there = d.Frontends[maps.NewFrontendKey(any, key.AddrPort().Port(), key.Protocol)]; !there {
			return "no node port"
		}
	}
	slots := svc.Inside
	if c == Outside {
		slots = svc.Outside
	}
	switch {
	case slots.Count == 0 && svc.Flags&maps.Elsewhere != 0:
		return Dropped
	case slots.Count == 0:
		return Refused
	}
	ids, err := d.Range(slots)
	if err != nil {
		return err.Error()
	}
	answer := map[string]bool{}
	for _, id := range ids {
		be := d.Backends[id]
		name := nameOf(be.AddrPort(), at)
		if !c.OnNode() && be.Flags&maps.OnNode == 0 {
			name += SeenAsNode
		}
		answer[name] = true
	}
	return Text(answer)
}

func nameOf(a netip.AddrPort, at map[string]Server) string {
	for name, s := range at {
		for _, own := range s.Addrs {
			if a == netip.AddrPortFrom(own, ServerPort) {
				return name
			}
		}
	}
	return a.String()
}
