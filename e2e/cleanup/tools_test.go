// SPDX-License-Identifier: Apache-2.0

package cleanup_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"shunt/lab"
)

// kubeProxyRules is the frame of kube-proxy's rules.
const kubeProxyRules = `*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABCDEFGHIJKLMNOP - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE
-A KUBE-SERVICES -j KUBE-SVC-ABCDEFGHIJKLMNOP
-A KUBE-SVC-ABCDEFGHIJKLMNOP -j KUBE-MARK-MASQ
COMMIT
`

func newPlace(t *testing.T) *place {
	l := lab.ForTest(t)
	return &place{t: t, pod: l.Node(nodeName).HostPod("host"), path: os.Getenv("PATH")}
}

// TestWhatOthersUseStays: the CNI plugin portmap can be configured to use KUBE-MARK-MASQ.
// Its rules still work.
func TestWhatOthersUseStays(t *testing.T) {
	for _, variant := range []string{"nft", "legacy"} {
		t.Run(variant, func(t *testing.T) {
			p := newPlace(t)
			p.addRules(variant, kubeProxyRules+`*nat
:CNI-HOSTPORT-SETMARK - [0:0]
-A CNI-HOSTPORT-SETMARK -s POD -j KUBE-MARK-MASQ
COMMIT
`)
			report, _ := p.cleanup(0)
			if len(report.Found) != 2 || len(report.Kept) != 2 {
				t.Fatalf("found and kept, once for each family: %+v", report)
			}
			want := []string{"KUBE-MARK-MASQ", "KUBE-POSTROUTING"}
			for _, k := range report.Kept {
				if !slices.Equal(k.Names, want) || !strings.Contains(k.Reason, "-A CNI-HOSTPORT-SETMARK") {
					t.Errorf("kept %s", k)
				}
			}
			for _, save := range []string{"iptables-", "ip6tables-"} {
				rules := p.must("", save+variant+"-save", "-t", "nat")
				for _, chain := range []string{"KUBE-SERVICES", "KUBE-SVC-"} {
					if strings.Contains(rules, chain) {
						t.Errorf("left %s:\n%s", chain, rules)
					}
				}
				for _, rule := range []string{"-j KUBE-POSTROUTING", "-A KUBE-POSTROUTING -j MASQUERADE",
					"-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000"} {
					if !strings.Contains(rules, rule) {
						t.Errorf("gone: %s\n%s", rule, rules)
					}
				}
			}
			again, _ := p.cleanup(0)
			if len(again.Found) > 0 || len(again.Kept) != 2 {
				t.Errorf("a second run: %+v", again)
			}
		})
	}
}

// TestWithoutPrograms: if iptables' programs are missing, cleanup reports the remains and
// changes nothing. Without rules, it needs no program.
func TestWithoutPrograms(t *testing.T) {
	p := newPlace(t)
	p.path = t.TempDir()
	if report, _ := p.cleanup(0); len(report.Found)+len(report.Unseen) > 0 {
		t.Errorf("with nothing there: %+v", report)
	}
	p.path = os.Getenv("PATH")
	p.addRules("nft", kubeProxyRules)
	p.addRules("legacy", kubeProxyRules)
	p.must("table ip kube-proxy {\n}\n", "nft", "-f", "-")
	before := p.snapshot()

	p.path = t.TempDir()
	report, stderr := p.cleanup(1)
	var what []string
	for _, u := range report.Unseen {
		what = append(what, u.What)
		if !strings.Contains(u.Reason, "install") {
			t.Errorf("%s: %q does not say what to do", u.What, u.Reason)
		}
	}
	want := []string{"iptables-nft IPv4 table nat", "iptables-legacy IPv4 table nat", "iptables-nft IPv6 table nat",
		"iptables-legacy IPv6 table nat", "nftables IPv4 table kube-proxy, which is there"}
	if !slices.Equal(what, want) {
		t.Errorf("not looked at: %q, want %q", what, want)
	}
	if !strings.Contains(stderr, "not everything could be looked at") {
		t.Errorf("stderr: %s", stderr)
	}
	p.path = os.Getenv("PATH")
	if after := p.snapshot(); after != before {
		t.Errorf("changed:\n%s\nbefore:\n%s", after, before)
	}
	if report, _ := p.cleanup(0); len(report.Found) != 5 {
		t.Errorf("with the programs: %+v", report)
	}
}

// TestIncompatibleTable: a table that iptables cannot print is reported and not changed.
func TestIncompatibleTable(t *testing.T) {
	p := newPlace(t)
	p.addRules("nft", kubeProxyRules)
	p.must("add set ip nat seen { type ipv4_addr; flags dynamic; }\nadd rule ip nat OUTPUT update @seen { ip saddr }\n", "nft", "-f", "-")
	report, _ := p.cleanup(1)
	if len(report.Unseen) != 1 || len(report.Found) != 1 || !report.Found[0].Removed || report.Found[0].Family != "IPv6" {
		t.Errorf("%+v", report)
	}
}

func TestFlags(t *testing.T) {
	p := newPlace(t)
	for _, args := range [][]string{
		{"cleanup", "--kube-proxy", "--bpffs-root", "/sys/fs/bpf/x"},
	} {
		if _, stderr, code := p.run("", self, args...); code != 2 {
			t.Errorf("%v: exit code %d: %s", args, code, stderr)
		}
	}
	if stdout, _, code := p.run("", self, "cleanup", "--kube-proxy"); code != 0 || !strings.HasPrefix(stdout, "nothing of kube-proxy's") {
		t.Errorf("exit code %d: %s", code, stdout)
	}
}

// TestDaemonBesideKubeProxy: a daemon beside a kube-proxy and its rules reports that in its
// log and in `status`. The clean-up works while the daemon runs, and removes nothing of it.
func TestDaemonBesideKubeProxy(t *testing.T) {
	p := newPlace(t)
	p.addRules("nft", kubeProxyRules)
	program := filepath.Join(t.TempDir(), "kube-proxy")
	copyFile(t, "sleep", program)
	other := p.pod.Command(context.Background(), program, "300")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	root, log := startDaemon(t, p)
	for _, want := range []string{"a kube-proxy runs beside shunt", "kube-proxy left something on this node"} {
		if !strings.Contains(log(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log())
		}
	}
	status := func() (s struct {
		InEffect  bool
		KubeProxy struct {
			Rules   bool
			Running []struct{ PID int }
		}
	}, text string) {
		text = p.must("", self, "status", "--bpffs-root", root)
		if err := json.Unmarshal([]byte(p.must("", self, "status", "--bpffs-root", root, "-o", "json")), &s); err != nil {
			t.Fatal(err)
		}
		return s, text
	}
	s, text := status()
	if !s.KubeProxy.Rules || len(s.KubeProxy.Running) != 1 || s.KubeProxy.Running[0].PID != other.PID() ||
		!strings.Contains(text, "RUNS beside shunt") {
		t.Errorf("status: %+v\n%s", s, text)
	}
	p.cleanup(1)
	_ = other.Stop(patience) // returns that it was ended
	p.cleanup(0)
	if s, text = status(); !s.InEffect || s.KubeProxy.Rules || len(s.KubeProxy.Running) > 0 ||
		!strings.Contains(text, "nothing of it here") {
		t.Errorf("status after the clean-up: %+v\n%s", s, text)
	}
}

// startDaemon runs `shunt run` until its programs are in effect.
func startDaemon(t *testing.T, p *place) (root string, log func() string) {
	t.Helper()
	node := p.pod.Node()
	root = filepath.Join(node.BPFFS(), "shunt")
	path := filepath.Join(t.TempDir(), "log")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	daemon := p.pod.Command(context.Background(), self, "run", "--manifests", t.TempDir(), "--node-name", node.Name(),
		"--cgroup-root", node.Cgroup(), "--bpffs-root", root, "--services-map-size", "1024", "--slots-map-size", "4096",
		"--backends-map-size", "1024", "--affinity-map-size", "1024")
	daemon.Stderr = file
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = daemon.Stop(patience) })
	log = func() string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	eventually(t, "a daemon in effect", func() bool { return bytes.Contains([]byte(log()), []byte(`"in effect"`)) })
	return root, log
}

func copyFile(t *testing.T, program, to string) {
	t.Helper()
	from, err := exec.LookPath(program)
	if err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if closeErr := out.Close(); err != nil || closeErr != nil {
		t.Fatal(err, closeErr)
	}
}
