// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"bytes"
	"context"
	"encoding/json"
	stdmaps "maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"shunt/bpf"
)

// TestKubeadmConfig: the file that kubeadm writes is accepted, and everything that it
// leaves empty is as without a file.
func TestKubeadmConfig(t *testing.T) {
	t.Setenv("NODE_NAME", "n1")
	c, err := parseRun("--config", "testdata/kubeadm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	plain, err := parseRun()
	if err != nil {
		t.Fatal(err)
	}
	got, want := exported(t, c), exported(t, plain)
	want["config"] = "testdata/kubeadm.yaml"
	want["kubeconfig"] = "/var/lib/kube-proxy/kubeconfig.conf"
	want["clusterCIDR"] = "10.244.0.0/16,fd00:10:244::/56"
	if g, w := jsonOf(t, got), jsonOf(t, want); g != w {
		t.Errorf("got  %s\nwant %s", g, w)
	}
	if notes := c.notes(); len(notes) != 1 || !slices.Equal(notes[0].names, []string{"mode"}) {
		t.Errorf("said: %v, want a word on mode alone", notes)
	}
}

// TestTimeouts: as with kube-proxy, 0 leaves a timeout as it is. A time below
// bpf.MinTimeout is raised to it.
func TestTimeouts(t *testing.T) {
	for value, want := range map[string]time.Duration{"0": 0, "0s": 0, "1ns": bpf.MinTimeout, "1s": bpf.MinTimeout, "3s": 3 * time.Second} {
		c, err := parseRun("--conntrack-udp-timeout-stream=" + value)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.timeouts(); got != (bpf.Timeouts{UDPEstablished: want}) {
			t.Errorf("%s: %+v, want %v", value, got, want)
		}
	}
}

// exported returns what /configz shows.
func exported(t *testing.T, c *Config) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(jsonOf(t, c)), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestKubeProxyDefaults: a file with all of kube-proxy's defaults is accepted, and so is
// the file that a real kube-proxy writes, if there is one.
func TestKubeProxyDefaults(t *testing.T) {
	files := []string{"testdata/kube-proxy-1.37.yaml"}
	if binary := kubeProxyBinary(t); binary != "" {
		written := filepath.Join(t.TempDir(), "written.yaml")
		if out, err := exec.Command(binary, "--write-config-to", written).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		files = append(files, written)
	}
	for _, file := range files {
		c, err := parseRun("--config", file)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if c.QPS != 5 || c.Burst != 10 || c.LogFormat != "text" || c.HealthzBindAddress != defaultHealthz ||
			c.MetricsBindAddress != defaultMetrics || !c.LocalhostNodePorts || c.DetectLocalMode != "ClusterCIDR" {
			t.Errorf("%s: %s", file, jsonOf(t, c))
		}
		said := map[string][]string{}
		for _, n := range c.notes() {
			said[n.why] = n.names
		}
		want := map[string][]string{
			string(noLogBuffer): {"logging.flushFrequency"},
			string(noRules):     {"mode", "iptables.masqueradeBit", "nftables.masqueradeBit"},
			string(noResync):    {"iptables.syncPeriod", "iptables.minSyncPeriod", "configSyncPeriod"},
			string(noDetect):    {"detectLocalMode"},
			string(noOOM):       {"oomScoreAdj"},
			string(noConntrack): {"conntrack.maxPerCore", "conntrack.min"},
		}
		if !stdmaps.EqualFunc(said, want, slices.Equal) {
			t.Errorf("%s: said %v\nwant %v", file, said, want)
		}
	}
}

// kubeProxyBinary returns the path of a kube-proxy that e2e/tools/build.sh has built, ""
// if there is none. To build it takes minutes; the lists in testdata replace it.
func kubeProxyBinary(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("SHUNT_TOOLS_DIR")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return ""
		}
		dir = filepath.Join(cache, "shunt", "tools")
	}
	found, err := filepath.Glob(filepath.Join(dir, "*", "kube-proxy"))
	if err != nil || len(found) == 0 {
		return ""
	}
	return found[len(found)-1]
}

// TestKubeProxyFlags: `shunt run` accepts every flag of kube-proxy, without a value where
// kube-proxy does. Its help has only those with an effect.
func TestKubeProxyFlags(t *testing.T) {
	list, err := os.ReadFile("testdata/kube-proxy-flags.txt")
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]string{}
	for line := range strings.Lines(string(list)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] != "#" {
			types[f[0]] = f[1]
		}
	}
	if binary := kubeProxyBinary(t); binary != "" {
		help, err := exec.Command(binary, "--help").Output()
		if err != nil {
			t.Fatal(err)
		}
		real := flagsOfHelp(string(help))
		if !stdmaps.Equal(real, types) {
			t.Errorf("%s has the flags\n%v\ntestdata has\n%v", binary, real, types)
		}
	}
	if len(types) < 50 {
		t.Fatalf("only %d flags are listed", len(types))
	}
	run := newRunCommand()
	run.InitDefaultHelpFlag()
	for name, kind := range types {
		f := run.Flags().Lookup(name)
		if f == nil {
			t.Errorf("--%s is unknown", name)
			continue
		}
		if bare := kind == "bool" || strings.HasPrefix(kind, "version"); bare != (f.NoOptDefVal != "") {
			t.Errorf("--%s is %s for kube-proxy, %s with bare value %q here", name, kind, f.Value.Type(), f.NoOptDefVal)
		}
	}
	if run.Flags().ShorthandLookup("v") == nil {
		t.Error("-v is unknown")
	}
	help := run.UsageString()
	for name := range flagsOfHelp(help) {
		for _, field := range fields {
			if field.flag == name && field.fate != honoured {
				t.Errorf("help shows --%s, which has no effect", name)
			}
		}
	}
	if !strings.Contains(help, "--config") {
		t.Errorf("help without --config:\n%s", help)
	}
}

var flagInHelp = regexp.MustCompile(`(?m)^ {2,6}(?:-\w, )?--([a-z0-9-]+) ?(\S*)`)

// flagsOfHelp returns the types of the flags in a help text, by name.
func flagsOfHelp(help string) map[string]string {
	flags := map[string]string{}
	for _, m := range flagInHelp.FindAllStringSubmatch(help, -1) {
		if flags[m[1]] = m[2]; m[2] == "" {
			flags[m[1]] = "bool"
		}
	}
	return flags
}

// TestConfigFileRefused: a file that is not a KubeProxyConfiguration of the known version
// is refused, and so are unknown fields at any depth.
func TestConfigFileRefused(t *testing.T) {
	const head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
	for _, c := range []struct{ name, content, want string }{
		{"empty", "", "the file is empty"},
		{"comments", "# nothing\n---\n", "the file is empty"},
		{"no YAML", "a: [", "neither YAML nor JSON"},
		{"a list", "[]", "want an object"},
		{"no kind", "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n", `kind: ""`},
		{"another kind", "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n", `kind: "KubeletConfiguration"`},
		{"another version", "apiVersion: kubeproxy.config.k8s.io/v1alpha2\nkind: KubeProxyConfiguration\nnew: 1\n",
			`apiVersion: "kubeproxy.config.k8s.io/v1alpha2"`},
		{"no version", "kind: KubeProxyConfiguration\n", `apiVersion: ""`},
		{"a ConfigMap", "apiVersion: v1\nkind: ConfigMap\ndata: {config.conf: x}\n", `kind: "ConfigMap"`},
		{"unknown field", head + "hostName: x\n", "hostName: there is no such field"},
		{"other case", head + "clustercidr: 10.0.0.0/8\n", "clustercidr: there is no such field"},
		{"unknown field below", head + "iptables: {syncPeriodS: 1s}\n", "iptables.syncPeriodS: there is no such field"},
		{"unknown field deep", head + "logging: {options: {json: {split: true}}}\n", "logging.options.json.split: there is no such field"},
		{"an object for a value", head + "mode: {}\n", "mode: {}: want a string"},
		{"a value for an object", head + "iptables: true\n", "iptables: true: want an object"},
		{"twice", head + "mode: ipvs\nmode: iptables\n", "already set"},
		{"two documents", head + "---\n" + head, "more than one document"},
		{"several mistakes", head + "mode: x\noomScoreAdj: 5000\n", "oomScoreAdj"},
		{"several mistakes", head + "mode: 1\nbindAdress: 10.0.0.1\n", "bindAdress"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseRun("--config", configFile(t, c.content))
			wantUsageError(t, err, c.want)
		})
	}
	_, err := parseRun("--config", filepath.Join(t.TempDir(), "none"))
	wantUsageError(t, err, "no such file")
	if c, err := parseRun("--config", configFile(t, withFields(map[string]string{"mode": `"ipvs"`}))); err != nil {
		t.Errorf("JSON: %v", err)
	} else if noteOf(t, c, "mode") == "" {
		t.Error("JSON: mode was not read")
	}
}

// TestFlagsWin: a flag that is given wins over the file, even with its default value. A
// note says so.
func TestFlagsWin(t *testing.T) {
	file := configFile(t, withFields(map[string]string{
		"hostnameOverride": `"from-file"`, "clientConnection.kubeconfig": `"/file"`, "clientConnection.qps": `1`,
		"healthzBindAddress": `"192.0.2.1:1"`, "metricsBindAddress": `"192.0.2.1:2"`, "enableProfiling": `true`,
		"iptables.localhostNodePorts": `false`, "nodePortAddresses": `["10.0.0.0/8"]`, "logging.verbosity": `3`,
		"mode": `"ipvs"`, "iptables.syncPeriod": `"1s"`,
	}))
	c, err := parseRun("--config", file, "--node-name=flag", "--kubeconfig=/flag", "--kube-api-qps=2", "--healthz-bind-address=",
		"--metrics-bind-address=127.0.0.1:10249", "--profiling=false", "--iptables-localhost-nodeports", "--nodeport-addresses=",
		"-v0", "--proxy-mode=nftables")
	if err != nil {
		t.Fatal(err)
	}
	if c.NodeName != "flag" || c.Kubeconfig != "/flag" || c.QPS != 2 || c.healthz.IsValid() || c.MetricsBindAddress != defaultMetrics ||
		c.Profiling || c.nodePorts.NoLoopback || c.nodePorts.Selective() || c.Verbosity != 0 {
		t.Errorf("the file won somewhere: %s", jsonOf(t, c))
	}
	for _, name := range []string{"--proxy-mode", "iptables.syncPeriod", "mode", "healthzBindAddress", "nodePortAddresses"} {
		if noteOf(t, c, name) == "" {
			t.Errorf("nothing is said of %s: %v", name, c.notes())
		}
	}
	c, err = parseRun("--config", file, "--manifests", "m.yaml")
	if err != nil || c.Kubeconfig != "" || noteOf(t, c, "clientConnection.kubeconfig") == "" {
		t.Errorf("--manifests beside the file's kubeconfig: %v, %s", err, jsonOf(t, c))
	}
	_, err = parseRun("--kubeconfig", "k", "--manifests", "m.yaml")
	wantUsageError(t, err, "--manifests")
}

// TestDefaultAddresses: the default addresses have the family of bindAddress.
func TestDefaultAddresses(t *testing.T) {
	for _, c := range []struct {
		args             []string
		healthz, metrics string
	}{
		{nil, "0.0.0.0:10256", "127.0.0.1:10249"},
		{[]string{"--bind-address=192.0.2.1"}, "0.0.0.0:10256", "127.0.0.1:10249"},
		{[]string{"--bind-address=::"}, "[::]:10256", "[::1]:10249"},
		{[]string{"--bind-address=2001:db8::1", "--healthz-bind-address=192.0.2.1"}, "192.0.2.1:10256", "[::1]:10249"},
		{[]string{"--healthz-port=1", "--metrics-port=0"}, "0.0.0.0:1", "invalid AddrPort"},
		{[]string{"--healthz-port=1", "--healthz-bind-address=::1", "--metrics-port=2", "--metrics-bind-address=[::1]:3"}, "[::1]:1", "[::1]:3"},
		{[]string{"--healthz-bind-address=", "--metrics-bind-address=", "--healthz-port=1"}, "invalid AddrPort", "invalid AddrPort"},
	} {
		got, err := parseRun(c.args...)
		if err != nil {
			t.Errorf("%q: %v", c.args, err)
			continue
		}
		if got.healthz.String() != c.healthz || got.metrics.String() != c.metrics {
			t.Errorf("%q: %v and %v", c.args, got.healthz, got.metrics)
		}
	}
}

// TestFlagsWithoutField: kube-proxy's flags for which the file has no field, and those
// that kube-proxy has removed.
func TestFlagsWithoutField(t *testing.T) {
	c, err := parseRun("--master=https://192.0.2.1:6443", "--udp-timeout=1s", "--hostname-override=Same", "--node-name=same", "--cleanup=false")
	if err != nil || c.APIServer != "https://192.0.2.1:6443" || c.NodeName != "same" || noteOf(t, c, "--udp-timeout") == "" {
		t.Errorf("%v: %s", err, jsonOf(t, c))
	}
	for _, bad := range [][]string{
		{"--cleanup"}, {"--init-only"}, {"--healthz-port=70000"}, {"--metrics-port=-1"}, {"--udp-timeout=-1s"}, {"--udp-timeout=soon"},
		{"--master=a", "--apiserver=b"}, {"--hostname-override=a", "--node-name=b"}, {"--write-config=x"},
	} {
		_, err := parseRun(bad...)
		name, _, _ := strings.Cut(bad[0], "=")
		wantUsageError(t, err, name)
	}
}

// TestRunVersionAndWrite: with --version and --write-config-to, run does that and ends. The
// written file is accepted and means the same.
func TestRunVersionAndWrite(t *testing.T) {
	t.Setenv("NODE_NAME", "n1")
	shunt := func(want int, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		if code := execute(context.Background(), append([]string{"run"}, args...), &out, &errs); code != want {
			t.Errorf("%q: exit code %d, want %d: %s", args, code, want, errs.String())
		}
		return out.String() + errs.String()
	}
	if got := shunt(exitOK, "--version"); !strings.HasPrefix(got, "shunt ") {
		t.Errorf("--version: %q", got)
	}
	shunt(exitOK, "--version=raw")
	shunt(exitUsage, "--version=v1.2.3")
	file := filepath.Join(t.TempDir(), "out.yaml")
	args := []string{"--config=testdata/kubeadm.yaml", "--nodeport-addresses=primary", "--iptables-localhost-nodeports=false",
		"--metrics-bind-address=[::]:1", "--kube-api-burst=7", "--ipvs-scheduler=rr", "--feature-gates=A=true"}
	shunt(exitOK, append(args, "--write-config-to="+file)...)
	want, err := parseRun(args...)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseRun("--config", file)
	if err != nil {
		t.Fatal(err)
	}
	got.ConfigFile = want.ConfigFile
	if g, w := jsonOf(t, got), jsonOf(t, want); g != w {
		t.Errorf("got  %s\nwant %s", g, w)
	}
	if noteOf(t, got, "ipvs.scheduler") == "" || noteOf(t, got, "featureGates") == "" {
		t.Errorf("fields without effect were not written: %v", got.notes())
	}
	shunt(exitFailure, "--write-config-to="+filepath.Join(t.TempDir(), "none", "out.yaml"))
}

// TestHiddenFlags: kube-proxy's flags without effect are hidden, shunt's own are not.
func TestHiddenFlags(t *testing.T) {
	var cfg Config
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	cfg.addFlags(f)
	for _, name := range []string{"config", "node-name", "kubeconfig", "manifests", "iptables-localhost-nodeports", "logging-format", "v"} {
		if f.Lookup(name).Hidden {
			t.Errorf("--%s is hidden", name)
		}
	}
	for _, name := range []string{"hostname-override", "proxy-mode", "conntrack-min", "cleanup", "udp-timeout", "feature-gates"} {
		if !f.Lookup(name).Hidden {
			t.Errorf("--%s is not hidden", name)
		}
	}
}
