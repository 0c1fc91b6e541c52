// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"shunt/e2e/rig"
	"shunt/lab"
)

// without removes a flag and its value from arguments.
func without(args []string, flag string) []string {
	i := slices.Index(args, flag)
	return slices.Delete(slices.Clone(args), i, i+2)
}

// TestConfigFile: a KubeProxyConfiguration takes effect: addresses of the servers, no node
// ports on loopback, the node's name, the log's format. /configz shows it, and the log
// lists once what has no effect.
func TestConfigFile(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	healthz, metrics := c.n1.Addr4().String()+":10300", "["+c.n1.Addr6().String()+"]:10301"
	file := filepath.Join(c.Dir(), "kube-proxy.yaml")
	content := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
hostnameOverride: N1
healthzBindAddress: %q
metricsBindAddress: %q
enableProfiling: true
clientConnection: {kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}
mode: nftables
nodePortAddresses: [localhost, 0.0.0.0/0]
iptables: {localhostNodePorts: false, syncPeriod: 30s}
conntrack: {maxPerCore: 32768}
`, healthz, metrics)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	d := rig.NewDaemon(t, c.n1, c.m.Path, "--config", file)
	for _, flag := range []string{"--node-name", "--healthz-bind-address", "--metrics-bind-address"} {
		d.Args = without(d.Args, flag)
	}
	c.d = d
	d.Launch()
	get := func(addr, path string) (code int, body string) {
		t.Helper()
		code, raw, err := d.Get(addr, path)
		if err != nil {
			t.Fatalf("%s%s: %v", addr, path, err)
		}
		return code, string(raw)
	}
	for addr, path := range map[string]string{healthz: "/healthz", metrics: "/metrics"} {
		rig.Eventually(t, path+" on the file's address", func() bool {
			if !d.Alive() {
				t.Fatalf("the daemon ended: %v", d.Cmd.Wait())
			}
			code, _, err := d.Get(addr, path)
			return err == nil && code == http.StatusOK
		})
	}
	for _, addr := range []string{rig.HealthzAddr, rig.MetricsAddr} {
		if _, _, err := d.Get(addr, "/healthz"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s, where nobody should listen: %v", addr, err)
		}
	}
	if code, _ := get(metrics, "/debug/pprof/cmdline"); code != http.StatusOK {
		t.Errorf("profiling: %d", code)
	}
	code, body := get(metrics, "/configz")
	var got struct {
		NodeName, HealthzBindAddress, MetricsBindAddress string
		Profiling, LocalhostNodePorts                    bool
		Kubeconfig                                       string
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || code != http.StatusOK {
		t.Fatalf("configz: %d, %v: %s", code, err, body)
	}
	if got.NodeName != "n1" || got.HealthzBindAddress != healthz || got.MetricsBindAddress != metrics || !got.Profiling ||
		got.LocalhostNodePorts || got.Kubeconfig != "" {
		t.Errorf("configz: %s", body)
	}
	checkNotes(d, map[string]string{
		"mode": "eBPF", "iptables.syncPeriod": "watched", "conntrack.maxPerCore": "nf_conntrack", "clientConnection.kubeconfig": "--manifests"})
	c.apply(rig.Service("web", 1, rig.WithNodePort(1)), rig.SlicesOf("web", rig.Up(c.web[0])...))
	c.checkLocalhostNodePorts(c.host, false)
}

// checkNotes checks that the log has one line for each field, with the reason.
func checkNotes(d *rig.Daemon, want map[string]string) {
	d.T.Helper()
	log := d.Log.String()
	for name, word := range want {
		var why []string
		for line := range strings.Lines(log) {
			var said struct {
				Msg, Why string
				Fields   []string
			}
			if json.Unmarshal([]byte(line), &said) == nil && said.Msg == "configuration without effect" && slices.Contains(said.Fields, name) {
				why = append(why, said.Why)
			}
		}
		if len(why) != 1 || !strings.Contains(why[0], word) {
			d.T.Errorf("of %s the log says %q, want one line with %q", name, why, word)
		}
	}
}

// checkLocalhostNodePorts asks the node port of service 1 on loopback, which must answer or
// not, and on the node's IPv4 address, which must answer. On kernels without node ports on
// loopback it expects none.
func (c *cluster) checkLocalhostNodePorts(from *lab.Pod, loopback bool) {
	c.t.Helper()
	loopback = loopback && rig.KnowsOwnNetns()
	ways[0].wantServers(c.t, from, rig.At(c.n1.Addr4(), rig.NodePortOf(1)), c.web[0])
	for _, a := range []string{"127.0.0.1", "0.0.0.0", "::1"} {
		dst := rig.At(netip.MustParseAddr(a), rig.NodePortOf(1))
		for _, network := range []string{"tcp", "udp"} {
			got := from.Ask(network, dst)
			switch {
			case loopback && (got.Err != nil || got.Server != c.web[0].Name()):
				c.t.Errorf("%s %v: answered by %q (%v), want %s", network, dst, got.Server, got.Err, c.web[0].Name())
			case !loopback && !errors.Is(got.Err, syscall.ECONNREFUSED):
				c.t.Errorf("%s %v: answered by %q (%v), want it refused by the node itself", network, dst, got.Server, got.Err)
			}
		}
	}
}

// TestLocalhostNodePorts: --iptables-localhost-nodeports=false disables node ports on
// loopback, even if a file enables them, and not on other addresses. A daemon with another
// setting changes that in place.
func TestLocalhostNodePorts(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	file := filepath.Join(c.Dir(), "kube-proxy.json")
	content := `{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "iptables": {"localhostNodePorts": true}}`
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	c.d = rig.StartDaemon(t, c.n1, c.m.Path, "--config", file)
	c.apply(rig.Service("web", 1, rig.WithNodePort(1)), rig.SlicesOf("web", rig.Up(c.web[0])...))
	c.checkLocalhostNodePorts(c.host, true)
	c.d.Stop()
	c.d.Start("--iptables-localhost-nodeports=false")
	c.checkLocalhostNodePorts(c.host, false)
	if fields := c.d.Log.Find("configuration without effect"); fields == nil ||
		!reflect.DeepEqual(fields["fields"], []any{"iptables.localhostNodePorts"}) {
		t.Errorf("of the file's field that the flag replaces, the log says %v", fields)
	}
}
