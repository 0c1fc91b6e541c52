// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
)

// parseRun parses and checks arguments as `shunt run` does.
func parseRun(args ...string) (*Config, error) {
	cfg := &Config{}
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.SetOutput(io.Discard)
	cfg.addFlags(f)
	if err := f.Parse(args); err != nil {
		return nil, usageError{err}
	}
	return cfg, cfg.validate(f)
}

// configFile writes a file for --config.
func configFile(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// withFields returns a configuration with values, in JSON, at paths.
func withFields(values map[string]string) string {
	root := map[string]any{"apiVersion": kubeProxyAPIVersion, "kind": kubeProxyKind}
	for path, value := range values {
		at := root
		names := strings.Split(path, ".")
		for _, name := range names[:len(names)-1] {
			if at[name] == nil {
				at[name] = map[string]any{}
			}
			at = at[name].(map[string]any)
		}
		at[names[len(names)-1]] = json.RawMessage(value)
	}
	doc, err := json.Marshal(root)
	if err != nil {
		panic(err)
	}
	return string(doc)
}

// noteOf returns why a field or flag has no effect, "" if there is no such note.
func noteOf(t *testing.T, c *Config, name string) string {
	t.Helper()
	why := ""
	for _, n := range c.notes() {
		for _, s := range n.names {
			if s != name {
				continue
			}
			if why != "" {
				t.Errorf("%s is said twice", name)
			}
			why = n.why
		}
	}
	return why
}

// fieldCase is one field: a valid value as JSON and as a flag, its effect, and malformed
// values.
type fieldCase struct {
	path, value, flag string
	// effect returns what the field sets; nil: it has no effect, and there is a note.
	effect func(*Config) any
	want   any
	bad    []string // as JSON
	badArg []string // as flags
}

var (
	badBools     = []string{`"yes"`, `1`, `[]`}
	badBool      = []string{"maybe"}
	badStrings   = []string{`1`, `true`, `{}`}
	badDurations = []string{`"5"`, `5`, `"-1s"`, `"soon"`}
	badDuration  = []string{"5", "-1s", "soon"}
	badNumbers   = []string{`"1"`, `-1`, `1.5`, `99999999999`}
	badNumber    = []string{"x", "-1", "1.5"}
	badBits      = []string{`-1`, `32`, `"14"`}
	badAddresses = []string{`"localhost:1"`, `"10.0.0.1:x"`, `"10.0.0.1:65536"`, `10256`}
)

var fieldCases = []fieldCase{
	{"featureGates", `{"A":true}`, "A=true,B=false", nil, nil, []string{`{"A":"true"}`, `["A"]`}, []string{"A", "A=maybe", "=true"}},
	{"clientConnection.kubeconfig", `"/k"`, "/k", func(c *Config) any { return c.Kubeconfig }, "/k", badStrings, nil},
	{"clientConnection.acceptContentTypes", `"application/json, application/vnd.kubernetes.protobuf"`, "",
		func(c *Config) any { return c.AcceptContentTypes }, "application/json, application/vnd.kubernetes.protobuf",
		[]string{`"text/html"`, `"application/json,"`, `1`}, nil},
	{"clientConnection.contentType", `"application/json"`, "application/json",
		func(c *Config) any { return c.ContentType }, "application/json", []string{`"json"`, `1`}, []string{"json"}},
	{"clientConnection.qps", `7.5`, "7.5", func(c *Config) any { return c.QPS }, float32(7.5), []string{`"7"`, `true`}, []string{"x", "NaN"}},
	{"clientConnection.burst", `70`, "70", func(c *Config) any { return c.Burst }, 70, badNumbers, badNumber},
	{"logging.format", `"text"`, "text", func(c *Config) any { return c.LogFormat }, "text", []string{`"xml"`, `1`}, []string{"xml"}},
	{"logging.flushFrequency", `"7s"`, "7s", nil, nil, []string{`"x"`, `-5`, `true`}, badDuration},
	{"logging.verbosity", `4`, "4", func(c *Config) any { return c.Verbosity }, 4, badNumbers, badNumber},
	{"logging.vmodule", `[{"filePattern":"proxy*","verbosity":2}]`, "proxy*=2,x=1", nil, nil,
		[]string{`[{"filePattern":""}]`, `[{"filePattern":"a,b"}]`, `[{"filePattern":"a","verbosity":-1}]`, `[{"pattern":"a"}]`, `"a=2"`},
		[]string{"a", "a=-1", "a=b"}},
	{"logging.options.text.splitStream", `true`, "true", nil, nil, badBools, badBool},
	{"logging.options.text.infoBufferSize", `"64Ki"`, "64Ki", nil, nil, []string{`"much"`, `true`}, []string{"much"}},
	{"logging.options.json.splitStream", `true`, "true", nil, nil, badBools, badBool},
	{"logging.options.json.infoBufferSize", `"64Ki"`, "64Ki", nil, nil, []string{`"much"`, `true`}, []string{"much"}},
	{"hostnameOverride", `"Node-1.Example "`, " Node-1.Example", func(c *Config) any { return c.NodeName }, "node-1.example",
		[]string{`"a b"`, `"a_b"`, `" "`, `1`}, []string{"a b", "-"}},
	{"bindAddress", `"192.0.2.1"`, "192.0.2.1", nil, nil, []string{`"here"`, `"192.0.2.1:80"`, `1`}, []string{"here"}},
	{"healthzBindAddress", `"192.0.2.1:1"`, "192.0.2.1:1", func(c *Config) any { return c.healthz.String() }, "192.0.2.1:1",
		badAddresses, []string{"x", "10256"}},
	{"metricsBindAddress", `"[2001:db8::1]:2"`, "[2001:db8::1]:2", func(c *Config) any { return c.metrics.String() }, "[2001:db8::1]:2",
		badAddresses, []string{"x", "10249"}},
	{"bindAddressHardFail", `true`, "true", func(c *Config) any { return c.BindAddressHardFail }, true, badBools, badBool},
	{"enableProfiling", `true`, "true", func(c *Config) any { return c.Profiling }, true, badBools, badBool},
	{"showHiddenMetricsForVersion", `"1.36"`, "1.36", nil, nil, []string{`"1"`, `"v1.36"`, `1.36`}, []string{"1", "v1.36"}},
	{"mode", `"nftables"`, "nftables", nil, nil, []string{`"userspace"`, `"kernelspace"`, `1`}, []string{"userspace"}},
	{"iptables.masqueradeBit", `14`, "14", nil, nil, badBits, []string{"32", "x"}},
	{"iptables.masqueradeAll", `true`, "true", nil, nil, badBools, badBool},
	{"iptables.localhostNodePorts", `false`, "false", func(c *Config) any { return c.nodePorts.NoLoopback }, true, badBools, badBool},
	{"iptables.syncPeriod", `"30s"`, "30s", nil, nil, badDurations, badDuration},
	{"iptables.minSyncPeriod", `"1s"`, "1s", nil, nil, badDurations, badDuration},
	{"ipvs.syncPeriod", `"30s"`, "30s", nil, nil, badDurations, badDuration},
	{"ipvs.minSyncPeriod", `"1s"`, "1s", nil, nil, badDurations, badDuration},
	{"ipvs.scheduler", `"rr"`, "rr", nil, nil, badStrings, nil},
	{"ipvs.excludeCIDRs", `["10.0.0.0/8"]`, "10.0.0.0/8", nil, nil, []string{`["10.0.0.0"]`, `"10.0.0.0/8"`, `[1]`}, []string{"10.0.0.0"}},
	{"ipvs.strictARP", `true`, "true", nil, nil, badBools, badBool},
	{"ipvs.tcpTimeout", `"1s"`, "1s", nil, nil, badDurations, badDuration},
	{"ipvs.tcpFinTimeout", `"1s"`, "1s", nil, nil, badDurations, badDuration},
	{"ipvs.udpTimeout", `"1s"`, "1s", nil, nil, badDurations, badDuration},
	{"nftables.masqueradeBit", `14`, "", nil, nil, badBits, nil},
	{"nftables.masqueradeAll", `true`, "", nil, nil, badBools, nil},
	{"nftables.syncPeriod", `"30s"`, "", nil, nil, badDurations, nil},
	{"nftables.minSyncPeriod", `"1s"`, "", nil, nil, badDurations, nil},
	{"winkernel.networkName", `"n"`, "", nil, nil, badStrings, nil},
	{"winkernel.sourceVip", `"192.0.2.1"`, "", nil, nil, badStrings, nil},
	{"winkernel.enableDSR", `true`, "", nil, nil, badBools, nil},
	{"winkernel.rootHnsEndpointName", `"n"`, "", nil, nil, badStrings, nil},
	{"winkernel.forwardHealthCheckVip", `true`, "", nil, nil, badBools, nil},
	{"detectLocalMode", `"NodeCIDR"`, "NodeCIDR", nil, nil, []string{`"Guess"`, `"BridgeInterface"`, `1`}, []string{"Guess", "InterfaceNamePrefix"}},
	{"detectLocal.bridgeInterface", `"br0"`, "br0", nil, nil, badStrings, nil},
	{"detectLocal.interfaceNamePrefix", `"veth"`, "veth", nil, nil, badStrings, nil},
	{"clusterCIDR", `"10.1.0.0/8, fd00::/8,11.0.0.0/8"`, "10.1.0.0/8,fd00::/8,11.0.0.0/8", clusterCIDRs, "[10.0.0.0/8 fd00::/8 11.0.0.0/8] <nil>",
		[]string{`"10.0.0.0"`, `"10.0.0.0/8,"`, `"10.0.0.0/8,fd00::/8,fd01::/16,fd02::/16,fd03::/16"`, `"::ffff:10.0.0.0/104"`, `["10.0.0.0/8"]`},
		[]string{"10.0.0.0", "x"}},
	{"nodePortAddresses", `["localhost","10.0.0.0/8"]`, "localhost,10.0.0.0/8", func(c *Config) any { return len(c.nodePorts.CIDRs) }, 3,
		[]string{`["10.0.0.1"]`, `["everywhere"]`, `"primary"`, `[1]`}, []string{"10.0.0.1", "everywhere"}},
	{"oomScoreAdj", `-999`, "-999", nil, nil, []string{`-1001`, `1001`, `"1"`}, []string{"1001", "x"}},
	{"conntrack.maxPerCore", `32768`, "32768", nil, nil, badNumbers, badNumber},
	{"conntrack.min", `131072`, "131072", nil, nil, badNumbers, badNumber},
	{"conntrack.tcpEstablishedTimeout", `"23h"`, "23h", func(c *Config) any { return c.timeouts().TCPEstablished }, 23 * time.Hour, badDurations, badDuration},
	{"conntrack.tcpCloseWaitTimeout", `"2h"`, "2h", func(c *Config) any { return c.timeouts().TCPCloseWait }, 2 * time.Hour, badDurations, badDuration},
	{"conntrack.tcpBeLiberal", `true`, "true", nil, nil, badBools, badBool},
	{"conntrack.udpTimeout", `"31s"`, "31s", func(c *Config) any { return c.timeouts().UDPNew }, 31 * time.Second, badDurations, badDuration},
	{"conntrack.udpStreamTimeout", `"300s"`, "300s", func(c *Config) any { return c.timeouts().UDPEstablished }, 5 * time.Minute, badDurations, badDuration},
	{"configSyncPeriod", `"15m"`, "15m", nil, nil, badDurations, badDuration},
	{"portRange", `"1000-2000"`, "1000-2000", nil, nil, []string{`"a-b"`, `"2000-1000"`, `1`}, []string{"a-b"}},
	{"windowsRunAsService", `true`, "", nil, nil, badBools, nil},
}

func clusterCIDRs(c *Config) any { return fmt.Sprint(parseClusterCIDRs(c.ClusterCIDR)) }

// leaves returns the paths of all fields that are not objects themselves.
func leaves(path string, v reflect.Value) []string {
	if _, ok := v.Addr().Interface().(json.Unmarshaler); ok || v.Kind() != reflect.Struct {
		return []string{path}
	}
	var all []string
	for i := range v.NumField() {
		tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		at := path
		if tag != "" {
			at = join(path, tag)
		}
		all = append(all, leaves(at, v.Field(i))...)
	}
	return all
}

// TestFieldsComplete: every field of the API is in fields, and has a case here.
func TestFieldsComplete(t *testing.T) {
	var conf kubeproxy.KubeProxyConfiguration
	want := slices.DeleteFunc(leaves("", reflect.ValueOf(&conf).Elem()),
		func(p string) bool { return p == "kind" || p == "apiVersion" })
	var known, tested []string
	for _, f := range fields {
		known = append(known, f.path)
	}
	for _, c := range fieldCases {
		tested = append(tested, c.path)
	}
	for _, list := range [][]string{want, known, tested} {
		slices.Sort(list)
	}
	if !slices.Equal(want, known) {
		t.Errorf("fields of the API:\n%q\nknown:\n%q", want, known)
	}
	if !slices.Equal(known, tested) {
		t.Errorf("known:\n%q\ntested:\n%q", known, tested)
	}
}

// TestFieldsInFile: each field has its effect, or a note that it has none. The error for a
// malformed value has the field's path.
func TestFieldsInFile(t *testing.T) {
	for _, c := range fieldCases {
		t.Run(c.path, func(t *testing.T) {
			cfg, err := parseRun("--config", configFile(t, withFields(map[string]string{c.path: c.value})))
			if err != nil {
				t.Fatal(err)
			}
			c.checkEffect(t, cfg, c.path)
			for _, bad := range c.bad {
				_, err := parseRun("--config", configFile(t, withFields(map[string]string{c.path: bad})))
				wantUsageError(t, err, c.path)
			}
		})
	}
}

// TestFieldsAsFlags: the same for kube-proxy's flags.
func TestFieldsAsFlags(t *testing.T) {
	for _, c := range fieldCases {
		flag := ""
		for _, f := range fields {
			if f.path == c.path {
				flag = f.flag
			}
		}
		if flag == "" {
			continue
		}
		t.Run(flag, func(t *testing.T) {
			cfg, err := parseRun("--" + flag + "=" + c.flag)
			if err != nil {
				t.Fatal(err)
			}
			c.checkEffect(t, cfg, "--"+flag)
			for _, bad := range c.badArg {
				_, err := parseRun("--" + flag + "=" + bad)
				wantUsageError(t, err, "--"+flag)
			}
		})
	}
}

func (c *fieldCase) checkEffect(t *testing.T, cfg *Config, name string) {
	t.Helper()
	why := noteOf(t, cfg, name)
	if c.effect == nil {
		if why == "" {
			t.Errorf("%s has no effect, and nobody says so: %v", name, cfg.notes())
		}
		return
	}
	if got := c.effect(cfg); got != c.want {
		t.Errorf("%s: got %v, want %v", name, got, c.want)
	}
	if why != "" {
		t.Errorf("%s has an effect, and is said to have none: %s", name, why)
	}
	if unset, err := parseRun(); err != nil || c.effect(unset) == c.want {
		t.Errorf("%s: without it: %v, %v; this shows nothing", name, c.effect(unset), err)
	}
}

// wantUsageError checks that err is a usage error with that name.
func wantUsageError(t *testing.T, err error, name string) {
	t.Helper()
	var usage usageError
	if !errors.As(err, &usage) || !strings.Contains(err.Error(), name) {
		t.Errorf("got %v, want a usage error that names %s", err, name)
	}
}
