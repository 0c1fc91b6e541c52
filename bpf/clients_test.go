// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"shunt/maps"
)

func addrsOf(texts ...string) (addrs []netip.Addr) {
	for _, s := range texts {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	return addrs
}

// clientSources returns the source addresses of sockets from the addresses of a network
// namespace.
func TestClientSources(t *testing.T) {
	bound := addrsOf("198.51.100.1", "198.51.100.2", "2001:db8::1")
	routes := map[string]string{"198.51.100.1": "10.0.0.1", "2001:db8::1": "fd00::2"}
	choose := func(to netip.Addr) (netip.Addr, error) {
		source, ok := routes[to.String()]
		if !ok {
			return netip.Addr{}, errors.New("no route")
		}
		return netip.MustParseAddr(source), nil
	}
	for name, c := range map[string]struct {
		addrs []string
		want  string
	}{
		"none":             {nil, ""},
		"one of a family":  {[]string{"10.0.0.1", "fd00::1"}, "0.0.0.0=10.0.0.1 10.0.0.1=10.0.0.1 ::=fd00::1 fd00::1=fd00::1"},
		"IPv4 only":        {[]string{"10.0.0.1"}, "0.0.0.0=10.0.0.1 10.0.0.1=10.0.0.1"},
		"several":          {[]string{"10.0.0.1", "10.0.0.2"}, "10.0.0.1=10.0.0.1 10.0.0.2=10.0.0.2 198.51.100.1=10.0.0.1"},
		"several, IPv6":    {[]string{"fd00::1", "fd00::2"}, "2001:db8::1=fd00::2 fd00::1=fd00::1 fd00::2=fd00::2"},
		"the bound is own": {[]string{"10.0.0.1", "198.51.100.1"}, "10.0.0.1=10.0.0.1 198.51.100.1=198.51.100.1"},
	} {
		t.Run(name, func(t *testing.T) {
			want := map[netip.Addr]netip.Addr{}
			for _, pair := range strings.Fields(c.want) {
				to, source, _ := strings.Cut(pair, "=")
				want[netip.MustParseAddr(to)] = netip.MustParseAddr(source)
			}
			if got := clientSources(addrsOf(c.addrs...), bound, choose); !reflect.DeepEqual(got, want) {
				t.Errorf("%v: %v, want %v", c.addrs, got, want)
			}
		})
	}
	var many []netip.Addr
	for i := range 1000 {
		many = append(many, netip.MustParseAddr(fmt.Sprintf("10.1.%d.%d", i/250, i%250)))
	}
	if n := len(clientSources(many, bound, choose)); n != clientSpaceAddrs+1 {
		t.Errorf("a network namespace of 1000 addresses takes %d entries, want %d", n, clientSpaceAddrs+1)
	}
}

// Where the map has not enough room, the oldest network namespaces get it.
func TestClientEntries(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	both := map[netip.Addr]netip.Addr{a: a, b: b}
	one := map[netip.Addr]netip.Addr{a: a}
	spaces := map[uint64]*clientSpace{1: {cookie: 30, sources: one}, 2: {cookie: 10, sources: both}, 3: {cookie: 20, sources: both}}
	entries, err := clientEntries(spaces, 5)
	if len(entries) != 5 || err != nil {
		t.Errorf("with room for all: %v, %v", entries, err)
	}
	entries, err = clientEntries(spaces, 3)
	want := map[maps.ClientKey]netip.Addr{{Netns: 10, Addr: a}: a, {Netns: 10, Addr: b}: b, {Netns: 30, Addr: a}: a}
	if !reflect.DeepEqual(entries, want) || err == nil || !strings.Contains(err.Error(), "1 of 3 network namespaces") {
		t.Errorf("with room for three: %v, %v", entries, err)
	}
	// Any number of older namespaces that lead nowhere leave room for a pod and for the node.
	spaces[4] = &clientSpace{cookie: 40, near: true, sources: one}
	spaces[5] = &clientSpace{cookie: 50, own: true, sources: one}
	entries, err = clientEntries(spaces, 2)
	want = map[maps.ClientKey]netip.Addr{{Netns: 40, Addr: a}: a, {Netns: 50, Addr: a}: a}
	if !reflect.DeepEqual(entries, want) || err == nil {
		t.Errorf("with room for two: %v, want %v; %v", entries, want, err)
	}
}

// A network namespace to which a device of the node leads is told apart from one to which none does.
func TestClientSpaceNear(t *testing.T) {
	r := newClientsRig(t)
	pod := newPodNetns(t, "shuntcl2")
	pod.addr(t, pod.handle.AddrAdd, "10.9.2.1/24")
	inode := foreignNetns(t)
	var lonely uint64
	err := eachNetns(t.Context(), netnsGlobs, func(i uint64) bool { return i == inode }, func(uint64, string) {
		var err error
		lonely, err = NetnsCookie()
		lo, noLo := netlink.LinkByName("lo")
		a, noAddr := netlink.ParseAddr("10.9.2.2/24")
		if err = errors.Join(err, noLo, noAddr); err == nil {
			err = netlink.AddrAdd(lo, a)
		}
		if err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	c := NewClients(ClientsOptions{Maps: r.maps, Log: zap.NewNop()})
	c.bound = addrsOf("198.51.100.1")
	c.scan(t.Context(), func(*clientSpace) bool { return true })
	near := map[uint64]bool{}
	for _, s := range c.spaces {
		if s.file != nil {
			t.Errorf("the file of network namespace %d stays open", s.cookie)
		}
		near[s.cookie] = s.near
	}
	if there, found := near[pod.cookie]; !found || !there {
		t.Errorf("the pod's namespace: found %t, near %t", found, there)
	}
	if there, found := near[lonely]; !found || there {
		t.Errorf("the namespace without a device to the node: found %t, near %t", found, there)
	}
}

// clientsRig is a running Clients with maps of its own.
type clientsRig struct {
	*testing.T
	maps    *maps.Kernel
	clients *Clients
}

func newClientsRig(t *testing.T) *clientsRig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := NetnsCookie(); errors.Is(err, unix.ENOPROTOOPT) {
		t.Skipf("the kernel does not report a network namespace's cookie: %v", err)
	}
	_, kernel := openMaps(t, filepath.Join(bpffs(t), "shunt"))
	r := &clientsRig{t, kernel, NewClients(ClientsOptions{Maps: kernel, Log: zap.NewNop()})}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- r.clients.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		r.clients.Want(nil) // lets Run end at once
	})
	return r
}

// of returns the entries of a network namespace.
func (r *clientsRig) of(cookie uint64) map[netip.Addr]netip.Addr {
	r.Helper()
	all, err := r.maps.ClientAddrs()
	if err != nil {
		r.Fatal(err)
	}
	mine := map[netip.Addr]netip.Addr{}
	for k, source := range all {
		if k.Netns == cookie {
			mine[k.Addr] = source
		}
	}
	return mine
}

func (r *clientsRig) await(cookie uint64, what string, want ...string) {
	r.Helper()
	expected := map[netip.Addr]netip.Addr{}
	for _, pair := range want {
		to, source, _ := strings.Cut(pair, "=")
		expected[netip.MustParseAddr(to)] = netip.MustParseAddr(source)
	}
	var got map[netip.Addr]netip.Addr
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if got = r.of(cookie); reflect.DeepEqual(got, expected) {
			return
		}
	}
	r.Fatalf("%s: %v, want %v", what, got, expected)
}

// podNetns is a process in a network namespace of its own, with a veth pair to the test's.
type podNetns struct {
	process *exec.Cmd
	handle  *netlink.Handle
	cookie  uint64
	device  netlink.Link
}

func newPodNetns(t *testing.T, veth string) *podNetns {
	t.Helper()
	p := &podNetns{process: exec.Command("/bin/sleep", "600")}
	p.process.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := p.process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.end)
	ns, err := netns.GetFromPid(p.process.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	inode := inodeOf(t, fmt.Sprintf("/proc/%d/ns/net", p.process.Process.Pid))
	err = eachNetns(t.Context(), netnsGlobs, func(i uint64) bool { return i == inode },
		func(uint64, string) { p.cookie, _ = NetnsCookie() })
	if err == nil {
		p.handle, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	}
	if err != nil || p.cookie == 0 {
		t.Fatalf("enter a network namespace: cookie %d, %v", p.cookie, err)
	}
	t.Cleanup(p.handle.Close)
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: veth}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	if p.device, err = p.handle.LinkByName("eth0"); err == nil {
		err = p.handle.LinkSetUp(p.device)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *podNetns) end() {
	_ = p.process.Process.Kill()
	_ = p.process.Wait() // the error is that the process was killed
}

func (p *podNetns) addr(t *testing.T, change func(netlink.Link, *netlink.Addr) error, prefix string) {
	t.Helper()
	a, err := netlink.ParseAddr(prefix)
	if err == nil {
		a.Flags = unix.IFA_F_NODAD
		err = change(p.device, a)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Clients follows network namespaces as they are created, changed and removed, but only while
// addresses are bound.
func TestClients(t *testing.T) {
	r := newClientsRig(t)
	first := newPodNetns(t, "shuntcl0")
	first.addr(t, first.handle.AddrAdd, "10.9.0.1/24")
	first.addr(t, first.handle.AddrAdd, "fd00:9::1/64")
	r.clients.Want(nil)
	r.await(first.cookie, "not asked to")
	r.clients.Want(addrsOf("198.51.100.1", "2001:db8::1"))
	known := []string{"0.0.0.0=10.9.0.1", "10.9.0.1=10.9.0.1", "::=fd00:9::1", "fd00:9::1=fd00:9::1"}
	r.await(first.cookie, "asked to", known...)

	second := newPodNetns(t, "shuntcl1")
	second.addr(t, second.handle.AddrAdd, "10.9.0.2/24")
	began := time.Now()
	r.await(second.cookie, "a new one", "0.0.0.0=10.9.0.2", "10.9.0.2=10.9.0.2")
	t.Logf("an address was known %v after it was set", time.Since(began))
	second.addr(t, second.handle.AddrAdd, "10.9.1.2/24")
	r.await(second.cookie, "a second address, and no route", "10.9.0.2=10.9.0.2", "10.9.1.2=10.9.1.2")
	dst := netip.MustParsePrefix("198.51.100.1/32")
	route := netlink.Route{LinkIndex: second.device.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: netlink.NewIPNet(dst.Addr().AsSlice()),
		Src: netip.MustParseAddr("10.9.1.2").AsSlice()}
	if err := second.handle.RouteReplace(&route); err != nil {
		t.Fatal(err)
	}
	r.await(second.cookie, "a route, whose source this node does not send there", "10.9.0.2=10.9.0.2", "10.9.1.2=10.9.1.2")
	here, err := netlink.LinkByName("shuntcl1")
	if err == nil {
		err = errors.Join(netlink.LinkSetUp(here), netlink.RouteAdd(&netlink.Route{LinkIndex: here.Attrs().Index,
			Scope: netlink.SCOPE_LINK, Dst: netlink.NewIPNet(netip.MustParseAddr("10.9.1.2").AsSlice())}))
	}
	if err != nil {
		t.Fatal(err)
	}
	r.await(second.cookie, "a route", "10.9.0.2=10.9.0.2", "10.9.1.2=10.9.1.2", "198.51.100.1=10.9.1.2")
	second.addr(t, second.handle.AddrDel, "10.9.1.2/24")
	r.await(second.cookie, "one address again", "0.0.0.0=10.9.0.2", "10.9.0.2=10.9.0.2")

	// The second namespace gets the first one's address, and must not be mistaken for it.
	first.end()
	r.await(first.cookie, "one that is gone")
	second.addr(t, second.handle.AddrDel, "10.9.0.2/24")
	second.addr(t, second.handle.AddrAdd, "10.9.0.1/24")
	r.await(second.cookie, "another address", "0.0.0.0=10.9.0.1", "10.9.0.1=10.9.0.1")
	r.clients.Want(nil)
	if all, err := r.maps.ClientAddrs(); err != nil || len(all) != 0 {
		t.Errorf("asked for nothing any more: %v, %v", all, err)
	}
}

// Clients removes an earlier daemon's entries when no address is bound any more, and restores
// entries that somebody removed.
func TestClientsAdopt(t *testing.T) {
	r := newClientsRig(t)
	stale := maps.ClientKey{Netns: 1 << 60, Addr: netip.MustParseAddr("10.0.0.1")}
	if err := r.maps.SetClientAddr(stale, stale.Addr); err != nil {
		t.Fatal(err)
	}
	r.clients.Want(addrsOf("198.51.100.1"))
	r.await(stale.Netns, "a network namespace that is not there")
	if err := r.maps.SetClientAddr(stale, stale.Addr); err != nil {
		t.Fatal(err)
	}
	if err := r.maps.DeleteClientAddr(stale); err != nil {
		t.Fatal(err)
	}
	if err := r.maps.DeleteClientAddr(stale); err != nil {
		t.Errorf("delete an entry that is not there: %v", err)
	}
}

// BenchmarkClientsScan scans all network namespaces of this machine and some more, each with
// one address.
func BenchmarkClientsScan(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("network namespaces need root")
	}
	_, kernel := openMaps(b, filepath.Join(bpffs(b), "shunt"))
	const pods = 100
	for range pods {
		c := exec.Command("/bin/sleep", "600")
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if err := c.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			_ = c.Process.Kill()
			_ = c.Wait()
		})
	}
	for name, again := range map[string]bool{"all": true, "new": false} {
		b.Run(name, func(b *testing.B) {
			c := NewClients(ClientsOptions{Maps: kernel, Log: zap.NewNop()})
			c.bound = addrsOf("198.51.100.1")
			for b.Loop() {
				c.scan(context.Background(), func(*clientSpace) bool { return again })
			}
			if len(c.spaces) < pods {
				b.Errorf("%d network namespaces were found", len(c.spaces))
			}
		})
	}
}
