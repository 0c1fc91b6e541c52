// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	stdmaps "maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"shunt/maps"
)

// planText returns the frontends of a plan, one a line.
func planText(plans []portPlan) string {
	var b strings.Builder
	for _, p := range plans {
		for _, f := range p.frontends {
			fmt.Fprintf(&b, "%s %s of %q", f.key, f.kind, p.key.port)
			if f.insideLocal {
				b.WriteString(" inside-local")
			}
			if f.outsideLocal {
				b.WriteString(" outside-local")
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func TestPlanFrontends(t *testing.T) {
	all := service("web", "10.96.0.1 fd96::1", "http:80/TCP:30080").with(func(s *Service) {
		s.ExternalIPs = addrs("1.1.1.1", "2001:db8::1")
		s.LoadBalancerIPs = addrs("1.1.1.2", "2001:db8::2")
	})
	for _, c := range []struct {
		what string
		svc  *Service
		want string
	}{
		{"all kinds, both families", all, `10.96.0.1:80/TCP ClusterIP of "http"
*:30080/TCP NodePort of "http"
1.1.1.2:80/TCP LoadBalancerIP of "http"
1.1.1.1:80/TCP ExternalIP of "http"
10.96.0.1:0/ANY UndefinedPort of ""
[fd96::1]:80/TCP ClusterIP of "http"
[*]:30080/TCP NodePort of "http"
[2001:db8::2]:80/TCP LoadBalancerIP of "http"
[2001:db8::1]:80/TCP ExternalIP of "http"
[fd96::1]:0/ANY UndefinedPort of ""
`},
		{"external policy Local", all.with(func(s *Service) { s.ClusterIPs, s.ExternalLocal = addrs("10.96.0.1"), true }),
			`10.96.0.1:80/TCP ClusterIP of "http"
*:30080/TCP NodePort of "http" outside-local
1.1.1.2:80/TCP LoadBalancerIP of "http" outside-local
1.1.1.1:80/TCP ExternalIP of "http" outside-local
10.96.0.1:0/ANY UndefinedPort of ""
`},
		{"internal policy Local", all.with(func(s *Service) { s.ClusterIPs, s.InternalLocal = addrs("10.96.0.1"), true }),
			`10.96.0.1:80/TCP ClusterIP of "http" inside-local outside-local
*:30080/TCP NodePort of "http"
1.1.1.2:80/TCP LoadBalancerIP of "http"
1.1.1.1:80/TCP ExternalIP of "http"
10.96.0.1:0/ANY UndefinedPort of ""
`},
		{"one address in several roles: the first counts", service("web", "10.96.0.1", "http:80/TCP").with(func(s *Service) {
			s.ExternalIPs, s.LoadBalancerIPs = addrs("10.96.0.1", "1.1.1.1"), addrs("1.1.1.1")
		}), `10.96.0.1:80/TCP ClusterIP of "http"
1.1.1.1:80/TCP LoadBalancerIP of "http"
10.96.0.1:0/ANY UndefinedPort of ""
`},
		{"several ports; SCTP is not served", service("web", "10.96.0.1", "a:80/TCP", "b:80/UDP:30080", "c:80/SCTP"),
			`10.96.0.1:80/TCP ClusterIP of "a"
10.96.0.1:80/UDP ClusterIP of "b"
*:30080/UDP NodePort of "b"
10.96.0.1:0/ANY UndefinedPort of ""
`},
		{"no ports: the address is still the service's", service("web", "10.96.0.1"), "10.96.0.1:0/ANY UndefinedPort of \"\"\n"},
		{"no cluster IP of a family: nothing of it", all.with(func(s *Service) { s.ClusterIPs = nil }), ""},
	} {
		if got := planText(planService(c.svc, nil, here)); got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.what, got, c.want)
		}
	}
}

// TestPlanBackends checks that plans have all serving endpoints, and for TCP also the others, with
// their flags, and that fractions of a second are cut off.
func TestPlanBackends(t *testing.T) {
	svc := service("web", "10.96.0.1", "p:80/TCP").with(func(s *Service) { s.AffinityTimeout = 1999 * time.Millisecond })
	plan := planService(svc, []*EndpointSlice{slice("s", "web", "p:8080/TCP",
		"10.0.0.9@me", "10.0.0.10", "10.0.0.3@me serving terminating", "10.0.0.4 serving terminating", "10.0.0.5 serving", "10.0.0.6 -", "10.0.0.7 terminating")}, here)[0]
	want := []backendPlan{
		{netip.MustParseAddrPort("10.0.0.3:8080"), maps.OnNode | maps.Terminating},
		{netip.MustParseAddrPort("10.0.0.4:8080"), maps.Terminating},
		{netip.MustParseAddrPort("10.0.0.5:8080"), 0},
		{netip.MustParseAddrPort("10.0.0.6:8080"), maps.Unready},
		{netip.MustParseAddrPort("10.0.0.7:8080"), maps.Unready | maps.Terminating},
		{netip.MustParseAddrPort("10.0.0.9:8080"), maps.ClusterSet | maps.LocalSet | maps.OnNode},
		{netip.MustParseAddrPort("10.0.0.10:8080"), maps.ClusterSet},
	}
	if !slices.Equal(plan.backends, want) {
		t.Errorf("got  %v\nwant %v", plan.backends, want)
	}
	udp := planService(service("web", "10.96.0.1", "p:80/UDP"), []*EndpointSlice{slice("s", "web", "p:8080/UDP",
		"10.0.0.5 serving", "10.0.0.6 -")}, here)[0]
	if want := want[2:3]; !slices.Equal(udp.backends, want) {
		t.Errorf("UDP: got  %v\nwant %v", udp.backends, want)
	}
	if plan.affinity != 1 {
		t.Errorf("affinity of %d s", plan.affinity)
	}
}

func TestNodePortAddresses(t *testing.T) {
	node := &Node{Addrs: addrs("192.168.0.1", "192.168.0.2", "fd00:1::1")}
	on := addrs("127.0.0.1", "127.0.0.2", "::1", "192.168.0.1", "192.168.0.2", "fd00:1::1", "172.16.0.1")
	const everything = "0.0.0.0! 127.0.0.1! 127.0.0.2! 172.16.0.1 192.168.0.1 192.168.0.2 ::! ::1! fd00:1::1"
	for _, c := range []struct {
		flag []string
		node *Node
		want string
	}{
		// A family for which nothing is set takes node ports at all its addresses.
		{[]string{"10.0.0.0/8"}, node, "::! ::1! fd00:1::1"},
		{[]string{"172.16.0.0/12"}, node, "172.16.0.1 ::! ::1! fd00:1::1"},
		{[]string{"fd00:2::/64"}, node, "0.0.0.0! 127.0.0.1! 127.0.0.2! 172.16.0.1 192.168.0.1 192.168.0.2"},
		{[]string{"0.0.0.0/0", "fd00:2::/64"}, node, "0.0.0.0! 127.0.0.1! 127.0.0.2! 172.16.0.1 192.168.0.1 192.168.0.2"},
		{[]string{"0.0.0.0/0"}, node, everything},
		{[]string{"::ffff:192.168.0.2/127"}, node, "192.168.0.2 ::! ::1! fd00:1::1"},
		{[]string{"::ffff:0:0/96", "::2/128"}, node, "0.0.0.0! 127.0.0.1! 127.0.0.2! 172.16.0.1 192.168.0.1 192.168.0.2"},
		{[]string{"0.0.0.0/0", "primary"}, node, "0.0.0.0! 127.0.0.1! 127.0.0.2! 172.16.0.1 192.168.0.1 192.168.0.2 fd00:1::1"},

		{nil, node, everything},
		{[]string{"all"}, node, everything},
		{[]string{"::/0", "primary", "0.0.0.0/0"}, nil, everything},
		{[]string{"localhost"}, node, "0.0.0.0! 127.0.0.1! 127.0.0.2! ::! ::1!"},
		{[]string{"primary", "localhost"}, node, "0.0.0.0! 127.0.0.1! 127.0.0.2! 192.168.0.1 ::! ::1! fd00:1::1"},
		{[]string{"172.16.0.0/12", "primary"}, node, "172.16.0.1 192.168.0.1 fd00:1::1"},
		{[]string{"172.16.0.0/12", "primary"}, nil, "172.16.0.1"},
		{[]string{"primary"}, node, "192.168.0.1 fd00:1::1"},
		{[]string{"primary"}, nil, ""},
		{[]string{"192.168.0.77/24", "fd00::/8"}, nil, "192.168.0.1 192.168.0.2 fd00:1::1"},
		{[]string{"127.0.0.1/32", "::2/128"}, node, "0.0.0.0! 127.0.0.1!"},
		{[]string{"::/0"}, node, everything},
		{[]string{"10.0.0.0/8", "fd00:9::/64"}, node, ""},
	} {
		n, err := ParseNodePortAddresses(c.flag)
		if err != nil {
			t.Errorf("%q: %v", c.flag, err)
			continue
		}
		chosen := n.Choose(on, c.node, nil)
		var got []string
		for a, flags := range chosen {
			s := a.String()
			if flags == maps.HostNetns {
				s += "!"
			}
			got = append(got, s)
		}
		slices.Sort(got)
		if strings.Join(got, " ") != c.want {
			t.Errorf("%q: %s, want %s", c.flag, strings.Join(got, " "), c.want)
		}
	}
	for _, bad := range [][]string{{"::ffff:0:0/95"}, {"primary", "10.0.0.1"}, {"10.0.0.1"}, {""}, {"nonsense"}, {"10.0.0.0/33"}} {
		if _, err := ParseNodePortAddresses(bad); err == nil || !strings.Contains(err.Error(), strconv.Quote(bad[len(bad)-1])) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestNodePortAddressesNoLoopback checks that NoLoopback overrides every setting that includes
// loopback.
func TestNodePortAddressesNoLoopback(t *testing.T) {
	node := &Node{Addrs: addrs("192.168.0.1")}
	for _, flag := range [][]string{nil, {"all"}, {"localhost", "192.168.0.0/24"}, {"127.0.0.0/8", "::1/128", "primary"}} {
		n, err := ParseNodePortAddresses(flag)
		if err != nil {
			t.Fatal(err)
		}
		n.NoLoopback = true
		got := n.Choose(addrs("127.0.0.1", "127.0.0.2", "::1", "192.168.0.1"), node, nil)
		if want := map[netip.Addr]uint32{netip.MustParseAddr("192.168.0.1"): 0}; !stdmaps.Equal(got, want) {
			t.Errorf("%q: %v, want %v", flag, got, want)
		}
	}
}

// TestNodeUnknown checks that an unknown Node is not taken for one without addresses: it was
// deleted, or has no addresses yet, or a daemon that adopted the maps has not read it yet. The
// primary addresses stay as long as an interface has them, and so does the zone.
func TestNodeUnknown(t *testing.T) {
	primary, err := ParseNodePortAddresses([]string{"primary"})
	if err != nil {
		t.Fatal(err)
	}
	r := newGuardedRig(t)
	start := func() { r.start(); r.loop.o.NodePorts = primary }
	start()
	all := addrs("127.0.0.1", "::1", "192.168.0.1", "192.168.0.2", "fd00:1::1", "fd00:1::2")
	r.store.SetNodeAddrs(all)
	r.store.SetNode(&Node{Name: "me", Zone: "z1", Addrs: addrs("192.168.0.1", "192.168.0.2", "fd00:1::1")})
	takes := func(what, want string) {
		t.Helper()
		r.mustStep()
		var got []string
		for _, a := range r.loop.Status().NodePortAddrs {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v take node ports, want %s", what, got, want)
		}
	}
	const both = "192.168.0.1 fd00:1::1"
	takes("the Node is there", both)
	r.store.SetNode(nil)
	takes("the Node is gone", both)
	if r.loop.Status().Node != nil {
		t.Error("for health the Node must be gone")
	}
	if got := r.store.NodeIPs(); len(got) != 3 {
		t.Errorf("devices are chosen by the Node's addresses %v", got)
	}
	if got := r.store.surroundings().node.Zone; got != "z1" {
		t.Errorf("zone %q of a Node that is gone", got)
	}
	r.store.SetNode(&Node{Name: "me", Zone: "z2"})
	takes("the Node is made anew and has no addresses yet", both)
	r.store = NewStore(r.clock.now)
	start()
	r.store.SetNodeAddrs(all)
	takes("a new daemon has not read the Node", both)
	r.store.SetNodeAddrs(addrs("127.0.0.1", "192.168.0.2", "fd00:1::1", "fd00:1::2"))
	takes("an interface lost one", "fd00:1::1")
	r.store.SetNode(&Node{Name: "me", Addrs: addrs("192.168.0.2", "fd00:1::2")})
	takes("the Node has others", "192.168.0.2 fd00:1::2")
}

// TestStale checks which changes report that sockets may be stale.
func TestStale(t *testing.T) {
	r := newGuardedRig(t)
	check := func(what string, want Stale) {
		t.Helper()
		r.heard.stale = nil
		r.clock.advance(grace)
		r.mustStep()
		var got Stale
		if len(r.heard.stale) > 0 {
			got = r.heard.stale[0]
		}
		if got != want || len(r.heard.stale) > 1 {
			t.Errorf("%s: %+v, want %+v", what, r.heard.stale, want)
		}
	}
	r.store.SetService(service("a", "10.96.0.1", "p:80/TCP"))
	check("a TCP frontend", Stale{})
	r.store.SetSlice(slice("a", "a", "p:80/TCP u:80/UDP", "10.0.0.1", "10.0.0.2"))
	check("TCP endpoints", Stale{})
	r.store.SetService(service("a", "10.96.0.1", "p:80/TCP", "u:80/UDP"))
	check("a UDP frontend", Stale{UDPFrontends: true})
	r.store.SetSlice(slice("a", "a", "p:80/TCP u:80/UDP", "10.0.0.1", "10.0.0.2 serving terminating"))
	check("an endpoint that terminates and serves", Stale{})
	r.store.SetSlice(slice("a", "a", "p:80/TCP u:80/UDP", "10.0.0.1", "10.0.0.2 terminating"))
	check("one that serves no more", Stale{UDPFlows: true})
	r.store.SetSlice(slice("a", "a", "p:80/TCP u:80/UDP", "10.0.0.1"))
	check("one that is gone", Stale{TCPBackends: true})
	external := service("a", "10.96.0.1", "p:80/TCP", "u:80/UDP")
	external.ExternalIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	r.store.SetService(external)
	check("another address", Stale{UDPFrontends: true})
	r.store.SetService(service("a", "10.96.0.1", "p:80/TCP", "u:80/UDP"))
	check("an address that goes", Stale{UDPFlows: true})
	r.store.SetService(service("a", "10.96.0.1", "p:80/TCP"))
	check("a UDP port that goes", Stale{UDPFlows: true})
	r.store.DeleteService(svcName("a"))
	check("a service that goes", Stale{TCPBackends: true})
}
