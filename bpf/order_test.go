// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/link"
)

// recording is a way that records the order of its changes. It refuses to attach at refuses.
type recording struct {
	way
	did     *[]string
	refuses *direction
}

func (r *recording) attach(at point, why Why, prog loadedProgram, old *attachment) error {
	if r.refuses != nil && at.dir == *r.refuses {
		return errors.New("refused")
	}
	if old == nil || old.program != prog.id {
		*r.did = append(*r.did, "attach "+at.dir.String())
	}
	return r.way.attach(at, why, prog, old)
}

func (r *recording) remove(a attachment) error {
	*r.did = append(*r.did, "remove "+a.dir.String())
	return r.way.remove(a)
}

// record makes a packet path record its changes, and returns a function that returns and forgets
// them.
func record(p *PacketPath, refuses *direction) func() string {
	var did []string
	p.ways[0] = &recording{p.ways[0], &did, refuses}
	return func() string {
		defer func() { did = nil }()
		return strings.Join(did, ", ")
	}
}

// TestHalves: no moment has a packet translated on its way in whose answer is not translated back.
// The answer may leave by another device. So egress programs are attached to all devices before
// any ingress program, also by a newer daemon, and detached after all of them.
func TestHalves(t *testing.T) {
	byBothWays(t, func(n *node) {
		n.veth("eth0", "192.0.2.1/24")
		n.veth("eth1", "198.51.100.1/24")
		attach := "attach egress, attach egress, attach ingress, attach ingress"
		for _, who := range []string{"the first daemon", "a newer daemon"} {
			p := n.path()
			did := record(p, nil)
			p.Start()
			if got := did(); got != attach {
				n.Errorf("%s: %s, want %s", who, got, attach)
			}
		}
		p := n.path(func(o *PacketPathOptions) { o.Devices = DeviceNames{"none"} })
		did := record(p, nil)
		p.Start()
		if got, want := did(), "remove ingress, remove ingress, remove egress, remove egress"; got != want {
			n.Errorf("other flags: %s, want %s", got, want)
		}
	})
}

// TestHalfFails: a device whose egress program can't be attached gets no ingress program.
func TestHalfFails(t *testing.T) {
	byBothWays(t, func(n *node) {
		n.veth("eth0", "192.0.2.1/24")
		p := n.path()
		dir := egress
		record(p, &dir)
		p.Start()
		n.want()
		dir = directions // none
		p.Start()
		n.want("eth0", "address")
	})
}

// TestDetachOrder: Detach, too, leaves no ingress program without egress programs, whichever
// device appeared first.
func TestDetachOrder(t *testing.T) {
	left := Left{links: []link.ID{1, 2, 3, 4, 5}, ingress: map[link.ID]bool{2: true, 4: true}}
	if got, want := left.linksOf(ingress), []link.ID{4, 2}; !slices.Equal(got, want) {
		t.Errorf("first are detached %v, want %v", got, want)
	}
	if got, want := left.linksOf(egress), []link.ID{5, 3, 1}; !slices.Equal(got, want) {
		t.Errorf("then are detached %v, want %v", got, want)
	}
}

// TestFindLeftIngress: the links of ingress programs are known among those of a daemon.
func TestFindLeftIngress(t *testing.T) {
	if err := haveTCX(); err != nil {
		t.Skipf("this kernel has no TCX: %v", err)
	}
	n := newNode(t, false)
	n.veth("eth0", "192.0.2.1/24")
	n.path().Start()
	left, err := FindLeft(n.root)
	n.must(err)
	if len(left.linksOf(ingress)) != 1 || len(left.linksOf(egress)) != 1 {
		n.Errorf("ingress %v, egress %v of one device", left.linksOf(ingress), left.linksOf(egress))
	}
}
