// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"shunt/e2e/rig"
)

// unreachableAPI is a kubeconfig of an API server that refuses connections.
const unreachableAPI = `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {}}]
current-context: c
`

// withoutAPI configures the next daemon for an API server that cannot be reached.
func withoutAPI(d *rig.Daemon) {
	d.T.Helper()
	file := filepath.Join(d.T.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, []byte(unreachableAPI), 0o600); err != nil {
		d.T.Fatal(err)
	}
	d.Args = slices.Clone(d.Args)
	at := slices.Index(d.Args, "--manifests")
	d.Args[at], d.Args[at+1] = "--kubeconfig", file
}

// wantAdopted waits until healthz reports that an earlier daemon's services are in effect,
// or that none are.
func wantAdopted(d *rig.Daemon, inEffect bool) {
	d.T.Helper()
	want, text := http.StatusServiceUnavailable, "starting: Services and EndpointSlices are not in the maps yet"
	if inEffect {
		want, text = http.StatusOK, "what an earlier daemon programmed is in effect"
	}
	rig.Eventually(d.T, "healthz says "+text, func() bool {
		h, err := d.Healthz()
		return err == nil && h.Code == want && strings.Contains(strings.Join(append(h.Warnings, h.Reasons...), "\n"), text)
	})
}

// TestHooksWhileStarting: a daemon that starts during an outage of the API server adopts
// the maps of an earlier one, and checks and repairs the hooks with them.
func TestHooksWhileStarting(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...))
	c.d.Kill()
	withoutAPI(c.d)
	c.d.Launch()
	wantAdopted(c.d, true)
	socket := []string{"connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6"}
	rig.Eventually(t, "the hooks are said to be in effect", func() bool {
		m := c.d.Metrics()
		return !slices.ContainsFunc(socket, func(hook string) bool { return m[effect(hook)] != 1 })
	})
	if err := os.RemoveAll(filepath.Join(c.d.Root, "links")); err != nil {
		t.Fatal(err)
	}
	for _, hook := range socket {
		rig.Eventually(t, hook+" is repaired", func() bool { return c.d.Metrics()[repairs(hook)] > 0 })
	}
	wantAdopted(c.d, true)
	for _, w := range ways {
		w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[0])
	}
	if s := statusOf(c.d, 1); !s.InEffect || !strings.Contains(strings.Join(s.Wrong, "\n"), "device eth0 ingress") {
		t.Errorf("status: in effect: %v, wrong: %v", s.InEffect, s.Wrong)
	}
	// Devices wait for the Node: its addresses select them.
	wantEffect(c.d, "ingress", "egress")
	rig.DetachLink(t, filepath.Join(c.d.Root, "links", "sendmsg4"))
	rig.Eventually(t, "it is repaired again", func() bool { return c.d.Metrics()[repairs("sendmsg4")] > 1 })
	c.d.Kill() // and the repaired hook outlives the daemon
	for _, w := range ways {
		w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[0])
	}
}

// TestHooksGoneWhileStarting: maps that cannot be adopted cannot be used for a repair
// before they are filled. Missing hooks are reported, and the node is not healthy.
func TestHooksGoneWhileStarting(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...))
	c.d.Kill()
	args := c.d.Args
	withoutAPI(c.d)
	c.d.Launch("--services-map-size", "2048")
	wantAdopted(c.d, true)
	if err := os.Remove(filepath.Join(c.d.Root, "links", "connect4")); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "the metric says so", func() bool { v, there := c.d.Metrics()[effect("connect4")]; return there && v == 0 })
	if v := c.d.Metrics()[effect("connect6")]; v != 1 {
		t.Errorf("connect6 is said to be in effect: %v", v)
	}
	wantAdopted(c.d, false)
	if h, err := c.d.Healthz(); err != nil || !strings.Contains(strings.Join(h.Warnings, "\n"), "connect4 is not in effect") {
		t.Errorf("healthz: %+v, %v", h, err)
	}
	if said := c.d.Log.Find("not in effect as it should be, trying again"); said == nil || said["hook"] != "connect4" {
		t.Errorf("the log says %v", said)
	}
	c.d.Kill()
	c.d.Args = args
	c.d.Start()
	ways[0].wantServers(t, c.client, rig.VIP(1, 4), c.web[0])
	wantEffect(c.d)
}

// TestHealthChecksWhileStarting: load balancers of a Service with policy Local ask its
// healthCheckNodePort. They must not remove a node whose maps work while its daemon waits
// for the API server.
func TestHealthChecksWhileStarting(t *testing.T) {
	t.Parallel()
	const port = 32123
	checked := func(s *corev1.Service) { s.Spec.HealthCheckNodePort = port }
	for name, flags := range map[string][]string{"every address": nil, "one address": {"--nodeport-addresses", "127.0.0.0/8"}} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			c.d = rig.StartDaemon(t, c.n1, c.m.Path, flags...)
			c.apply(rig.Service("web", 1, rig.Everywhere(1), rig.ExternalLocal, checked), rig.SlicesOf("web", rig.Up(c.web[0])...))
			ask := func() string {
				code, body, err := c.d.Get(fmt.Sprintf("127.0.0.1:%d", port), "/")
				return fmt.Sprint(code, " ", strings.TrimSpace(string(body)), " ", err)
			}
			want := `200 {"service":{"namespace":"default","name":"web"},"localEndpoints":1,"serviceProxyHealthy":true} <nil>`
			rig.Eventually(t, "it is answered", func() bool { return ask() == want })
			c.d.Kill()
			args := c.d.Args
			withoutAPI(c.d)
			c.d.Launch()
			wantAdopted(c.d, true)
			rig.Eventually(t, "it is answered, by "+ask(), func() bool { return ask() == want })
			// The health check of a Service that was deleted meanwhile ends with the sync.
			c.d.Kill()
			c.m.RemoveService("web")
			c.m.Write()
			c.d.Args = args
			c.d.Start()
			rig.Eventually(t, "nothing answers", func() bool { return strings.Contains(ask(), "refused") })
		})
	}
}
