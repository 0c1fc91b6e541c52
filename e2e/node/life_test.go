// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

// TestKill: the daemon is killed and started again under traffic, which does not affect
// clients outside: open connections continue, and new ones are made all the time.
func TestKill(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	c.backendServices()
	var held []*lab.Held
	var traffic []*lab.Hammering
	const each = 50
	eachWay(func(network string, family int) {
		held = append(held, hold(t, c.outside, network, lab.HoldOptions{Count: each}, c.nodePortAt(1, family), c.nodePortAt(2, family)))
		for _, b := range backends {
			opts := lab.HammerOptions{Count: 1 << 20, Rate: 50, Timeout: 20 * time.Second}
			traffic = append(traffic, c.other.StartHammer(network, c.nodePortAt(b.service, family), opts))
		}
	})
	progress := func() {
		before := c.d.Reasons()["translated"]
		rig.Eventually(t, "connections go on", func() bool { return c.d.Reasons()["translated"] >= before+200 })
	}
	for range 3 {
		progress()
		c.d.Kill()
		progress() // without a daemon
		for _, h := range held {
			askAll(t, "without a daemon", h, 2*each)
		}
		c.d.Start()
		for _, h := range held {
			askAll(t, "with the next daemon", h, 2*each)
		}
	}
	for i, h := range traffic {
		s, err := h.Stop()
		if err != nil {
			t.Fatal(err)
		}
		if s.Done == 0 || s.Answered != s.Done {
			t.Errorf("traffic %d to %s: %d of %d answered by %v, errors %v (%s)", i, backends[i%len(backends)].name, s.Answered, s.Done, s.Servers, s.Errors, s.FirstError)
		}
	}
}

// TestChangesWhileAway: changes made while no daemon ran are in effect for clients outside
// when the next one is healthy.
func TestChangesWhileAway(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.near)...))
	var sockets []*lab.Socket
	for family := range families {
		s, _ := connected(t, c.outside, c, "udp", 1, family)
		sockets = append(sockets, s)
	}
	c.d.Kill()
	c.m.Put(rig.SlicesOf("web", rig.Up(c.far)...))
	c.m.Write()
	for family, s := range sockets {
		if got, err := question(s, 5*time.Second); err != nil || got != c.near.Name() {
			t.Errorf("%s, while no daemon runs: %q, %v", families[family], got, err)
		}
	}
	c.d.Start()
	c.m.Settle(c.d)
	for family, s := range sockets {
		if got, err := question(s, 5*time.Second); err != nil || got != c.far.Name() {
			t.Errorf("%s, with the next daemon: %q, %v", families[family], got, err)
		}
	}
}

// TestCleanup: after `shunt cleanup` no program, queueing discipline or map of shunt is
// left, the kernel refuses the node ports, and packets pass as if shunt had never been
// there.
func TestCleanup(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	c.backendServices()
	eachWay(func(network string, family int) {
		if a := ask(c.outside, network, c.nodePortAt(2, family), 0); a.Err != nil {
			t.Fatal(a.Err)
		}
	})
	c.d.Stop()
	// It runs in the node's network namespace, where the filters of a kernel without TCX
	// are.
	if out, err := runIn(c.hostNear, "", rig.Self, "cleanup", "--bpffs-root", c.d.Root); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if left, _ := filepath.Glob(filepath.Join(c.d.Root, "*", "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for _, args := range [][]string{{"qdisc", "show"}, {"filter", "show", "dev", "eth0", "ingress"}, {"filter", "show", "dev", "eth0", "egress"}} {
		out, err := runIn(c.hostNear, "", "tc", args...)
		if err != nil && !strings.Contains(out, "Parent Qdisc doesn't exists") {
			t.Errorf("tc %v: %v: %s", args, err, out)
		}
		if strings.Contains(out, "clsact") || strings.Contains(out, "bpf") {
			t.Errorf("tc %v: %s", args, out)
		}
	}
	eachWay(func(network string, family int) {
		// The stack limits its ICMP errors per second (net.ipv4.icmp_ratelimit).
		dst := c.nodePortAt(1, family)
		rig.Eventually(t, fmt.Sprintf("%v by %s is refused", dst, network), func() bool {
			return errors.Is(c.outside.Request(network, dst, lab.RequestOptions{Timeout: silence}).Err, syscall.ECONNREFUSED)
		})
		wantSilence(t, c.outside, network, frontends[loadBalancer].of(c, 1, family))
	})
	if _, err := os.Stat(c.d2.Root); err != nil {
		t.Errorf("the other node's daemon: %v", err)
	}
}
