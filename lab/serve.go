// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net/netip"
)

// Server is a server in a pod. The package's doc comment describes its answers.
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

// Serve starts a server on all the pod's addresses. Networks are named as in package net:
// tcp and udp serve both families, tcp4, tcp6, udp4 and udp6 one. With port 0 the kernel
// chooses, see Server.Addr.
func (p *Pod) Serve(network string, port uint16) *Server {
	p.lab.t.Helper()
	return p.serve(serveArgs{Network: network, Addr: anyAddr(network, port)})
}

// ServeShared is Serve with SO_REUSEPORT: servers in the same network namespace (see
// Beside) share the port and its connections, since one process may hold only a limited
// number.
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

// Addr returns the address that the server is bound to.
func (s *Server) Addr() netip.AddrPort { return s.addr }

// Count returns how many requests the server has answered, also after it was stopped.
func (s *Server) Count() (n uint64, err error) {
	err = s.pod.call(context.Background(), "serve.count", handleArgs{s.handle}, &n)
	return n, err
}

// Stop closes the server and its connections. The port is free when Stop returns.
func (s *Server) Stop() error {
	return s.pod.call(context.Background(), "serve.stop", handleArgs{s.handle}, &none{})
}
