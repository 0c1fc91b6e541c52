// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

// cluster is used by most tests: nodes, each with a daemon. Clients outside address the
// first one.
//
//	n1: near (a pod), host-near (a server of the node's own network), inside (a pod)
//	n2: far, host-far
//	outside, other: clients on the wire, which route service addresses through n1
type cluster struct {
	*lab.Lab
	t                            *testing.T
	n1, n2                       *lab.Node
	near, far, hostNear, hostFar *lab.Pod
	inside                       *lab.Pod
	outside, other               *lab.Pod
	m                            *rig.Manifests
	d, d2                        *rig.Daemon
}

// hostPort is the port of the servers in the nodes' own network.
const hostPort = 9090

// clusterCIDRs is the flag with the pods' addresses.
var clusterCIDRs = fmt.Sprintf("--cluster-cidr=%v,%v", lab.ClusterCIDR4, lab.ClusterCIDR6)

// newCluster makes the lab without daemons.
func newCluster(t *testing.T, network lab.Network) *cluster {
	t.Helper()
	l := lab.ForTest(t)
	l.Use(network)
	c := &cluster{Lab: l, t: t, n1: l.Node("n1"), n2: l.Node("n2")}
	c.near, c.inside, c.far = c.n1.Pod("near"), c.n1.Pod("inside"), c.n2.Pod("far")
	c.hostNear, c.hostFar = c.n1.HostPod("host-near"), c.n2.HostPod("host-far")
	serve(rig.ServerPort, c.near, c.far)
	serve(hostPort, c.hostNear, c.hostFar)
	c.outside, c.other = l.Client("outside"), l.Client("other")
	for _, p := range []*lab.Pod{c.outside, c.other} {
		for _, r := range serviceRanges {
			p.RouteVia(r, c.n1)
		}
	}
	c.m = rig.NewManifests(t, l.Dir())
	c.m.Write()
	return c
}

var serviceRanges = []netip.Prefix{lab.ServiceCIDR4, lab.ServiceCIDR6, lab.ExternalCIDR4, lab.ExternalCIDR6}

// startCluster makes the lab and starts the daemons.
func startCluster(t *testing.T, network lab.Network, flags ...string) *cluster {
	t.Helper()
	c := newCluster(t, network)
	c.start(flags...)
	return c
}

func (c *cluster) start(flags ...string) {
	c.t.Helper()
	c.d = rig.NewDaemon(c.t, c.n1, c.m.Path, flags...)
	c.d2 = rig.NewDaemon(c.t, c.n2, c.m.Path, flags...)
	c.d.Launch()
	c.d2.Launch()
	c.d.WaitHealthy()
	c.d2.WaitHealthy()
}

// serve makes pods answer on a port over both protocols.
func serve(port uint16, pods ...*lab.Pod) {
	for _, p := range pods {
		p.Serve("tcp", port)
		p.Serve("udp", port)
	}
}

// apply writes objects and waits until both daemons have them.
func (c *cluster) apply(objects ...any) {
	c.t.Helper()
	c.m.Put(objects...)
	c.m.Write()
	c.m.Settle(c.d)
	c.m.Settle(c.d2)
}

// remove removes services and their slices.
func (c *cluster) remove(services ...string) {
	c.t.Helper()
	for _, s := range services {
		c.m.RemoveService(s)
	}
	c.apply()
}

// frontend is a kind of address that a service has for clients outside.
type frontend struct {
	name string
	of   func(c *cluster, n, family int) netip.AddrPort // family: 0 for IPv4, 1 for IPv6
}

var frontends = []frontend{
	{"NodePort", func(c *cluster, n, family int) netip.AddrPort {
		return rig.At(nodeAddrs(c.n1)[family], rig.NodePortOf(n))
	}},
	{"LoadBalancer", func(_ *cluster, n, family int) netip.AddrPort {
		return rig.At(rig.BalancerIPs(n)[family], rig.ServicePort)
	}},
	{"ExternalIP", func(_ *cluster, n, family int) netip.AddrPort {
		return rig.At(rig.ExternalIPs(n)[family], rig.ServicePort)
	}},
	{"ClusterIP", func(_ *cluster, n, family int) netip.AddrPort {
		return rig.At(rig.ClusterIPs(n)[family], rig.ServicePort)
	}},
}

const (
	nodePort = iota
	loadBalancer
	externalIP
	clusterIP
)

// nodePortAt returns the node port of service number n on the first node.
func (c *cluster) nodePortAt(n, family int) netip.AddrPort {
	return frontends[nodePort].of(c, n, family)
}

func nodeAddrs(n *lab.Node) []netip.Addr { return []netip.Addr{n.Addr4(), n.Addr6()} }

var (
	protocols = []string{"tcp", "udp"}
	families  = []string{"IPv4", "IPv6"}
)

// ask makes one exchange, over UDP with an unconnected socket, which shows the source
// address of the answer. Over TCP the connection itself shows it.
func ask(from *lab.Pod, network string, dst netip.AddrPort, timeout time.Duration) lab.Answer {
	return from.Request(network, dst, lab.RequestOptions{Unconnected: true, Timeout: timeout})
}

// checkAnswer returns an error if another server answered, or saw another client, or the
// answer has another source.
func checkAnswer(a lab.Answer, network string, dst netip.AddrPort, server *lab.Pod, seen netip.Addr) error {
	switch {
	case a.Err != nil:
		return a.Err
	case a.Server != server.Name():
		return fmt.Errorf("%s answers, want %s", a.Server, server.Name())
	case network == "udp" && a.From != dst:
		return fmt.Errorf("the answer came from %v, want %v", a.From, dst)
	case a.ClientSeen.Addr() != seen:
		return fmt.Errorf("%s saw %v, want %v", a.Server, a.ClientSeen, seen)
	case network == "tcp" && a.Local.Addr() == seen && a.Local != a.ClientSeen:
		return fmt.Errorf("%s saw %v, %w: %v", a.Server, a.ClientSeen, errOtherPort, a.Local)
	}
	return nil
}

// errOtherPort means that the server saw another client port. That is necessary if another
// flow of the client to that server has the same port, for example one that a rule kept
// unanswered: this is chance and does not happen twice in a row.
var errOtherPort = errors.New("want the client's own port")

// askTwice is ask and checkAnswer. It tries again after errOtherPort.
func askTwice(from *lab.Pod, network string, dst netip.AddrPort, timeout time.Duration, server *lab.Pod, seen netip.Addr) error {
	err := checkAnswer(ask(from, network, dst, timeout), network, dst, server, seen)
	if errors.Is(err, errOtherPort) {
		err = checkAnswer(ask(from, network, dst, timeout), network, dst, server, seen)
	}
	return err
}

// wantAnswer makes one exchange, in which that server must see that client.
func wantAnswer(t *testing.T, from *lab.Pod, network string, dst netip.AddrPort, server *lab.Pod, seen netip.Addr) {
	t.Helper()
	if err := askTwice(from, network, dst, 5*time.Second, server, seen); err != nil {
		t.Errorf("%s asks %v by %s: %v", from.Name(), dst, network, err)
	}
}

// wantRefused makes one exchange, which must be refused before a retransmission.
func wantRefused(t *testing.T, from *lab.Pod, network string, dst netip.AddrPort) {
	t.Helper()
	a := from.Request(network, dst, lab.RequestOptions{Timeout: 900 * time.Millisecond}) // TCP retransmits a SYN after a second
	if !errors.Is(a.Err, syscall.ECONNREFUSED) {
		t.Errorf("%s asks %v by %s: %v (answered by %q), want to be refused", from.Name(), dst, network, a.Err, a.Server)
	}
}

// silence is how long a test waits for an answer that must not come.
const silence = 300 * time.Millisecond

// wantSilence makes one exchange, which must get no answer and no error.
func wantSilence(t *testing.T, from *lab.Pod, network string, dst netip.AddrPort) {
	t.Helper()
	a := from.Request(network, dst, lab.RequestOptions{Timeout: silence})
	if !errors.Is(a.Err, syscall.ETIMEDOUT) {
		t.Errorf("%s asks %v by %s: %v (answered by %q), want no answer", from.Name(), dst, network, a.Err, a.Server)
	}
}

// eachWay runs a test for both protocols and families.
func eachWay(do func(network string, family int)) {
	for _, network := range protocols {
		for family := range families {
			do(network, family)
		}
	}
}

// counted returns how much the daemon's counter of a reason grew during do.
func (c *cluster) counted(reason string, do func()) uint64 {
	c.t.Helper()
	before := c.d.Reasons()[reason]
	do()
	return c.d.Reasons()[reason] - before
}
