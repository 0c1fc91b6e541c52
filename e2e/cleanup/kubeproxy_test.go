// SPDX-License-Identifier: Apache-2.0

package cleanup_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"shunt/e2e/kube"
	"shunt/lab"
)

// TestCleanUpAfterARealKubeProxy runs a real kube-proxy in every mode of this kernel. With
// other programs' rules on the node, the clean-up leaves exactly what would be there
// without kube-proxy. Without other rules, connections that kube-proxy set up still work.
func TestCleanUpAfterARealKubeProxy(t *testing.T) {
	tools, err := kube.Tools(t.Context(), "kube-proxy")
	if err != nil {
		t.Fatal(err)
	}
	cluster := kube.ForTest(t)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := cluster.Kubeconfig(kubeconfig); err != nil {
		t.Fatal(err)
	}
	made := false // the objects exist; their addresses are the same in every lab
	for _, mode := range []struct{ variant, mode string }{
		{"nft", "iptables"}, {"legacy", "iptables"}, {"nft", "nftables"},
	} {
		for _, foreign := range []bool{true, false} {
			name := fmt.Sprintf("%s by %s, others' rules %v", mode.mode, mode.variant, foreign)
			t.Run(name, func(t *testing.T) {
				b := newBench(t, cluster, mode.variant)
				if !made {
					makeObjects(t, cluster, b.node, b.server)
					made = true
				}
				b.start(tools[0], kubeconfig, mode.mode)
				if foreign {
					b.checkBesideOthers()
				} else {
					b.checkAlone()
				}
			})
		}
	}
}

// bench is a node with a kube-proxy, a server pod and a client pod.
type bench struct {
	*place
	variant        string
	lab            *lab.Lab
	node           *lab.Node
	server, client *lab.Pod
	proxy          *lab.Cmd
	log            *bytes.Buffer
	startProxy     func()
}

func newBench(t *testing.T, cluster *kube.Cluster, variant string) *bench {
	l := lab.ForTest(t)
	b := &bench{variant: variant, lab: l, node: l.Node(nodeName), log: &bytes.Buffer{}}
	b.place = &place{t: t, pod: b.node.HostPod("host"), path: pathFor(t, variant)}
	b.server, b.client = b.node.Pod("server"), b.node.Pod("client")
	b.server.Serve("tcp", 8080)
	b.server.Serve("udp", 8080)
	if cluster != nil {
		// The API server gets the same address in the node's network namespace.
		proxy, err := kube.NewProxy(b.node.NetnsPath(), cluster.Addr(), cluster.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(proxy.Close)
	}
	return b
}

// start prepares a kube-proxy and starts it.
func (b *bench) start(program, kubeconfig, mode string) {
	b.startProxy = func() {
		b.t.Helper()
		b.proxy = b.pod.Command(context.Background(), program, "--kubeconfig", kubeconfig, "--hostname-override", nodeName,
			"--proxy-mode", mode, "--cluster-cidr", "10.244.0.0/16,fd00:10:244::/48", "--conntrack-max-per-core=0",
			"--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0", "--oom-score-adj=0",
			"--iptables-min-sync-period=0s", "--nodeport-addresses=0.0.0.0/0,::/0")
		b.proxy.Env = append(os.Environ(), "PATH="+b.path)
		b.proxy.Stdout, b.proxy.Stderr = b.log, b.log
		if err := b.proxy.Start(); err != nil {
			b.t.Fatal(err)
		}
	}
	b.t.Cleanup(func() {
		if b.t.Failed() {
			b.t.Logf("kube-proxy:\n%s", b.log)
		}
	})
}

// runProxy starts kube-proxy and waits until it serves.
func (b *bench) runProxy() {
	b.t.Helper()
	b.startProxy()
	for _, network := range []string{"tcp", "udp"} {
		for _, ip := range []string{web4, web6} {
			dst := netip.AddrPortFrom(netip.MustParseAddr(ip), port)
			eventually(b.t, "an answer of "+dst.String(), func() bool {
				return b.client.Request(network, dst, lab.RequestOptions{Timeout: patience / 100}).Err == nil
			})
		}
	}
}

// stopProxy ends kube-proxy without a clean-up, as when its pod is deleted.
func (b *bench) stopProxy() {
	b.t.Helper()
	if err := b.proxy.Stop(patience); err != nil {
		b.t.Logf("kube-proxy ended: %v", err)
	}
}

func (b *bench) checkBesideOthers() {
	b.t.Helper()
	// The same node without kube-proxy.
	twin := &place{t: b.t, pod: b.lab.Node("twin").HostPod("twin-host"), path: b.path}
	for _, p := range []*place{twin, b.place} {
		p.addRules(b.variant, foreign4)
		p.must(foreignNFT, "nft", "-f", "-")
	}
	b.runProxy()
	for _, p := range []*place{twin, b.place} {
		p.addRules(b.variant, between4)
	}
	full := b.snapshot()
	talk := b.talk()

	// While kube-proxy runs, cleanup changes nothing.
	report, stderr := b.cleanup(1)
	if len(report.Running) == 0 || !strings.Contains(stderr, "stop it first") {
		b.t.Errorf("beside a running kube-proxy: %+v\n%s", report, stderr)
	}
	b.expectSame("after a clean-up that was refused", full)
	b.stopProxy()

	dry, _ := b.cleanup(0, "--dry-run")
	if len(dry.Found) == 0 || dry.Found[0].Removed {
		b.t.Errorf("a dry run: %+v", dry)
	}
	b.expectSame("after a dry run", full)

	report, _ = b.cleanup(0)
	for _, f := range report.Found {
		if !f.Removed {
			b.t.Errorf("not removed: %s", f)
		}
	}
	if len(report.Found) != len(dry.Found) || len(report.Held) > 0 {
		b.t.Errorf("found %v, held %v; the dry run: %v", report.Found, report.Held, dry.Found)
	}
	b.expectSame("after the clean-up", twin.snapshot())
	talk("after the clean-up, beside others' NAT rules")
	b.expectNothing()
}

// checkAlone: without kube-proxy's rules nothing else would use conntrack.
func (b *bench) checkAlone() {
	b.t.Helper()
	b.runProxy()
	talk := b.talk()
	b.stopProxy()
	report, _ := b.cleanup(0)
	if len(report.Held) != 2 {
		b.t.Errorf("held %q, want one for each family", report.Held)
	}
	talk("after the clean-up, with nobody else's rules")
	again, _ := b.cleanup(0)
	if len(again.Found) > 0 || len(again.Held) != 2 {
		b.t.Errorf("a second run with live connections: %+v", again)
	}
	talk("after a second clean-up")
	left := strings.ReplaceAll(b.snapshot(), "KUBE-FIREWALL", "the kubelet's")
	if strings.Contains(left, "KUBE-") || strings.Contains(left, "kube-proxy") {
		b.t.Errorf("left:\n%s", left)
	}

	b.must("", "conntrack", "-F") // as if they had expired
	if report, _ = b.cleanup(0); len(report.Held) > 0 {
		b.t.Errorf("held without connections: %q", report.Held)
	}
	if left := strings.ToLower(b.snapshot()); strings.Contains(left, "shunt") {
		b.t.Errorf("left:\n%s", left)
	}
	b.expectNothing()
}

// talk opens connections to the service from a pod and from the node itself, in both
// families and over both protocols. It returns a function that sends over them again.
func (b *bench) talk() func(when string) {
	b.t.Helper()
	type line struct {
		name string
		sock *lab.Socket
	}
	var lines []line
	for _, from := range []*lab.Pod{b.client, b.pod} {
		for i, ip := range []string{web4, web6} {
			for _, network := range []string{"tcp", "udp"} {
				l := line{fmt.Sprintf("%s of %s to %s", network, from.Name(), ip), from.Socket(network + []string{"4", "6"}[i])}
				if err := l.sock.Connect(netip.AddrPortFrom(netip.MustParseAddr(ip), port)); err != nil {
					b.t.Fatalf("%s: %v", l.name, err)
				}
				b.t.Cleanup(func() { _ = l.sock.Close() })
				lines = append(lines, l)
			}
		}
	}
	say := func(when string) {
		b.t.Helper()
		for i, l := range lines {
			token := fmt.Sprintf("token-%d", i)
			err := l.sock.Send([]byte(token + "\n"))
			var answer []byte
			if err == nil {
				answer, _, err = l.sock.Recv(patience / 10)
			}
			if err != nil || !strings.HasPrefix(string(answer), token+" ") {
				b.t.Errorf("%s: %s: %q, %v", when, l.name, answer, err)
			}
		}
	}
	say("before the clean-up")
	return say
}

func (b *bench) expectSame(when, want string) {
	b.t.Helper()
	if got := b.snapshot(); got != want {
		b.t.Errorf("%s the rules are\n%s\nwant\n%s", when, got, want)
	}
}

// expectNothing checks that another clean-up finds nothing.
func (b *bench) expectNothing() {
	b.t.Helper()
	report, _ := b.cleanup(0)
	if len(report.Found)+len(report.Kept)+len(report.Unseen)+len(report.Held) > 0 {
		b.t.Errorf("one more run: %+v", report)
	}
}
