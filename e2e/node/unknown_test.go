// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
	"shunt/maps"
)

// resets reports whether a daemon's devices reset unknown connections.
func resets(t *testing.T, d *rig.Daemon) (all bool) {
	t.Helper()
	err := d.Kernel(func(k *maps.Kernel) {
		devices, err := k.Devices()
		if err != nil {
			t.Fatal(err)
		}
		all = len(devices) > 0
		for _, dev := range devices {
			all = all && dev.Flags&maps.DeviceResets != 0
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func waitResets(t *testing.T, d *rig.Daemon, within time.Duration) {
	t.Helper()
	for start := time.Now(); !resets(t, d); time.Sleep(50 * time.Millisecond) {
		if time.Since(start) > within {
			t.Fatalf("unknown connections are not reset after %v", within)
		}
	}
}

// TestUnknownConnection: packets of an established connection arrive at another node, which
// has no flow for it. The client gets a RST at once.
func TestUnknownConnection(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.near)...))
	waitResets(t, c.d2, 30*time.Second)
	for family := range families {
		for _, kind := range []int{loadBalancer, externalIP} {
			f := frontends[kind]
			t.Run(families[family]+"/"+f.name, func(t *testing.T) {
				for _, r := range serviceRanges {
					c.outside.RouteVia(r, c.n1)
				}
				s := c.outside.Socket([]string{"tcp4", "tcp6"}[family])
				defer s.Close()
				if err := s.Connect(f.of(c, 1, family)); err != nil {
					t.Fatal(err)
				}
				if _, err := question(s, 5*time.Second); err != nil {
					t.Fatal(err)
				}
				for _, r := range serviceRanges {
					c.outside.RouteVia(r, c.n2)
				}
				before, start := c.d2.Reasons()["connection_unknown"], time.Now()
				_, err := question(s, 5*time.Second)
				if !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("after %v: %v, want a reset", time.Since(start), err)
				}
				if c.d2.Reasons()["connection_unknown"] == before {
					t.Error("not counted as connection_unknown")
				}
			})
		}
	}
}

// dnat is a rule set of another proxy, for one frontend.
const dnat = `table %[1]s other {
	chain prerouting {
		type nat hook prerouting priority -100
		%[1]s daddr %[2]s tcp dport %[3]d dnat to %[4]s
	}
}
`

// TestConnectionOfAnother: a connection that another proxy translates by conntrack continues
// when shunt replaces that proxy. shunt does not reset unknown connections until the conntrack
// entry is gone. The same holds if shunt already resets unknown connections when the service
// of that connection is added.
func TestConnectionOfAnother(t *testing.T) {
	for name, late := range map[string]bool{"at the start": false, "learnt later": true} {
		t.Run(name, func(t *testing.T) { testConnectionOfAnother(t, late) })
	}
}

func testConnectionOfAnother(t *testing.T, late bool) {
	t.Parallel()
	c := newCluster(t, lab.Network{})
	rules := ""
	for family, table := range []string{"ip", "ip6"} {
		to := loadBalancerOf(c, family)
		rules += fmt.Sprintf(dnat, table, to.Addr(), to.Port(), rig.At(c.near.Addrs()[family], rig.ServerPort))
	}
	if out, err := runIn(c.hostNear, rules, "nft", "-f", "-"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var open []*lab.Socket
	for family := range families {
		s := c.outside.Socket([]string{"tcp4", "tcp6"}[family])
		t.Cleanup(func() { _ = s.Close() })
		if err := s.Connect(loadBalancerOf(c, family)); err != nil {
			t.Fatal(err)
		}
		open = append(open, s)
	}
	ask := func(when string) {
		t.Helper()
		for family, s := range open {
			if server, err := question(s, 5*time.Second); err != nil || server != c.near.Name() {
				t.Fatalf("%s, %s: %q, %v", when, families[family], server, err)
			}
		}
	}
	ask("before")
	// The service is older than the daemons: they count its connections in conntrack as soon
	// as they are in effect, and only once if there are none.
	if late {
		c.start()
		c.m.Put(rig.Service("other", 2, rig.Everywhere(2)), rig.SlicesOf("other", rig.Up(c.near)...))
		c.apply()
		waitResets(t, c.d, 30*time.Second)
	}
	c.m.Put(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.near)...))
	if !late {
		c.m.Write()
		c.start()
	}
	c.apply()
	ask("at once")
	waitResets(t, c.d2, 30*time.Second) // there are no conntrack entries
	for start := time.Now(); time.Since(start) < 12*time.Second; time.Sleep(time.Second) {
		ask("after")
		if resets(t, c.d) {
			t.Fatal("unknown connections are reset while conntrack translates some")
		}
	}
	// The other proxy's NAT table keeps conntrack active. Without conntrack entries, unknown
	// connections are reset again.
	if out, err := runIn(c.hostNear, "", "conntrack", "-F"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	waitResets(t, c.d, 30*time.Second)
	for family, s := range open {
		if _, err := question(s, 5*time.Second); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s, forgotten by conntrack: %v, want a reset", families[family], err)
		}
	}
}

func loadBalancerOf(c *cluster, family int) netip.AddrPort {
	return frontends[loadBalancer].of(c, 1, family)
}
