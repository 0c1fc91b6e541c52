// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

// question makes an exchange on a connected socket, and returns the server that answered.
func question(s *lab.Socket, timeout time.Duration) (string, error) {
	if err := s.Send([]byte("again\n")); err != nil {
		return "", err
	}
	data, _, err := s.Recv(timeout)
	if err != nil {
		return "", err
	}
	var token, server string
	if _, err := fmt.Sscan(string(data), &token, &server); err != nil || token != "again" {
		return "", fmt.Errorf("%q is no answer", data)
	}
	return server, nil
}

// connected opens a socket that is connected to a service, and returns it with the server
// that answers.
func connected(t *testing.T, from *lab.Pod, c *cluster, network string, n, family int) (*lab.Socket, string) {
	t.Helper()
	s := from.Socket(network + []string{"4", "6"}[family])
	t.Cleanup(func() { _ = s.Close() })
	if err := s.Connect(c.nodePortAt(n, family)); err != nil {
		t.Fatal(err)
	}
	server, err := question(s, 5*time.Second)
	if err != nil {
		t.Fatalf("%s/%s: %v", network, families[family], err)
	}
	return s, server
}

// TestFlowsKeepTheirBackend: TCP connections keep their backend until they end, UDP flows
// while the endpoint serves. New connections follow every change.
func TestFlowsKeepTheirBackend(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.near, c.far)...))
	type flow struct {
		*lab.Socket
		name, network, server string
	}
	var flows []flow
	eachWay(func(network string, family int) {
		for range 6 {
			s, server := connected(t, c.outside, c, network, 1, family)
			flows = append(flows, flow{s, network + "/" + families[family], network, server})
		}
	})
	steps := []struct {
		name      string
		endpoints []rig.Endpoint
		serving   []*lab.Pod
	}{
		{"one ends, and serves until then", []rig.Endpoint{rig.Draining(c.near), rig.Up(c.far)[0]}, []*lab.Pod{c.near, c.far}},
		{"it is gone", rig.Up(c.far), []*lab.Pod{c.far}},
		{"both again", rig.Up(c.near, c.far), []*lab.Pod{c.near, c.far}},
		{"the other is gone", rig.Up(c.near), []*lab.Pod{c.near}},
	}
	for _, step := range steps {
		c.apply(rig.SlicesOf("web", step.endpoints...))
		for i := range flows {
			f := &flows[i]
			got, err := question(f.Socket, 5*time.Second)
			if err != nil {
				t.Fatalf("%s: %s: %v", step.name, f.name, err)
			}
			moves := f.network == "udp" && !has(step.serving, f.server)
			if !moves && got != f.server || moves && !has(step.serving, got) {
				t.Errorf("%s: %s is answered by %s, before it was %s", step.name, f.name, got, f.server)
			}
			f.server = got
		}
	}
	eachWay(func(network string, family int) {
		for range 6 {
			wantAnswer(t, c.outside, network, c.nodePortAt(1, family), c.near, c.outside.Addrs()[family])
		}
	})
}

func has(pods []*lab.Pod, name string) bool {
	for _, p := range pods {
		if p.Name() == name {
			return true
		}
	}
	return false
}

// TestZeroAndBack: a UDP client with one socket is refused while there is no endpoint and
// served afterwards, also by another endpoint. So is each new connection of TCP clients.
func TestZeroAndBack(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.near)...))
	sockets := []*lab.Socket{}
	for family := range families {
		s, _ := connected(t, c.outside, c, "udp", 1, family)
		sockets = append(sockets, s)
	}
	for round := range 4 {
		c.apply(rig.SlicesOf("web"))
		for family, s := range sockets {
			if _, err := question(s, 5*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatalf("round %d, %s: with nobody there: %v, want to be refused", round, families[family], err)
			}
			wantRefused(t, c.outside, "tcp", c.nodePortAt(1, family))
		}
		now := []*lab.Pod{c.far, c.near}[round%2]
		c.apply(rig.SlicesOf("web", rig.Up(now)...))
		for family, s := range sockets {
			if got, err := question(s, 5*time.Second); err != nil || got != now.Name() {
				t.Fatalf("round %d, %s: %q answers (%v), want %s", round, families[family], got, err, now.Name())
			}
			if a := ask(c.outside, "tcp", c.nodePortAt(1, family), 0); a.Err != nil || a.Server != now.Name() {
				t.Errorf("round %d, %s: %q answers (%v), want %s", round, families[family], a.Server, a.Err, now.Name())
			}
		}
	}
}

// TestServiceComesAndGoes: a client that asked an address before it had a service, and one
// that asks after the service is gone, get what is in effect then.
func TestServiceComesAndGoes(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	dst := c.nodePortAt(1, 0)
	s := c.outside.Socket("udp4")
	if err := s.Connect(dst); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		if _, err := question(s, 5*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("round %d, without a service: %v, want to be refused", round, err)
		}
		c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.near)...))
		if got, err := question(s, 5*time.Second); err != nil || got != c.near.Name() {
			t.Fatalf("round %d: %q answers (%v), want %s", round, got, err, c.near.Name())
		}
		c.remove("web")
	}
}
