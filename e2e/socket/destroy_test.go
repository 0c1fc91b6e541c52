// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"fmt"
	"testing"

	"shunt/e2e/rig"
	"shunt/lab"
)

// TestDestroyTCP: TCP connections to an endpoint that is gone are destroyed only with the
// flag.
func TestDestroyTCP(t *testing.T) {
	t.Parallel()
	for _, flag := range []bool{false, true} {
		t.Run(fmt.Sprintf("destroy-tcp-sockets=%v", flag), func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, fmt.Sprintf("--destroy-tcp-sockets=%v", flag))
			c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...))
			var clients, pods []*talker
			for _, p := range []*lab.Pod{c.client, c.host} {
				for _, w := range ways[:3] {
					k := w.openTo(t, p, rig.VIP(1, w.family))
					k.ask(rig.VIP(1, w.family))
					clients = append(clients, k)
					pod := rig.At(w.of(c.web[0].Addrs()), rig.ServerPort)
					k = w.openTo(t, p, pod)
					k.ask(pod)
					pods = append(pods, k)
				}
			}
			udp := connectedUDP[0].openTo(t, c.client, rig.VIP(1, 4))
			c.apply(rig.SlicesOf("web", rig.Up(c.web[1])...))
			udp.wantDestroyed() // UDP sockets always are: the sweep has run
			for _, k := range clients {
				if flag {
					k.wantDestroyed()
				} else {
					k.wantKept(rig.VIP(1, k.w.family), "web-0")
				}
			}
			for _, k := range pods {
				k.wantKept(rig.At(k.w.of(c.web[0].Addrs()), rig.ServerPort), "web-0")
			}
		})
	}
}

// TestDestroyTCPUnready: an unready endpoint is not gone. TCP connections to it continue,
// also with --destroy-tcp-sockets, and are destroyed when it is gone.
func TestDestroyTCPUnready(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "--destroy-tcp-sockets")
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...))
	var clients []*talker
	for _, w := range ways[:3] {
		k := w.openTo(t, c.client, rig.VIP(1, w.family))
		k.ask(rig.VIP(1, w.family))
		clients = append(clients, k)
	}
	for _, state := range []rig.Endpoint{rig.Unready(c.web[0]), {Pod: c.web[0], Terminating: true}} {
		udp := connectedUDP[0].openTo(t, c.client, rig.VIP(1, 4))
		c.apply(rig.SlicesOf("web", state, rig.Up(c.web[1])[0]))
		udp.wantDestroyed() // the sweep has run
		for _, k := range clients {
			k.wantKept(rig.VIP(1, k.w.family), "web-0")
		}
		for _, w := range ways {
			w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[1])
		}
		c.apply(rig.SlicesOf("web", rig.Up(c.web[0])...))
	}
	c.apply(rig.SlicesOf("web", rig.Unready(c.web[0]), rig.Up(c.web[1])[0]))
	c.apply(rig.SlicesOf("web", rig.Up(c.web[1])...))
	for _, k := range clients {
		k.wantDestroyed()
	}
}
