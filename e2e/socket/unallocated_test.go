// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

// TestUnallocated: an address of a service CIDR without a service is refused, and has its
// own counter. Other addresses and the services in the range are not affected. This also
// holds without the daemon, as long as the range is known.
func TestUnallocated(t *testing.T) {
	t.Parallel()
	flag := fmt.Sprintf("--service-cidr=%s,%s", lab.ServiceCIDR4, lab.ServiceCIDR6)
	c := startCluster(t, flag)
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.web[0])...))
	const nobody = 200
	refused := func(n int) {
		t.Helper()
		before := c.d.Reasons()["unallocated"]
		for _, from := range []*lab.Pod{c.client, c.host} {
			for _, w := range ways {
				w.wantErrno(t, from, rig.VIP(n, w.family), syscall.EHOSTUNREACH)
			}
		}
		if counted := c.d.Reasons()["unallocated"] - before; counted != uint64(2*len(ways)) {
			t.Errorf("%d of %d were counted as unallocated", counted, 2*len(ways))
		}
	}
	refused(nobody)
	silence := func(what string, to func(way) netip.AddrPort) {
		t.Helper()
		before := c.d.Reasons()["no_frontend"]
		for _, w := range ways {
			a := c.client.Request(w.network, to(w), lab.RequestOptions{Unconnected: w.sendto, Timeout: 50 * time.Millisecond})
			if !errors.Is(a.Err, syscall.ETIMEDOUT) {
				t.Errorf("%s: %s: answered by %q (%v)", w, what, a.Server, a.Err)
			}
		}
		if n := c.d.Reasons()["no_frontend"] - before; n < uint64(len(ways)) { // it includes the daemon's own
			t.Errorf("%s: %d were counted as no_frontend, want %d", what, n, len(ways))
		}
	}
	silence("an address beside the range", func(w way) netip.AddrPort { return rig.At(w.of(rig.BalancerIPs(50)), rig.ServicePort) })
	for _, w := range ways {
		w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[0])
		w.wantServers(t, c.client, rig.At(w.of(c.web[1].Addrs()), rig.ServerPort), c.web[1])
		w.wantErrno(t, c.client, rig.At(rig.VIP(1, w.family).Addr(), rig.ServicePort+1), syscall.ECONNREFUSED)
	}

	outside := c.Client("outside")
	outside.RouteVia(lab.ServiceCIDR4, c.n1)
	outside.RouteVia(lab.ServiceCIDR6, c.n1)
	for _, w := range ways {
		before := c.d.Reasons()["unallocated"]
		a := outside.Request(w.network, rig.VIP(nobody, w.family), lab.RequestOptions{Unconnected: w.sendto, Timeout: 50 * time.Millisecond})
		if n := c.d.Reasons()["unallocated"] - before; !errors.Is(a.Err, syscall.ETIMEDOUT) || n == 0 {
			t.Errorf("%s from outside: answered by %q (%v), counted %d times as unallocated", w, a.Server, a.Err, n)
		}
		if a := w.ask(outside, rig.VIP(1, w.family)); a.Err != nil {
			t.Errorf("%s from outside: a service in the range: %v", w, a.Err)
		}
	}

	// A service of another proxy has the address: its packets are not touched, also over a
	// restart.
	other := rig.Service("other", nobody)
	other.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "another"}
	c.apply(other)
	silence("another proxy's service", func(w way) netip.AddrPort { return rig.VIP(nobody, w.family) })
	refused(nobody + 1)
	c.d.Kill()
	silence("another proxy's service, with the daemon away", func(w way) netip.AddrPort { return rig.VIP(nobody, w.family) })
	c.d.Start()
	refused(nobody + 1)
	silence("another proxy's service, with a new daemon", func(w way) netip.AddrPort { return rig.VIP(nobody, w.family) })
	c.remove("other")
	refused(nobody)

	// The address gets a service, and then none again: also for a socket that used it.
	c.apply(rig.Service("late", nobody), rig.SlicesOf("late", rig.Up(c.web[1])...))
	for _, w := range ways {
		w.wantServers(t, c.client, rig.VIP(nobody, w.family), c.web[1])
	}
	loose := udpWays[0].open(t, c.client)
	loose.askTo(rig.VIP(nobody, 4))
	c.remove("late")
	refused(nobody)
	if err := loose.SendTo(rig.VIP(nobody, 4), line("x")); !errors.Is(err, rig.Refusal(syscall.EHOSTUNREACH)) {
		t.Errorf("sendto the address of a deleted service: %v, want to be refused", err)
	}

	c.d.Kill()
	refused(nobody)
	if dump := c.d.Dump(); !slices.Equal(dump.ServiceCIDRs, []netip.Prefix{lab.ServiceCIDR4, lab.ServiceCIDR6}) {
		t.Errorf("the maps hold service CIDRs %v", dump.ServiceCIDRs)
	}
	stdout, _, code := runInPod(t, c.d.Pod, rig.Self, "status", "--bpffs-root", c.d.Root)
	if said := fmt.Sprintf("%s %s", lab.ServiceCIDR4, lab.ServiceCIDR6); code != 3 || !strings.Contains(stdout, said) {
		t.Errorf("status (%d) does not say %q:\n%s", code, said, stdout)
	}
	c.d.Args[slices.Index(c.d.Args, flag)] = "--service-cidr=10.99.0.0/16"
	c.d.Start()
	silence("an address of a range that is none any more", func(w way) netip.AddrPort { return rig.VIP(nobody, w.family) })
}
