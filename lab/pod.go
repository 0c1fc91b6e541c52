// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Pod is a network namespace and a cgroup in which processes run. A HostPod (Node.HostPod)
// shares the node's namespace; an outside client (Lab.Client) belongs to no node.
type Pod struct {
	lab    *Lab
	node   *Node // nil for a client
	name   string
	space  *netns
	shared bool // the namespace is the node's
	addrs  pair
	veth   string // the name of the node's end
	cgroup string

	agentMu sync.Mutex
	agent   *agentConn
	removed bool
}

// Pod adds a pod with a namespace, a veth pair and a cgroup of its own.
func (n *Node) Pod(name string) *Pod {
	n.lab.t.Helper()
	p := &Pod{lab: n.lab, node: n, name: name, cgroup: filepath.Join(n.cgroup, name)}
	return p.made(p.makePod)
}

// Sandbox adds a pod whose processes are outside the node's cgroup, as those of a virtual
// machine: their system calls run no socket hook of the node.
func (n *Node) Sandbox(name string) *Pod {
	n.lab.t.Helper()
	p := &Pod{lab: n.lab, node: n, name: name, cgroup: filepath.Join(n.lab.state.cgroup, n.name+"-"+name)}
	return p.made(p.makePod)
}

// HostPod adds a pod with hostNetwork: the node's network namespace, but its own cgroup.
// Tests also use it to run the node's own processes.
func (n *Node) HostPod(name string) *Pod {
	n.lab.t.Helper()
	p := &Pod{lab: n.lab, node: n, name: name, cgroup: filepath.Join(n.cgroup, name)}
	p.space, p.shared, p.addrs = n.space, true, onWire(n.number)
	return p.made(func() error { return nil })
}

// Beside adds another process with its own agent to a pod or client: the same network
// namespace and addresses, another name and cgroup. Remove it before the pod.
func (p *Pod) Beside(name string) *Pod {
	p.lab.t.Helper()
	b := &Pod{lab: p.lab, node: p.node, name: name, cgroup: filepath.Join(filepath.Dir(p.cgroup), name)}
	b.space, b.shared, b.addrs = p.space, true, p.addrs
	return b.made(func() error { return nil })
}

// Client adds a machine outside the cluster: on the wire, without routes to pods or
// services (see RouteVia), and outside every node's cgroup.
func (l *Lab) Client(name string) *Pod {
	l.t.Helper()
	p := &Pod{lab: l, name: name, cgroup: filepath.Join(l.state.cgroup, name)}
	return p.made(p.makeClient)
}

func (p *Pod) made(rest func() error) *Pod {
	p.lab.t.Helper()
	p.lab.mu.Lock()
	err := p.lab.Err()
	if err == nil {
		err = p.create(rest)
	}
	p.lab.mu.Unlock()
	if err != nil {
		p.lab.fail(err)
	}
	return p
}

func (p *Pod) create(rest func() error) error {
	err := checkName(p.name)
	if err == nil {
		err = makeCgroup(p.cgroup)
	}
	if err == nil {
		err = rest()
	}
	if err != nil {
		return fmt.Errorf("make pod %s: %w", p.name, err)
	}
	return nil
}

func (p *Pod) makePod() error {
	n := p.node
	number := firstPod + n.pods
	if n.pods == maxPods {
		return fmt.Errorf("node %s has room for %d pods", n.name, maxPods)
	}
	n.pods++
	p.addrs = podAddr(n.number, number)
	p.veth = fmt.Sprintf("veth%d", number)
	var err error
	if p.space, err = p.lab.newSpace(n.name+"-"+p.name, sysctls(nil)); err != nil {
		return err
	}
	return n.joinPod(p)
}

// sameFamily returns the prefix of the pair in the family of as.
func (p pair) sameFamily(as netip.Prefix) netip.Prefix {
	if as.Addr().Is4() {
		return p.v4
	}
	return p.v6
}

func (p *Pod) makeClient() error {
	l := p.lab
	if l.clients == maxClients {
		return fmt.Errorf("a lab has room for %d clients", maxClients)
	}
	host := firstClient + l.clients
	l.clients++
	p.addrs = onWire(host)
	var err error
	if p.space, err = l.newSpace(p.name, sysctls(nil)); err != nil {
		return err
	}
	if err := l.plug(p.space, host); err != nil {
		return err
	}
	return p.space.settle("eth0", p.addrs.v6.Addr())
}

// RouteVia routes a client's traffic for the range through a node, as a router outside the
// cluster does. Called on a HostPod it routes the node's traffic.
func (p *Pod) RouteVia(dst netip.Prefix, n *Node) {
	p.lab.t.Helper()
	p.SetRoute(Route{Dst: dst, Via: n})
}

// Name returns the pod's name. Its servers answer with it.
func (p *Pod) Name() string { return p.name }

// Node returns the pod's node, nil for an outside client.
func (p *Pod) Node() *Node { return p.node }

// Addr4 returns the pod's IPv4 address.
func (p *Pod) Addr4() netip.Addr { return p.addrs.v4.Addr() }

// Addr6 returns the pod's IPv6 address.
func (p *Pod) Addr6() netip.Addr { return p.addrs.v6.Addr() }

// Addrs returns both addresses, IPv4 first.
func (p *Pod) Addrs() []netip.Addr { return []netip.Addr{p.Addr4(), p.Addr6()} }

// Veth returns the name of the node's end of the veth pair, empty if there is none.
func (p *Pod) Veth() string { return p.veth }

// NodeDevice returns the name of the node's device behind which the pod is, empty if there is
// none.
func (p *Pod) NodeDevice() string {
	if p.veth != "" && p.lab.network.Bridge {
		return cniBridge
	}
	return p.veth
}

// Cgroup returns the pod's cgroup directory.
func (p *Pod) Cgroup() string { return p.cgroup }

// NetnsPath returns the file of the pod's network namespace, see Node.NetnsPath.
func (p *Pod) NetnsPath() string { return p.space.path() }

// Do runs fn on a thread in the pod's network namespace, see Node.Do.
func (p *Pod) Do(fn func() error) error {
	if err := p.lab.Err(); err != nil {
		return err
	}
	return p.space.do(fn)
}

// DialContext connects from the pod's network namespace, see Node.DialContext.
func (p *Pod) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return dial(ctx, p.Do, network, address)
}

// Remove kills the pod's processes and removes its namespace and cgroup, as when a pod is
// deleted: the peers of its connections receive no FIN or RST.
func (p *Pod) Remove() {
	p.lab.t.Helper()
	if p.lab.Err() != nil {
		return
	}
	p.agentMu.Lock()
	p.removed = true
	p.agentMu.Unlock()
	p.lab.mu.Lock()
	err := p.remove()
	p.lab.mu.Unlock()
	if err != nil {
		p.lab.fail(fmt.Errorf("remove pod %s: %w", p.name, err))
	}
}

func (p *Pod) remove() error {
	errs := []error{removeCgroup(p.cgroup)}
	if p.shared {
		return errors.Join(errs...)
	}
	if p.veth != "" { // at once: the kernel ends the namespace some time later
		link, err := p.node.space.nl.LinkByName(p.veth)
		if err == nil {
			err = p.node.space.nl.LinkDel(link)
		}
		errs = append(errs, err)
	}
	p.lab.spaces = slices.DeleteFunc(p.lab.spaces, func(n *netns) bool { return n == p.space })
	return errors.Join(append(errs, p.space.remove())...)
}

// requestTimeout is the timeout of an exchange if none is set.
const requestTimeout = 5 * time.Second
