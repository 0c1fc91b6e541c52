// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"shunt/lab"
)

// ruleSet is what other programs install on a node. The texts are input of iptables-restore
// and of nft, once for each family. %words are replaced, see place.fill.
type ruleSet struct {
	name          string
	iptables, nft string
	sysctls       map[string]string // below /proc/sys/net; %device stands for every device
	// drops reports whether the rules drop the packets of a cell, with any Service proxy
	// that has no rules of its own. Nil means never.
	drops func(cell) bool
}

// ruleSets are no rules, and rules of CNIs and others: all of them make the kernel track
// connections. The first set chooses source ports at random, and so sometimes one that a
// flow of shunt to the same backend has: it is the first, since no earlier set has left
// such flows.
var ruleSets = []ruleSet{
	{
		name: "flannel-masquerade",
		iptables: `*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
-A FLANNEL-POSTRTG -s %pods -d %cluster -j RETURN
-A FLANNEL-POSTRTG -s %cluster -d %pods -j RETURN
-A FLANNEL-POSTRTG ! -s %cluster -d %pods -j RETURN
-A FLANNEL-POSTRTG -s %cluster ! -d %multicast -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s %cluster -d %cluster -j MASQUERADE --random-fully
COMMIT
`,
		nft: `chain postrtg {
	type nat hook postrouting priority srcnat; policy accept;
	meta mark & 0x4000 == 0x4000 return
	%ip saddr %pods %ip daddr %cluster return
	%ip saddr %cluster %ip daddr %pods return
	%ip saddr != %cluster %ip daddr %pods return
	%ip saddr %cluster %ip daddr != %multicast masquerade fully-random
	%ip saddr != %cluster %ip daddr %cluster masquerade fully-random
}`,
	},
	{name: "none"},
	{
		name: "kindnet-masquerade",
		iptables: `*nat
:KIND-MASQ-AGENT - [0:0]
-A POSTROUTING -m addrtype ! --dst-type LOCAL -j KIND-MASQ-AGENT
-A KIND-MASQ-AGENT -d %cluster -j RETURN
-A KIND-MASQ-AGENT -j MASQUERADE
COMMIT
`,
		nft: `chain postrouting {
	type nat hook postrouting priority srcnat; policy accept;
	fib daddr type local return
	%ip daddr %cluster return
	masquerade
}`,
	},
	{
		// As CNIs write it: for pods that connect to others, and for no other connections.
		name: "masquerade-of-pods",
		iptables: `*nat
-A POSTROUTING -s %pods ! -d %cluster -j MASQUERADE
COMMIT
`,
		nft: `chain postrouting {
	type nat hook postrouting priority srcnat; policy accept;
	%ip saddr %pods %ip daddr != %cluster masquerade
}`,
	},
	{
		name: "invalid-dropped",
		iptables: `*filter
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A INPUT -m conntrack --ctstate INVALID -j DROP
COMMIT
`,
		nft: `chain forward {
	type filter hook forward priority filter; policy accept;
	ct state invalid drop
}
chain input {
	type filter hook input priority filter; policy accept;
	ct state invalid drop
}`,
	},
	{
		name: "forward-dropped-but-pods",
		iptables: `*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -s %cluster -j ACCEPT
-A FORWARD -d %cluster -j ACCEPT
COMMIT
`,
		nft: `chain forward {
	type filter hook forward priority filter; policy drop;
	ct state invalid drop
	ct state established,related accept
	%ip saddr %cluster accept
	%ip daddr %cluster accept
%neighbours
}`,
		// The path to another node's own network passes this node's FORWARD chain.
		drops: func(c cell) bool { return c.backend.remote && c.backend.host },
	},
	{
		// With kube-proxy, its mark makes the rules accept its connections.
		name: "forward-dropped",
		iptables: `*filter
:FORWARD DROP [0:0]
-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
COMMIT
`,
		nft: `chain forward {
	type filter hook forward priority filter; policy drop;
	meta mark & 0x4000 == 0x4000 accept
	ct state established,related accept
%neighbours
}`,
		drops: func(c cell) bool { return c.backend.remote || !c.backend.host },
	},
	{
		name: "policy-of-client-only",
		iptables: `*filter
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -s %client -d %near -j ACCEPT
-A FORWARD -d %near -j DROP
COMMIT
`,
		nft: `chain forward {
	type filter hook forward priority filter; policy accept;
	ct state established,related accept
	%ip saddr %client %ip daddr %near accept
	%ip daddr %near drop
}`,
	},
	{
		name: "strict-reverse-path",
		iptables: `*raw
-A PREROUTING -m rpfilter --invert -j DROP
COMMIT
*filter
-A FORWARD -m conntrack --ctstate NEW,ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -j DROP
COMMIT
`,
		nft: `chain prerouting {
	type filter hook prerouting priority raw; policy accept;
%neighbours
	fib saddr . iif oif missing drop
}
chain forward {
	type filter hook forward priority filter; policy accept;
	ct state new,established,related accept
	drop
}`,
		sysctls: map[string]string{"ipv4/conf/%device/rp_filter": "1"},
	},
}

// tool loads rules.
type tool struct {
	name string
	nft  bool
	// restore has the programs for IPv4 and IPv6, if it is not nft.
	restore [2]string
}

var (
	noTool = []tool{{name: "no rules"}}
	tools  = []tool{
		{name: "iptables-nft", restore: [2]string{"iptables-nft-restore", "ip6tables-nft-restore"}},
		{name: "iptables-legacy", restore: [2]string{"iptables-legacy-restore", "ip6tables-legacy-restore"}},
		{name: "nft", nft: true},
	}
)

func (s ruleSet) tools() []tool {
	if s.nft == "" {
		return noTool
	}
	return tools
}

// eachTool returns all tools, and in short tests only the one selected by the set's number.
func (s ruleSet) eachTool(n int) []tool {
	all := s.tools()
	if testing.Short() {
		return all[n%len(all):][:1]
	}
	return all
}

// place is the node whose rules are changed, by its own processes.
type place struct {
	t   *testing.T
	c   *cluster
	pod *lab.Pod
}

func newPlace(t *testing.T, c *cluster) *place {
	return &place{t, c, c.n1.HostPod("rules")}
}

// with installs the rules, runs a test and removes them.
func (p *place) with(t *testing.T, tool tool, set ruleSet, test func()) {
	t.Helper()
	defer p.clear(t, tool)
	defer p.sysctls(t, set, true)
	p.sysctls(t, set, false)
	for family := range families {
		switch {
		case tool.nft:
			table := fmt.Sprintf("table %s others {\n%s\n}\n", []string{"ip", "ip6"}[family], p.fill(set.nft, family))
			p.run(t, table, "nft", "-f", "-")
		case set.iptables != "":
			p.run(t, p.fill(set.iptables, family), tool.restore[family])
		}
	}
	test()
	if t.Failed() {
		t.Logf("connections on the node that nobody has answered:\n%s", grep(p.output("conntrack", "-L"), "SYN_", "UNREPLIED"))
	}
}

// clear removes all rules of the node and its conntrack entries, which outlive the rules
// that made the kernel track connections.
func (p *place) clear(t *testing.T, tool tool) {
	t.Helper()
	switch {
	case tool.nft:
		p.run(t, "flush ruleset\n", "nft", "-f", "-")
	case tool.restore[0] != "":
		for _, restore := range tool.restore {
			p.run(t, "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n*nat\nCOMMIT\n*raw\nCOMMIT\n", restore)
		}
	default:
		return
	}
	p.run(t, "", "conntrack", "-F")
}

// fill replaces the %words of a rule. For IPv6, a node that drops what it forwards, or
// filters by reverse path, must still allow neighbour discovery.
func (p *place) fill(text string, family int) string {
	c := p.c
	host := func(pod *lab.Pod) string {
		return fmt.Sprintf("%v/%d", pod.Addrs()[family], pod.Addrs()[family].BitLen())
	}
	return strings.NewReplacer(
		"%cluster", []string{lab.ClusterCIDR4.String(), lab.ClusterCIDR6.String()}[family],
		"%pods", c.n1.PodCIDRs()[family].String(),
		"%multicast", []string{"224.0.0.0/4", "ff00::/8"}[family],
		"%client", host(c.outside), "%near", host(c.near),
		"%neighbours", []string{"", "\tip6 saddr { ::, fe80::/10 } accept"}[family],
		"%ip", []string{"ip", "ip6"}[family],
	).Replace(text)
}

func (p *place) sysctls(t *testing.T, set ruleSet, back bool) {
	t.Helper()
	for key, value := range set.sysctls {
		if back {
			value = "0"
		}
		err := p.c.n1.Do(func() error {
			all, err := filepath.Glob("/proc/sys/net/" + strings.Replace(key, "%device", "*", 1))
			for _, file := range all {
				if err == nil {
					err = os.WriteFile(file, []byte(value), 0o644)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (p *place) run(t *testing.T, input, program string, args ...string) {
	t.Helper()
	if out, err := p.try(input, program, args...); err != nil {
		t.Fatalf("%s %v: %v: %s\n%s", program, args, err, out, input)
	}
}

func (p *place) output(program string, args ...string) string {
	out, _ := p.try("", program, args...) // for the log of a test that has failed
	return out
}

func (p *place) try(input, program string, args ...string) (string, error) {
	return runIn(p.pod, input, program, args...)
}

// runIn runs a program in a pod to its end, and returns its whole output.
func runIn(pod *lab.Pod, input, program string, args ...string) (string, error) {
	var said bytes.Buffer
	cmd := pod.Command(context.Background(), program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &said, &said
	err := cmd.Run()
	return said.String(), err
}

func ruleSetOf(name string) ruleSet {
	for _, s := range ruleSets {
		if s.name == name {
			return s
		}
	}
	panic("no rules are called " + name)
}

// grep returns the lines that contain one of the words.
func grep(text string, words ...string) string {
	var all []string
	for line := range strings.Lines(text) {
		if slices.ContainsFunc(words, func(w string) bool { return strings.Contains(line, w) }) {
			all = append(all, line)
		}
	}
	return strings.Join(all, "")
}

// TestPolicy: a network policy that admits one client's address admits that client and no
// other, through every frontend of a service: the policy sees the clients' addresses.
func TestPolicy(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	c.backendServices()
	place, set := newPlace(t, c), ruleSetOf("policy-of-client-only")
	for _, tool := range set.tools() {
		t.Run(tool.name, func(t *testing.T) {
			place.with(t, tool, set, func() {
				var silences sync.WaitGroup
				defer silences.Wait()
				eachWay(func(network string, family int) {
					for _, f := range frontends {
						dst := f.of(c, 1, family)
						wantAnswer(t, c.outside, network, dst, c.near, c.outside.Addrs()[family])
						silences.Go(func() { wantSilence(t, c.other, network, dst) })
					}
				})
			})
		})
	}
}
