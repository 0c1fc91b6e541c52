// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
	"shunt/maps"
)

// hostRanges returns ranges with exactly these addresses.
func hostRanges(addrs ...netip.Addr) []string {
	var all []string
	for _, a := range addrs {
		all = append(all, netip.PrefixFrom(a, a.BitLen()).String())
	}
	return all
}

// rangesRig asks the load-balancer IP of service 1 from this node.
type rangesRig struct {
	*cluster
	other *lab.Pod
}

func newRangesRig(t *testing.T) *rangesRig {
	t.Helper()
	if rig.Lacks("SO_NETNS_COOKIE") {
		t.Skip("the kernel does not report a network namespace's cookie (SO_NETNS_COOKIE): all clients of the node are refused, see TestSourceRangesWithoutCookies")
	}
	c := startCluster(t)
	return &rangesRig{c, c.n1.Pod("other")}
}

// serve applies service 1 with these ranges. Without ranges all clients are admitted.
func (r *rangesRig) serve(ranges ...string) {
	r.t.Helper()
	r.apply(rig.Service("web", 1, rig.Everywhere(1), rig.FromRanges(ranges...)), rig.SlicesOf("web", rig.Up(r.web[0], r.web[1])...))
}

func (r *rangesRig) balancer(w way) netip.AddrPort {
	return rig.At(w.of(rig.BalancerIPs(1)), rig.ServicePort)
}

// let checks that the pods are admitted, refused that they get the errno and that the
// reason is counted.
func (r *rangesRig) let(from ...*lab.Pod) {
	r.t.Helper()
	for _, p := range from {
		for _, w := range ways {
			w.wantServers(r.t, p, r.balancer(w), r.web[0], r.web[1])
		}
	}
}

func (r *rangesRig) refused(reason string, from ...*lab.Pod) {
	r.t.Helper()
	for _, p := range from {
		before := r.d.Reasons()[reason]
		for _, w := range ways {
			w.wantErrno(r.t, p, r.balancer(w), syscall.EHOSTUNREACH)
		}
		if n := r.d.Reasons()[reason] - before; n != uint64(len(ways)) {
			r.t.Errorf("%s: %d of %d were counted as %s", p.Name(), n, len(ways), reason)
		}
	}
}

// clientAddrs returns the content of map client_addrs.
func (r *rangesRig) clientAddrs() (all map[maps.ClientKey]netip.Addr) {
	r.t.Helper()
	var read error
	err := r.d.Kernel(func(k *maps.Kernel) { all, read = k.ClientAddrs() })
	if err = errors.Join(err, read); err != nil {
		r.t.Fatal(err)
	}
	return all
}

// TestSourceRangesOfNode: source ranges apply to the pods and processes of this node, by
// the source addresses of their sockets. Ranges are added, changed and removed while
// clients ask. Other frontends of the service and other services admit all clients.
func TestSourceRangesOfNode(t *testing.T) {
	t.Parallel()
	r := newRangesRig(t)
	r.apply(rig.Service("open", 2, rig.Everywhere(2)), rig.SlicesOf("open", rig.Up(r.web[0])...))
	r.serve()
	r.let(r.client, r.other, r.host)
	if n := len(r.clientAddrs()); n != 0 {
		t.Errorf("no service has ranges, and %d source addresses are kept", n)
	}
	r.serve(hostRanges(r.client.Addrs()...)...)
	r.let(r.client)
	r.refused("source_range", r.other, r.host)
	for _, w := range ways {
		for _, p := range []*lab.Pod{r.other, r.host} {
			w.wantServers(t, p, rig.VIP(1, w.family), r.web[0], r.web[1])
			w.wantServers(t, p, rig.At(w.of(rig.ExternalIPs(1)), rig.ServicePort), r.web[0], r.web[1])
			w.wantServers(t, p, rig.At(w.of([]netip.Addr{r.n1.Addr4(), r.n1.Addr6()}), rig.NodePortOf(1)), r.web[0], r.web[1])
			w.wantServers(t, p, rig.At(w.of(rig.BalancerIPs(2)), rig.ServicePort), r.web[0])
		}
	}
	r.serve(hostRanges(r.n1.Addr4(), r.n1.Addr6())...)
	r.let(r.host)
	r.refused("source_range", r.client, r.other)
	r.serve("10.244.0.0/16", "fd00:10:244::/48")
	r.let(r.client, r.other)
	r.refused("source_range", r.host)
	// Ranges of one family only: the other family admits all clients, as with kube-proxy.
	r.serve(hostRanges(r.client.Addr4())...)
	for _, w := range ways {
		if w.family == 6 {
			w.wantServers(t, r.other, r.balancer(w), r.web[0], r.web[1])
		} else {
			w.wantErrno(t, r.other, r.balancer(w), syscall.EHOSTUNREACH)
		}
	}
	r.serve()
	r.let(r.client, r.other, r.host)
	rig.Eventually(t, "no source address is kept without ranges", func() bool { return len(r.clientAddrs()) == 0 })
}

// TestSourceRangesWithoutCookies: if the kernel does not report the cookies of network namespaces,
// all pods and processes of the node are refused, and the log says why.
func TestSourceRangesWithoutCookies(t *testing.T) {
	t.Parallel()
	if !rig.Lacks("SO_NETNS_COOKIE") {
		t.Skip("the kernel reports a network namespace's cookie (SO_NETNS_COOKIE)")
	}
	c := startCluster(t)
	r := &rangesRig{c, c.n1.Pod("other")}
	r.serve("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1")
	r.refused("source_unknown", r.client, r.host)
	if r.d.Log.Find("load-balancer IPs with source ranges refuse clients of this node whose source addresses are not known") == nil {
		t.Error("the log does not say why")
	}
	r.serve("0.0.0.0/0", "::/0")
	r.let(r.client, r.host)
}

// TestSourceRangesBound: the address that a socket is bound to takes precedence over the
// one that the kernel would choose.
func TestSourceRangesBound(t *testing.T) {
	t.Parallel()
	r := newRangesRig(t)
	second := []netip.Addr{netip.MustParseAddr("10.244.1.254"), netip.MustParseAddr("fd00:10:244:1::fe")}
	for _, a := range second {
		r.other.AddAddr(a)
	}
	ask := func(w way, p *lab.Pod, from netip.Addr) error {
		return p.Request(w.network, r.balancer(w), lab.RequestOptions{Unconnected: w.sendto, Local: netip.AddrPortFrom(from, 0)}).Err
	}
	// The address that the kernel chooses toward the load-balancer IP, from a socket to a port
	// of that IP without a service, which is not translated.
	chosen := map[int]netip.Addr{}
	for _, w := range ways[3:5] {
		k := w.openTo(t, r.other, rig.At(r.balancer(w).Addr(), rig.ServicePort+1))
		name, err := k.LocalName()
		if err != nil {
			t.Fatal(err)
		}
		chosen[w.family] = name.Addr().Unmap()
	}
	for _, allowed := range [][]netip.Addr{r.other.Addrs(), second} {
		r.serve(hostRanges(allowed...)...)
		for _, w := range ways {
			for _, from := range slices.Concat(r.other.Addrs(), second) {
				if from.Is4() != (w.family == 4) {
					continue
				}
				err := ask(w, r.other, from)
				if slices.Contains(allowed, from) && err != nil {
					t.Errorf("%s bound to %s, which is let in: %v", w, from, err)
				}
				if !slices.Contains(allowed, from) && !errors.Is(err, rig.Refusal(syscall.EHOSTUNREACH)) {
					t.Errorf("%s bound to %s, which is not let in: %v", w, from, err)
				}
			}
			err := w.ask(r.other, r.balancer(w)).Err
			if slices.Contains(allowed, chosen[w.family]) != (err == nil) {
				t.Errorf("%s not bound, for which the kernel takes %s: %v", w, chosen[w.family], err)
			}
			// An address that a socket can be bound to, but that packets cannot have as
			// their source.
			if w == ways[3] {
				before := r.d.Reasons()["source_unknown"]
				if err := ask(w, r.other, netip.MustParseAddr("224.0.0.1")); !errors.Is(err, rig.Refusal(syscall.EHOSTUNREACH)) {
					t.Errorf("%s bound to a multicast address: %v", w, err)
				}
				if n := r.d.Reasons()["source_unknown"] - before; n != 1 {
					t.Errorf("%d were counted as source_unknown, want 1", n)
				}
			}
		}
	}
}

// TestSourceRangesBorrowed: a pod that may change its own network adds an address that is
// admitted, and a route with that source. With kube-proxy the replies would not reach it; here it
// is refused.
func TestSourceRangesBorrowed(t *testing.T) {
	t.Parallel()
	r := newRangesRig(t)
	r.serve(hostRanges(r.client.Addrs()...)...)
	for family, borrowed := range r.client.Addrs() {
		r.other.BorrowAddr(borrowed, rig.BalancerIPs(1)[family])
	}
	cookie, err := r.other.NetnsCookie()
	if err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "the pod's new addresses are known", func() bool {
		known := 0
		for key := range r.clientAddrs() {
			if key.Netns == cookie && slices.Contains(r.client.Addrs(), key.Addr) {
				known++
			}
		}
		return known == 2
	})
	r.let(r.client)
	r.refused("source_unknown", r.other)
}

// TestSourceRangesPodHasBalancer: a pod that may change its own network adds the load-balancer IP to
// a device of its own. A load-balancer IP is a permitted source where a range contains a node's
// address, but not for that pod: its connection would leave with the pod's own address.
func TestSourceRangesPodHasBalancer(t *testing.T) {
	t.Parallel()
	r := newRangesRig(t)
	r.serve(hostRanges(r.n1.Addr4(), r.n1.Addr6())...)
	r.let(r.host)
	r.refused("source_range", r.other)
	cookie, err := r.other.NetnsCookie()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range rig.BalancerIPs(1) {
		r.other.BorrowAddr(a, a)
	}
	// With a second address of a family, the entry of the unspecified address is removed.
	rig.Eventually(t, "the pod's new addresses are known", func() bool {
		for key := range r.clientAddrs() {
			if key.Netns == cookie && key.Addr.IsUnspecified() {
				return false
			}
		}
		return true
	})
	r.refused("source_unknown", r.other)
	r.let(r.host)
}

// TestSourceRangesChoice: of several addresses of the node, the one that the kernel chooses
// toward the load-balancer IP is checked, also after routes and addresses change.
func TestSourceRangesChoice(t *testing.T) {
	t.Parallel()
	r := newRangesRig(t)
	second := netip.MustParsePrefix("192.168.77.1/24")
	r.serve(hostRanges(second.Addr())...)
	w := ways[0]
	w.wantErrno(t, r.host, r.balancer(w), syscall.EHOSTUNREACH)
	r.n1.AddAddr("eth0", second)
	if err := r.host.Request(w.network, r.balancer(w), lab.RequestOptions{Timeout: time.Second}).Err; !errors.Is(err, rig.Refusal(syscall.EHOSTUNREACH)) {
		t.Errorf("an address that the kernel does not choose: %v", err)
	}
	bound := lab.RequestOptions{Local: netip.AddrPortFrom(second.Addr(), 0), Timeout: time.Second}
	rig.Eventually(t, "a socket that is bound to the new address is let in", func() bool {
		err := r.host.Request(w.network, r.balancer(w), bound).Err
		return err == nil || errors.Is(err, syscall.ETIMEDOUT) // endpoints have no route to it
	})
	r.serve(hostRanges(r.n1.Addr4())...)
	w.wantServers(t, r.host, r.balancer(w), r.web[0], r.web[1])
	// The load-balancer IP is now an address of the node, and so the source. It is admitted
	// by a range that contains the node.
	vip := netip.PrefixFrom(rig.BalancerIPs(1)[0], 32)
	r.n1.AddAddr("lo", vip)
	rig.Eventually(t, "the load-balancer IP is a source of its own", func() bool {
		a := r.host.Request(w.network, r.balancer(w), lab.RequestOptions{Local: netip.AddrPortFrom(vip.Addr(), 0), Timeout: time.Second})
		return a.Err == nil || errors.Is(a.Err, syscall.ETIMEDOUT)
	})
}

// TestSourceRangesNewPod: a pod that is added while the daemon runs is refused until its
// address is known, which is soon. One that is added while no daemon runs is refused until
// there is one. Known addresses stay known meanwhile.
func TestSourceRangesNewPod(t *testing.T) {
	t.Parallel()
	r := newRangesRig(t)
	r.serve("10.244.0.0/16", "fd00:10:244::/48")
	r.let(r.client)
	var took []time.Duration
	for i := range 5 {
		p := r.n1.Pod(fmt.Sprintf("new-%d", i))
		began := time.Now()
		rig.Eventually(t, "a new pod's addresses are known", func() bool {
			known := 0
			for key, source := range r.clientAddrs() {
				if key.Addr.IsUnspecified() && slices.Contains(p.Addrs(), source) {
					known++
				}
			}
			return known == 2
		})
		took = append(took, time.Since(began))
		r.let(p)
		p.Remove()
	}
	t.Logf("from a pod's addresses to when they were known: %v", took)
	if slices.Min(took) > 2*time.Second {
		t.Errorf("the fastest of %d new pods was known after %v", len(took), slices.Min(took))
	}
	r.serve("0.0.0.0/0", "::/0")
	r.d.Kill()
	early := r.n1.Pod("early")
	r.let(early) // its source address is not known, and all are admitted
	early.Remove()
	r.d.Start()
	r.serve("10.244.0.0/16", "fd00:10:244::/48")
	r.d.Kill()
	late := r.n1.Pod("late")
	r.let(r.client)
	r.refused("source_unknown", late)
	r.refused("source_range", r.host)
	r.d.Start()
	r.let(r.client, late)
	r.refused("source_range", r.host)
	stdout, _, _ := runInPod(t, r.d.Pod, rig.Self, "status", "--bpffs-root", r.d.Root)
	if !strings.Contains(stdout, "client_addrs") {
		t.Errorf("status does not show map client_addrs:\n%s", stdout)
	}
	cookie, err := late.NetnsCookie()
	if err != nil {
		t.Fatal(err)
	}
	late.Remove()
	rig.Eventually(t, "nothing is kept of a pod that is gone", func() bool {
		for key := range r.clientAddrs() {
			if key.Netns == cookie {
				return false
			}
		}
		return true
	})
}

// TestSourceRangesOfFlows: changed ranges apply to new connections and flows only.
func TestSourceRangesOfFlows(t *testing.T) {
	t.Parallel()
	r := newRangesRig(t)
	r.serve(hostRanges(r.client.Addrs()...)...)
	type flow struct {
		*talker
		to     netip.AddrPort
		server string
	}
	var flows []flow
	for _, w := range ways {
		to := r.balancer(w)
		if w.sendto {
			k := w.open(t, r.client)
			flows = append(flows, flow{k, to, k.askTo(to)})
			continue
		}
		k := w.openTo(t, r.client, to)
		flows = append(flows, flow{k, to, k.ask(to)})
	}
	r.serve(hostRanges(r.n1.Addr4(), r.n1.Addr6())...)
	r.refused("source_range", r.client)
	for _, f := range flows {
		if f.w.sendto {
			if got := f.askTo(f.to); got != f.server {
				t.Errorf("%s: %s answers, before it was %s", f.w, got, f.server)
			}
			continue
		}
		f.wantKept(f.to, f.server)
	}
}
