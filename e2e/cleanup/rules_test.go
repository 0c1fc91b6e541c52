// SPDX-License-Identifier: Apache-2.0

package cleanup_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// foreign4 is what other programs put on a node before kube-proxy: the masquerading of
// kindnet and flannel, host ports of the CNI plugin portmap, a firewall like ufw's, a
// kubelet's chains, and kube-router's, whose names begin like kube-proxy's.
const foreign4 = `*nat
:CNI-HOSTPORT-DNAT - [0:0]
:FLANNEL-POSTRTG - [0:0]
:KIND-MASQ-AGENT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-ROUTER-POSTROUTING - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m addrtype ! --dst-type LOCAL -m comment --comment "kind-masq-agent: pods -j \"KUBE-SERVICES\"" -j KIND-MASQ-AGENT
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 8080 -j RETURN
-A FLANNEL-POSTRTG -s POD -d POD -j RETURN
-A FLANNEL-POSTRTG -s POD ! -d MULTICAST -j MASQUERADE
-A KIND-MASQ-AGENT -d POD -j RETURN
-A KIND-MASQ-AGENT -j MASQUERADE
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-NWPLCY-DEFAULT - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
:ufw-before-input - [0:0]
:ufw-user-input - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -j ufw-before-input
-A FORWARD -s POD -j ACCEPT
-A OUTPUT -j KUBE-FIREWALL
LOOPBACK
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -j ufw-user-input
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
*mangle
:KUBE-KUBELET-CANARY - [0:0]
-A PREROUTING -p tcp -m tcp --dport 179 -j ACCEPT
COMMIT
`

// kubeletLoopback protects against CVE-2020-8558. kube-proxy writes it, too, if no kubelet
// has. It must stay, since loopback stays routable (route_localnet).
const kubeletLoopback = `-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment ` +
	`--comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
`

// between4 is added while kube-proxy's rules exist: first in a chain, and last.
const between4 = `*nat
-I PREROUTING -s MULTICAST -j RETURN
-I POSTROUTING -o eth9 -j ACCEPT
-A OUTPUT -d POD -p udp -m udp --dport 7 -j ACCEPT
COMMIT
*filter
-I INPUT -p tcp -m tcp --dport 4789 -j DROP
-I FORWARD -o eth9 -j DROP
-A FORWARD -i eth9 -j ACCEPT
COMMIT
`

// foreignNFT is a table of nftables like that of kindnet's network policies.
const foreignNFT = `table inet kindnet-network-policies {
	chain postrouting {
		type filter hook postrouting priority 95; policy accept;
		ct state established,related accept
	}
}
`

func rulesOf(v6 bool, text string) string {
	pod, multicast, loopback := "10.244.0.0/16", "224.0.0.0/4", kubeletLoopback
	if v6 {
		pod, multicast, loopback = "fd00:10:244::/48", "ff00::/8", ""
	}
	return strings.NewReplacer("POD", pod, "MULTICAST", multicast, "LOOPBACK\n", loopback).Replace(text)
}

// addRules adds rules of both families, with one variant (nft, legacy).
func (p *place) addRules(variant, text string) {
	p.t.Helper()
	p.must(rulesOf(false, text), "iptables-"+variant+"-restore", "--noflush")
	p.must(rulesOf(true, text), "ip6tables-"+variant+"-restore", "--noflush")
}

// volatile matches counts and times, which differ between two prints of the same rules.
var volatile = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]$| packets \d+ bytes \d+`)

// snapshot returns every rule of the node: both variants, both families, all of nftables.
// Legacy tables come first: an empty one is not printed before its first use.
func (p *place) snapshot() string {
	p.t.Helper()
	var b strings.Builder
	for _, program := range []string{"iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save"} {
		b.WriteString("== " + program + "\n" + p.must("", program))
	}
	b.WriteString("== nft\n" + p.must("", "nft", "--stateless", "list", "ruleset"))
	return volatile.ReplaceAllString(b.String(), "")
}

// pathFor makes a PATH in which iptables is one of the two variants, as on a node.
func pathFor(t *testing.T, variant string) string {
	t.Helper()
	dir := t.TempDir()
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			target, err := exec.LookPath(family + "-" + variant + suffix)
			if err != nil {
				t.Skipf("iptables-%s is not installed: %v", variant, err)
			}
			if err := os.Symlink(target, filepath.Join(dir, family+suffix)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir + ":" + os.Getenv("PATH")
}
