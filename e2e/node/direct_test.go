// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

// exchangesEnv names the number of exchanges that TestDirect makes for each network and
// number of ports; 200000 takes a quarter of an hour.
const exchangesEnv = "SHUNT_EXCHANGES"

func exchanges(t *testing.T) int {
	text := os.Getenv(exchangesEnv)
	if text == "" {
		return rig.InShort(4_000, 16_000)
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: give a number of exchanges", exchangesEnv, text)
	}
	return n
}

// TestDirect: clients use a few ports for everything: services by packets, services that
// their own node translates, and the pods behind them. Every answer comes from the address
// that was asked.
func TestDirect(t *testing.T) {
	for _, c := range []struct {
		name  string
		ports int
		lab.Network
	}{
		{"200 ports", 200, lab.Network{}},
		{"60 ports", 60, lab.Network{}},
		{"60 ports by a tunnel", 60, lab.Network{VXLAN: true}},
	} {
		t.Run(c.name, func(t *testing.T) { testDirect(t, c.Network, c.ports, exchanges(t)) })
	}
}

func testDirect(t *testing.T, network lab.Network, ports, count int) {
	c := newCluster(t, network)
	client, second := c.n2.Pod("client"), c.n1.Pod("near-2")
	serve(rig.ServerPort, second)
	for _, r := range c.n1.PodCIDRs() {
		c.outside.RouteVia(r, c.n1) // all requests of this client go by packets
	}
	clients := []*lab.Pod{client, c.hostFar, c.outside}
	for _, p := range clients {
		narrow(t, p, ports)
	}
	c.start(clusterCIDRs)
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.near, second)...))
	const kinds = 5 // of destinations
	each := max(1, count/(len(clients)*len(protocols)*len(families)*kinds))
	done := 0
	eachWay(func(network string, family int) {
		for _, from := range clients {
			done += exchangeAll(t, network+"/"+families[family], from, each, []netip.AddrPort{
				c.nodePortAt(1, family), frontends[loadBalancer].of(c, 1, family), frontends[clusterIP].of(c, 1, family),
				rig.At(c.near.Addrs()[family], rig.ServerPort), rig.At(second.Addrs()[family], rig.ServerPort)})
		}
	})
	reasons := c.d.Reasons()
	t.Logf("%d exchanges; %d direct ones got another port", done, reasons["direct_remapped"])
	if done < count*9/10 || reasons["direct_remapped"] == 0 {
		t.Errorf("%d of %d exchanges, %d direct ones got another port: nothing is shown", done, count, reasons["direct_remapped"])
	}
}

// narrow restricts a client to so many ports.
func narrow(t *testing.T, p *lab.Pod, ports int) {
	t.Helper()
	err := p.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", fmt.Appendf(nil, "40000 %d", 40000+ports-1), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// exchangeAll asks all destinations concurrently, and returns the number of exchanges.
func exchangeAll(t *testing.T, name string, from *lab.Pod, each int, dsts []netip.AddrPort) (done int) {
	t.Helper()
	opts := lab.HammerOptions{Count: each, Concurrency: 4, Timeout: 10 * time.Second}
	all := make([]*lab.Hammering, len(dsts))
	for i, dst := range dsts {
		all[i] = from.StartHammer(name[:3], dst, opts)
	}
	for i, h := range all {
		s, err := h.Wait()
		if err != nil {
			t.Fatal(err)
		}
		done += s.Done
		if s.Answered != s.Done {
			t.Errorf("%s, %s to %v: %d of %d exchanges failed: %v (%s)", name, from.Name(), dsts[i], s.Done-s.Answered, s.Done,
				s.Errors, s.FirstError)
		}
		if s.Total.Max > time.Second {
			t.Logf("%s, %s to %v: the slowest took %v", name, from.Name(), dsts[i], s.Total.Max)
		}
	}
	return done
}
