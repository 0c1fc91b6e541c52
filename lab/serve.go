// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net/netip"
)

// Server is a process's server in a pod; see the package's doc comment for what
// it answers.
type Server struct {
	pod    *Pod
	handle uint64
	addr   netip.AddrPort
}

type serveArgs struct {
	Network string
	Addr    netip.AddrPort
	Share   bool
}

type serveReply struct {
	Handle uint64
	Addr   netip.AddrPort
}

type handleArgs struct{ Handle uint64 }

// Serve starts a server on all the pod's addresses. The network is in the words
// of package net: tcp and udp serve both families, tcp4, tcp6, udp4 and udp6
// one. Port 0 takes any, see Server.Addr.
func (p *Pod) Serve(network string, port uint16) *Server {
	p.lab.t.Helper()
	return p.serve(serveArgs{Network: network, Addr: anyAddr(network, port)})
}

// ServeShared is Serve beside others that do the same in the same network namespace
// (see Beside), which share what comes in: one process may hold only so many
// connections.
func (p *Pod) ServeShared(network string, port uint16) *Server {
	p.lab.t.Helper()
	return p.serve(serveArgs{Network: network, Addr: anyAddr(network, port), Share: true})
}

// ServeOn starts a server on one address.
func (p *Pod) ServeOn(network string, addr netip.AddrPort) *Server {
	p.lab.t.Helper()
	return p.serve(serveArgs{Network: network, Addr: addr})
}

func (p *Pod) serve(args serveArgs) *Server {
	p.lab.t.Helper()
	s := &Server{pod: p}
	if p.lab.Err() != nil {
		return s
	}
	var reply serveReply
	if err := p.call(context.Background(), "serve", args, &reply); err != nil {
		p.lab.fail(fmt.Errorf("serve %s on %v in pod %s: %w", args.Network, args.Addr, p.name, err))
		return s
	}
	s.handle, s.addr = reply.Handle, reply.Addr
	return s
}

// Addr is what the server is bound to.
func (s *Server) Addr() netip.AddrPort { return s.addr }

// Count is how many requests it has answered. What it had before it was
// stopped stays.
func (s *Server) Count() (n uint64, err error) {
	err = s.pod.call(context.Background(), "serve.count", handleArgs{s.handle}, &n)
	return n, err
}

// Stop closes the server and its connections. The port is free when it returns.
func (s *Server) Stop() error {
	return s.pod.call(context.Background(), "serve.stop", handleArgs{s.handle}, &none{})
}
