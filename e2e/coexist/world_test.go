// SPDX-License-Identifier: Apache-2.0

package coexist

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shunt/bpf"
	"shunt/e2e/kube"
	"shunt/e2e/rig"
	"shunt/lab"
	"shunt/maps"
)

// The columns.
const (
	iptables = "iptables"
	nftables = "nftables"
	shunt    = "shunt"
)

// world has one API server, and a node for each column.
type world struct {
	kube       *kube.Cluster
	api        kubernetes.Interface
	lab        *lab.Lab
	kubeconfig string
	columns    []*column
}

// column is a node with its Service proxy.
type column struct {
	name        string
	index       int
	node        *lab.Node
	web, client *lab.Pod // pods; web has servers
	host        *lab.Pod // the node's own processes
	rules       *lab.Pod // the same, to change the node
	outside     *lab.Pod // a client that routes external addresses and cluster IPs to the node
	daemon      *rig.Daemon
}

// scene is one situation on one node.
type scene struct {
	*world
	*column
	*testing.T
	// number distinguishes the Services of situations.
	number int
	wrong  []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{lab: lab.ForTest(t), kube: kube.ForTest(t)}
	w.api, w.kubeconfig = w.kube.Client(), filepath.Join(w.lab.Dir(), "kubeconfig")
	must(t, w.kube.Kubeconfig(w.kubeconfig))
	for i, name := range []string{iptables, nftables, shunt} {
		w.columns = append(w.columns, w.newColumn(t, name, i))
	}
	for _, c := range w.columns {
		if c.name == shunt {
			c.daemon = w.startShunt(t, c)
		} else {
			w.startKubeProxy(t, c.node, c.name)
		}
	}
	return w
}

func (w *world) newColumn(t *testing.T, name string, index int) *column {
	t.Helper()
	c := &column{name: name, index: index, node: w.lab.Node(name)}
	c.web, c.client = c.node.Pod("web-"+name), c.node.Pod("client-"+name)
	c.host, c.rules = c.node.HostPod("host-"+name), c.node.HostPod("rules-"+name)
	c.outside = w.lab.Client("outside-" + name)
	for _, r := range []netip.Prefix{lab.ServiceCIDR4, lab.ServiceCIDR6, lab.ExternalCIDR4, lab.ExternalCIDR6} {
		c.outside.RouteVia(r, c.node)
	}
	c.web.Serve("tcp", rig.ServerPort)
	c.web.Serve("udp", rig.ServerPort)
	w.reachAPI(t, c.node)
	return c
}

// reachAPI registers a node, and lets its processes reach the API server.
func (w *world) reachAPI(t *testing.T, n *lab.Node) {
	t.Helper()
	proxy, err := kube.NewProxy(n.NetnsPath(), w.kube.Addr(), w.kube.Addr())
	must(t, err)
	t.Cleanup(proxy.Close)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name()}}
	made, err := w.api.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{})
	must(t, err)
	for _, a := range []netip.Addr{n.Addr4(), n.Addr6()} {
		made.Status.Addresses = append(made.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	_, err = w.api.CoreV1().Nodes().UpdateStatus(t.Context(), made, metav1.UpdateOptions{})
	must(t, err)
}

// startShunt runs the daemon until the test ends.
func (w *world) startShunt(t *testing.T, c *column, flags ...string) *rig.Daemon {
	t.Helper()
	d := rig.NewDaemon(t, c.node, "", append([]string{"--probe-bind-address", "127.0.0.1:10266"}, flags...)...)
	d.Args = append([]string{"run", "--kubeconfig", w.kubeconfig}, d.Args[3:]...) // instead of --manifests
	d.Launch()
	t.Cleanup(func() {
		if d.Alive() {
			d.Kill()
		}
		if err := errors.Join(bpf.Detach(d.Root), maps.Remove(d.Root)); err != nil {
			t.Error(err)
		}
	})
	rig.Eventually(t, "the daemon's programs are in effect", func() bool { return strings.Contains(d.Log.String(), `"in effect"`) })
	return d
}

// startKubeProxy runs the real kube-proxy until the test ends.
func (w *world) startKubeProxy(t *testing.T, n *lab.Node, mode string) *lab.Cmd {
	t.Helper()
	tools, err := kube.Tools(t.Context(), "kube-proxy")
	must(t, err)
	proxy := n.HostPod("kube-proxy-"+n.Name()).Command(context.Background(), tools[0], "--kubeconfig", w.kubeconfig,
		"--hostname-override", n.Name(), "--proxy-mode", mode, "--conntrack-max-per-core=0",
		"--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0", "--oom-score-adj=0")
	must(t, proxy.Start())
	t.Cleanup(func() {
		_ = proxy.Signal(syscall.SIGKILL) // it may have ended
		<-proxy.Done()
	})
	return proxy
}

// service creates a Service of the scene with its slices, and waits until the node serves it.
// Each scene has a number of its own, and so addresses of its own.
func (s *scene) service(options ...func(*corev1.Service)) (n int) {
	s.Helper()
	n = s.number*3 + s.index
	name := fmt.Sprintf("s%d", n)
	svc := rig.Service(name, n, options...)
	status := svc.Status
	policy := corev1.IPFamilyPolicyRequireDualStack
	svc.Spec.IPFamilyPolicy = &policy
	made, err := s.api.CoreV1().Services("default").Create(s.Context(), svc, metav1.CreateOptions{})
	must(s.T, err)
	s.Cleanup(func() {
		must(s.T, s.api.CoreV1().Services("default").Delete(context.Background(), name, metav1.DeleteOptions{}))
	})
	if len(status.LoadBalancer.Ingress) > 0 {
		made.Status = status
		_, err = s.api.CoreV1().Services("default").UpdateStatus(s.Context(), made, metav1.UpdateOptions{})
		must(s.T, err)
	}
	for _, o := range rig.SlicesOf(name, rig.Up(s.web)...) {
		slice := o.(*discoveryv1.EndpointSlice)
		_, err := s.api.DiscoveryV1().EndpointSlices("default").Create(s.Context(), slice, metav1.CreateOptions{})
		must(s.T, err)
		s.Cleanup(func() {
			must(s.T, s.api.DiscoveryV1().EndpointSlices("default").Delete(context.Background(), slice.Name, metav1.DeleteOptions{}))
		})
	}
	for _, family := range families {
		rig.Eventually(s.T, s.name+" serves "+name, func() bool {
			return s.ask(s.client, "tcp", rig.VIP(n, family)) == s.web.Name()
		})
	}
	return n
}

var families = []int{4, 6}

// of returns the address of a family.
func of(addrs []netip.Addr, family int) netip.Addr { return addrs[family/5] }

// quick bounds an exchange that has no answer.
const quick = 500 * time.Millisecond

// ask returns who answers: a server's name, "refused", "silence", or the error.
func (s *scene) ask(from *lab.Pod, network string, dst netip.AddrPort) string {
	a := from.Request(network, dst, lab.RequestOptions{Timeout: quick})
	switch {
	case a.Err == nil:
		return a.Server
	case errors.Is(a.Err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(a.Err, syscall.ETIMEDOUT):
		return "silence"
	}
	return a.Err.Error()
}

// becomes waits for some seconds until ask returns want, and returns its last result. It does not
// wait where something was wrong already.
func (s *scene) becomes(from *lab.Pod, network string, dst netip.AddrPort, want string) (got string) {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if got = s.ask(from, network, dst); got == want || len(s.wrong) > 0 || time.Now().After(end) {
			return got
		}
	}
}

// run runs a program on the node to its end.
func (s *scene) run(input, program string, args ...string) {
	s.Helper()
	var said bytes.Buffer
	cmd := s.rules.Command(context.Background(), program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &said, &said
	if err := cmd.Run(); err != nil {
		s.Fatalf("%s %v: %v: %s", program, args, err, said.String())
	}
}

// undo runs a program on the node when the scene ends.
func (s *scene) undo(program string, args ...string) {
	s.Cleanup(func() { s.run("", program, args...) })
}

// shows reports whether words are in an output, whatever white space is between them.
func shows(output, words string) bool {
	return strings.Contains(strings.Join(strings.Fields(output), " "), words)
}

// command returns the output of a command of shunt on the node.
func (s *scene) command(args ...string) string {
	s.Helper()
	var said bytes.Buffer
	cmd := s.rules.Command(context.Background(), rig.Self, slices.Concat(args, []string{"--bpffs-root", s.daemon.Root})...)
	cmd.Stdout, cmd.Stderr = &said, &said
	_ = cmd.Run() // the exit code reports problems, which the output names
	return said.String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
