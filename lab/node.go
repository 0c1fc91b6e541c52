// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Node is a network namespace that forwards, with pods behind it.
type Node struct {
	lab    *Lab
	name   string
	number int
	space  *netns
	cgroup string
	bpffs  string
	pods   int // made so far
}

// Node adds a node and routes from all others to its pods. Names are unique in the lab, and
// short: they become part of a file name.
func (l *Lab) Node(name string) *Node {
	l.t.Helper()
	l.mu.Lock()
	n := &Node{lab: l, name: name, number: len(l.nodes) + 1, cgroup: filepath.Join(l.state.cgroup, name)}
	err := l.Err()
	if err == nil {
		if err = n.create(); err != nil {
			err = fmt.Errorf("make node %s: %w", name, err)
		} else {
			l.nodes = append(l.nodes, n)
		}
	}
	l.mu.Unlock()
	if err != nil {
		l.fail(err)
	}
	return n
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/ ") {
		return fmt.Errorf("%q is no name: it becomes part of a file name", name)
	}
	return nil
}

func (n *Node) create() error {
	if err := checkName(n.name); err != nil {
		return err
	}
	if n.number > maxNodes {
		return fmt.Errorf("a lab has room for %d nodes", maxNodes)
	}
	if err := makeCgroup(n.cgroup); err != nil {
		return err
	}
	var err error
	if n.space, err = n.lab.newSpace(n.name, routerSysctls); err != nil {
		return err
	}
	if err := n.lab.plug(n.space, n.number); err != nil {
		return err
	}
	gateway := onWire(wireHost)
	if err := anywhere.each(func(dst netip.Prefix) error {
		return n.space.route(dst, gateway.of(dst), "eth0")
	}); err != nil {
		return err
	}
	if err := n.makePodNet(); err != nil {
		return err
	}
	return n.space.settle("eth0", n.Addr6())
}

// makePodNet makes the network of the node's pods, and routes between them and the pods of
// existing nodes.
func (n *Node) makePodNet() error {
	lead := (*Node).routePods
	if n.lab.network.VXLAN {
		lead = (*Node).tunnelTo
		if err := n.makeTunnels(); err != nil {
			return err
		}
	}
	for _, other := range n.lab.nodes {
		if err := errors.Join(lead(n, other), lead(other, n)); err != nil {
			return err
		}
	}
	if n.lab.network.Bridge {
		return n.makeBridge()
	}
	return nil
}

// routePods routes traffic for the other node's pods to that node.
func (n *Node) routePods(other *Node) error {
	via := onWire(other.number)
	return podCIDR(other.number).each(func(dst netip.Prefix) error {
		return n.space.route(dst, via.of(dst), "eth0")
	})
}

// of returns the address of the pair in the prefix's family.
func (p pair) of(family netip.Prefix) netip.Addr {
	if family.Addr().Is4() {
		return p.v4.Addr()
	}
	return p.v6.Addr()
}

// Name returns the name that Lab.Node got.
func (n *Node) Name() string { return n.name }

// Addr4 returns the node's IPv4 address on the wire.
func (n *Node) Addr4() netip.Addr { return onWire(n.number).v4.Addr() }

// Addr6 returns the node's IPv6 address on the wire.
func (n *Node) Addr6() netip.Addr { return onWire(n.number).v6.Addr() }

// PodCIDRs returns the ranges of the node's pods, IPv4 first.
func (n *Node) PodCIDRs() []netip.Prefix {
	c := podCIDR(n.number)
	return []netip.Prefix{c.v4, c.v6}
}

// Cgroup returns the node's cgroup directory. Its pods' cgroups are below it.
func (n *Node) Cgroup() string { return n.cgroup }

// NetnsPath returns the file of the node's network namespace. `nsenter --net=` takes it,
// and `ip netns exec` its last element (which hides cgroup and bpf file systems, though).
func (n *Node) NetnsPath() string { return n.space.path() }

// Do runs fn on a thread in the node's network namespace, in this process and its cgroup.
// fn must not start goroutines that depend on the namespace.
func (n *Node) Do(fn func() error) error {
	if err := n.lab.Err(); err != nil {
		return err
	}
	return n.space.do(fn)
}

// DialContext connects from the node's network namespace, but in this process and so outside
// the node's cgroup: the connect() runs no socket hook of the node. The address must be an IP
// address and a port. The signature is that of http.Transport.DialContext.
func (n *Node) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return dial(ctx, n.Do, network, address)
}

func dial(ctx context.Context, do func(func() error) error, network, address string) (conn net.Conn, err error) {
	// A name would be resolved on another thread, in another namespace.
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	err = do(func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// BPFFS returns a bpf file system of the node, mounted by the first call and unmounted with
// the lab. Objects pinned there are lost then.
func (n *Node) BPFFS() string {
	n.lab.t.Helper()
	n.lab.mu.Lock()
	err := n.mountBPFFS()
	n.lab.mu.Unlock()
	if err != nil {
		n.lab.fail(fmt.Errorf("mount a bpf file system for node %s: %w", n.name, err))
	}
	return n.bpffs
}

func (n *Node) mountBPFFS() error {
	if n.bpffs != "" || n.lab.Err() != nil {
		return nil
	}
	if err := n.lab.ctx.Err(); err != nil {
		return fmt.Errorf("the lab is closed: %w", err)
	}
	dir := filepath.Join(n.lab.state.dir, "bpf", n.name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return err
	}
	n.bpffs = dir
	return nil
}
