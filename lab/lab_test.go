// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"shunt/lab"
)

func TestMain(m *testing.M) {
	lab.MaybeAgent()
	maybeVictim()
	os.Exit(m.Run())
}

// cluster is two nodes, each with a pod that serves tcp and udp on 8080.
type cluster struct {
	*lab.Lab
	n1, n2           *lab.Node
	web, api, client *lab.Pod
	outside          *lab.Pod
}

func newCluster(t *testing.T) cluster {
	t.Helper()
	return newClusterOf(t, lab.Network{})
}

func newClusterOf(t *testing.T, network lab.Network) cluster {
	t.Helper()
	l := lab.ForTest(t)
	l.Use(network)
	c := cluster{Lab: l, n1: l.Node("n1"), n2: l.Node("n2")}
	c.web, c.api, c.client = c.n1.Pod("web-0"), c.n2.Pod("api-0"), c.n1.Pod("client")
	c.outside = l.Client("outside")
	for _, p := range []*lab.Pod{c.web, c.api} {
		p.Serve("tcp", 8080)
		p.Serve("udp", 8080)
	}
	return c
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// TestReach asks from every kind of client to every kind of server, over both protocols and
// families, and checks which server answered and which client it saw.
func TestReach(t *testing.T) {
	for name, network := range map[string]lab.Network{
		"ptp and routes": {}, "bridge and routes": {Bridge: true}, "ptp and VXLAN": {VXLAN: true}, "bridge and VXLAN": {VXLAN: true, Bridge: true},
	} {
		t.Run(name, func(t *testing.T) { reach(t, network) })
	}
}

func reach(t *testing.T, joined lab.Network) {
	c := newClusterOf(t, joined)
	host := c.n2.HostPod("kubelet")
	host.Serve("tcp", 9090)
	host.Serve("udp", 9090)
	for _, test := range []struct {
		name     string
		from, to *lab.Pod
		port     uint16
	}{
		{"pod to pod of the same node", c.client, c.web, 8080},
		{"pod to pod of another node", c.client, c.api, 8080},
		{"pod to itself", c.web, c.web, 8080},
		{"pod to another node", c.client, host, 9090},
		{"pod to its own node's uplink address", c.api, host, 9090},
		{"node to pod of another node", host, c.web, 8080},
		{"node to itself", host, host, 9090},
		{"outside to node", c.outside, host, 9090},
	} {
		for _, network := range []string{"tcp", "udp"} {
			for i, dst := range test.to.Addrs() {
				t.Run(fmt.Sprintf("%s/%s/v%d", test.name, network, 4+2*i), func(t *testing.T) {
					dst := at(dst, test.port)
					a := test.from.Ask(network, dst)
					if a.Err != nil {
						t.Fatal(a.Err)
					}
					if a.Server != test.to.Name() || a.ServedAt != dst || a.Peer != dst {
						t.Errorf("answered by %s at %v, peer %v; want %s at %v", a.Server, a.ServedAt, a.Peer, test.to.Name(), dst)
					}
					if a.ClientSeen != a.Local {
						t.Errorf("server saw %v, client is %v", a.ClientSeen, a.Local)
					}
					own := test.from.Addrs()[i]
					if joined.VXLAN && test.from == host && test.to == c.web { // a node reaches pods of other nodes from its tunnel address
						own = c.n2.PodCIDRs()[i].Addr()
					}
					if a.ClientSeen.Addr() != own {
						t.Errorf("server saw %v, want %v", a.ClientSeen.Addr(), own)
					}
					if network == "udp" && a.From != dst {
						t.Errorf("datagram came from %v, want %v", a.From, dst)
					}
				})
			}
		}
	}
}

// TestNodeToItsPod is separate from TestReach: the node reaches its own pods from the
// address of its end of the veth pair.
func TestNodeToItsPod(t *testing.T) {
	c := newCluster(t)
	host := c.n1.HostPod("kubelet")
	for _, addr := range c.web.Addrs() {
		if a := host.Ask("tcp", at(addr, 8080)); a.Err != nil || a.Server != "web-0" {
			t.Errorf("%v: %q, %v", addr, a.Server, a.Err)
		}
	}
}

func TestErrno(t *testing.T) {
	c := newCluster(t)
	short := lab.RequestOptions{Timeout: 100 * time.Millisecond}
	for _, test := range []struct {
		name, network string
		from          *lab.Pod
		dst           netip.AddrPort
		want          syscall.Errno
	}{
		{"closed port", "tcp", c.client, at(c.api.Addr4(), 1), syscall.ECONNREFUSED},
		{"closed port v6", "tcp", c.client, at(c.api.Addr6(), 1), syscall.ECONNREFUSED},
		{"closed port udp", "udp", c.client, at(c.api.Addr4(), 1), syscall.ECONNREFUSED},
		{"closed port udp v6", "udp", c.client, at(c.api.Addr6(), 1), syscall.ECONNREFUSED},
		{"nobody's service address", "tcp", c.client, netip.MustParseAddrPort("10.96.0.1:80"), syscall.ETIMEDOUT},
		{"nobody's service address v6", "tcp", c.client, netip.MustParseAddrPort("[fd00:10:96::1]:80"), syscall.ETIMEDOUT},
		{"nobody's service address udp", "udp", c.client, netip.MustParseAddrPort("10.96.0.1:80"), syscall.ETIMEDOUT},
		{"no route", "tcp", c.outside, at(c.web.Addr4(), 8080), syscall.ENETUNREACH},
		{"no route v6", "tcp", c.outside, at(c.web.Addr6(), 8080), syscall.ENETUNREACH},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := test.from.Request(test.network, test.dst, short)
			var failed *lab.Error
			if !errors.Is(a.Err, test.want) || !errors.As(a.Err, &failed) {
				t.Errorf("%v, want %v", a.Err, test.want)
			}
		})
	}
}

func TestRequestOptions(t *testing.T) {
	c := newCluster(t)
	t.Run("v4-mapped", func(t *testing.T) {
		for _, network := range []string{"tcp6", "udp6"} {
			a := c.client.Ask(network, at(c.api.Addr4(), 8080))
			mapped := at(netip.AddrFrom16(c.api.Addr4().As16()), 8080)
			if a.Err != nil || a.Server != "api-0" || a.Peer != mapped || a.ClientSeen.Addr() != c.client.Addr4() {
				t.Errorf("%s: %+v, want peer %v", network, a, mapped)
			}
		}
	})
	t.Run("local port", func(t *testing.T) {
		for _, network := range []string{"tcp", "udp"} {
			opts := lab.RequestOptions{Local: netip.MustParseAddrPort("0.0.0.0:5353")}
			a := c.client.Request(network, at(c.api.Addr4(), 8080), opts)
			if a.Err != nil || a.ClientSeen != at(c.client.Addr4(), 5353) {
				t.Errorf("%s: %+v", network, a)
			}
		}
	})
	t.Run("wrong family to bind to", func(t *testing.T) {
		opts := lab.RequestOptions{Local: netip.MustParseAddrPort("[::1]:0")}
		if a := c.client.Request("tcp", at(c.api.Addr4(), 8080), opts); a.Err == nil {
			t.Errorf("%+v", a)
		}
	})
	t.Run("unconnected", func(t *testing.T) {
		for _, addr := range c.api.Addrs() {
			a := c.client.Request("udp", at(addr, 8080), lab.RequestOptions{Unconnected: true})
			if a.Err != nil || a.Peer.IsValid() || a.From != at(addr, 8080) {
				t.Errorf("%v: %+v", addr, a)
			}
		}
	})
}

func TestOutsideRoute(t *testing.T) {
	c := newCluster(t)
	for _, cidr := range c.n1.PodCIDRs() {
		c.outside.RouteVia(cidr, c.n1)
	}
	for _, addr := range c.web.Addrs() {
		// Pods answer through their node, which has the client on its wire.
		if a := c.outside.Ask("tcp", at(addr, 8080)); a.Err != nil || a.ClientSeen != a.Local {
			t.Errorf("%v: %+v", addr, a)
		}
	}
}

func TestServer(t *testing.T) {
	l := lab.ForTest(t)
	pod := l.Node("n1").Pod("web-0")
	for _, network := range []string{"tcp4", "udp6"} {
		s := pod.Serve(network, 0)
		i := 0
		if network == "udp6" {
			i = 1
		}
		dst, other := at(pod.Addrs()[i], s.Addr().Port()), at(pod.Addrs()[1-i], s.Addr().Port())
		for range 3 {
			if a := pod.Ask(network[:3], dst); a.Err != nil {
				t.Fatal(network, a.Err)
			}
		}
		if a := pod.Ask(network[:3], other); !errors.Is(a.Err, syscall.ECONNREFUSED) {
			t.Errorf("%s answers on the other family: %+v", network, a)
		}
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Count(); n != 3 || err != nil {
			t.Errorf("%s: count %d, %v; want 3", network, n, err)
		}
		if a := pod.Ask(network[:3], dst); !errors.Is(a.Err, syscall.ECONNREFUSED) {
			t.Errorf("%s answers after Stop: %+v", network, a)
		}
		pod.Serve(network, dst.Port()) // the port is free again
	}
	if err := l.Err(); err != nil {
		t.Fatal(err)
	}
}

func TestPodRemove(t *testing.T) {
	c := newCluster(t)
	c.web.Remove()
	for _, path := range []string{c.web.Cgroup(), c.web.NetnsPath()} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there (%v)", path, err)
		}
	}
	a := c.client.Request("tcp", at(c.web.Addr4(), 8080), lab.RequestOptions{Timeout: 100 * time.Millisecond})
	if a.Err == nil {
		t.Errorf("a removed pod answers: %+v", a)
	}
	again := c.n1.Pod("web-0")
	if again.Addr4() == c.web.Addr4() {
		t.Error("an address was given twice")
	}
	again.Serve("tcp", 8080)
	if a := c.client.Ask("tcp", at(again.Addr4(), 8080)); a.Err != nil {
		t.Error(a.Err)
	}
}

func TestCommand(t *testing.T) {
	l := lab.ForTest(t)
	n := l.Node("n1")
	for _, pod := range []*lab.Pod{n.Pod("web-0"), n.HostPod("kubelet")} {
		cmd := pod.Command(t.Context(), "/bin/sh", "-c", "readlink /proc/self/ns/net; cat /proc/self/cgroup; ls -d /sys/fs/cgroup/*; exit 3")
		var out strings.Builder
		cmd.Stdout = &out
		err := cmd.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 3 {
			t.Fatalf("%v, want exit status 3; output:\n%s", err, &out)
		}
		var st syscall.Stat_t
		if err := syscall.Stat(pod.NetnsPath(), &st); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("net:[%d]", st.Ino); !strings.HasPrefix(out.String(), want) {
			t.Errorf("namespace: want %s, output:\n%s", want, &out)
		}
		if want := "0::/" + filepath.Join(filepath.Base(l.Cgroup()), "n1", pod.Name()); !strings.Contains(out.String(), want+"\n") {
			t.Errorf("cgroup: want %s, output:\n%s", want, &out)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := n.Pod("sleeper").Command(ctx, "/bin/sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := cmd.Wait(); err == nil {
		t.Error("a cancelled command ended well")
	}
	if err := n.Pod("other").Command(t.Context(), "/no/such/file").Run(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want that there is no such file", err)
	}
}

func TestCookie(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(fd)
	if _, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); errors.Is(err, unix.ENOPROTOOPT) {
		t.Skipf("the kernel tells nobody a network namespace's cookie (SO_NETNS_COOKIE): %v", err)
	}
	c := newCluster(t)
	seen := map[uint64]string{}
	for _, p := range []*lab.Pod{c.web, c.api, c.client, c.outside, c.n1.HostPod("h1")} {
		cookie, err := p.NetnsCookie()
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[cookie]; ok {
			t.Errorf("%s and %s have the cookie %d", p.Name(), other, cookie)
		}
		seen[cookie] = p.Name()
	}
	if cookie, err := c.n1.HostPod("h2").NetnsCookie(); err != nil || seen[cookie] != "h1" {
		t.Errorf("host pods of one node: cookie %d is of %q (%v)", cookie, seen[cookie], err)
	}
}

func TestDialContext(t *testing.T) {
	c := newCluster(t)
	conn, err := c.client.DialContext(t.Context(), "tcp", at(c.api.Addr6(), 8080).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if local := netip.MustParseAddrPort(conn.LocalAddr().String()); local.Addr() != c.client.Addr6() {
		t.Errorf("dialled from %v, want %v", local, c.client.Addr6())
	}
}
