// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// linkID returns the kernel's id of a pinned link.
func (n *node) linkID(a attachment) link.ID {
	n.Helper()
	l, err := link.LoadPinnedLink(a.handle.(string), nil)
	n.must(err)
	defer l.Close()
	info, err := l.Info()
	n.must(err)
	return info.ID
}

// TestForeignTCX: foreign TCX programs stay attached. shunt's are the first at ingress and the
// last at egress.
func TestForeignTCX(t *testing.T) {
	if err := haveTCX(); err != nil {
		t.Skipf("this kernel has no TCX: %v", err)
	}
	n := newNode(t, false)
	eth0, _ := n.veth("eth0", "192.0.2.1/24")
	foreign := n.foreign()
	for dir := range direction(directions) {
		l, err := link.AttachTCX(link.TCXOptions{Interface: eth0, Program: foreign, Attach: dir.attachType()})
		n.must(err)
		defer l.Close()
	}
	theirs, err := newLoadedProgram(foreign)
	n.must(err)
	check := func(ours [directions]ebpf.ProgramID) {
		n.Helper()
		for dir := range direction(directions) {
			want := []ebpf.ProgramID{ours[dir], theirs.id}
			if dir == egress {
				slices.Reverse(want)
			}
			want = slices.DeleteFunc(want, func(id ebpf.ProgramID) bool { return id == 0 })
			if got := n.programs(eth0, dir); !slices.Equal(got, want) {
				n.Errorf("%s: programs %v, want %v", dir, got, want)
			}
		}
	}
	for range 2 {
		p := n.path()
		p.Start()
		l := p.programs.loaded[variant{ethernet: true}]
		check([directions]ebpf.ProgramID{l.by[ingress].id, l.by[egress].id})
	}
	n.must(Detach(n.root))
	check([directions]ebpf.ProgramID{})
}

func (n *node) programs(index int, dir direction) (ids []ebpf.ProgramID) {
	n.Helper()
	all, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: dir.attachType()})
	n.must(err)
	for _, p := range all.Programs {
		ids = append(ids, p.ID)
	}
	return ids
}

// TestForeignClsact: foreign filters and their qdisc stay, whatever their priority. shunt's
// filters are the first at ingress and the last at egress.
func TestForeignClsact(t *testing.T) {
	for _, c := range []struct {
		what   string
		filter func(base netlink.FilterAttrs, prog *ebpf.Program) netlink.Filter
	}{
		{"with a priority of the kernel's choice", func(base netlink.FilterAttrs, prog *ebpf.Program) netlink.Filter {
			return &netlink.BpfFilter{FilterAttrs: base, Fd: prog.FD(), Name: "foreign", DirectAction: true}
		}},
		{"with our priority", func(base netlink.FilterAttrs, prog *ebpf.Program) netlink.Filter {
			base.Priority, base.Handle = priorityOf(base), 1
			return &netlink.BpfFilter{FilterAttrs: base, Fd: prog.FD(), Name: "foreign", DirectAction: true}
		}},
		{"with our priority and handle", func(base netlink.FilterAttrs, prog *ebpf.Program) netlink.Filter {
			base.Priority, base.Handle = priorityOf(base), filterHandle
			return &netlink.BpfFilter{FilterAttrs: base, Fd: prog.FD(), Name: "foreign", DirectAction: true}
		}},
		{"of another protocol with our priority", func(base netlink.FilterAttrs, prog *ebpf.Program) netlink.Filter {
			base.Priority, base.Protocol = priorityOf(base), unix.ETH_P_IP
			return &netlink.BpfFilter{FilterAttrs: base, Fd: prog.FD(), Name: "foreign", DirectAction: true}
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			n := newNode(t, true)
			eth0, _ := n.veth("eth0", "192.0.2.1/24")
			n.must(netlink.QdiscAdd(clsactOf(eth0)))
			foreign := n.foreign()
			for dir := range direction(directions) {
				base := netlink.FilterAttrs{LinkIndex: eth0, Parent: filterParent[dir], Protocol: unix.ETH_P_ALL}
				n.must(netlink.FilterAdd(c.filter(base, foreign)))
			}
			for range 2 {
				n.path().Start()
				n.want("eth0", "address")
				n.checkFilters(eth0, 2)
				n.wantRun(eth0, frame)
			}
			n.must(Detach(n.root))
			n.want()
			n.checkFilters(eth0, 1)
			if q := n.qdiscs(eth0); !slices.Equal(q, []string{"clsact"}) {
				n.Errorf("qdiscs: %v", q)
			}
		})
	}
}

func priorityOf(base netlink.FilterAttrs) uint16 {
	if base.Parent == filterParent[egress] {
		return filterPriority[egress]
	}
	return filterPriority[ingress]
}

// checkFilters checks that there are so many filters in each direction, among them the foreign
// one.
func (n *node) checkFilters(index, count int) {
	n.Helper()
	for dir := range direction(directions) {
		filters, err := listFilters(index, dir)
		n.must(err)
		foreign := slices.ContainsFunc(filters, func(f netlink.Filter) bool {
			b, ok := f.(*netlink.BpfFilter)
			return ok && b.Name == "foreign"
		})
		if len(filters) != count || !foreign {
			n.Errorf("%s: %d filters, want %d; the foreign one is there: %t", dir, len(filters), count, foreign)
		}
	}
}

// TestForeignIngress: where a foreign qdisc has no room for shunt's filters, that is logged
// once, with the remedy. The qdisc stays as it is, and other devices are served.
func TestForeignIngress(t *testing.T) {
	n := newNode(t, true)
	eth0, _ := n.veth("eth0", "192.0.2.1/24")
	n.veth("eth1", "198.51.100.1/24")
	n.must(netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: eth0,
		Parent: netlink.HANDLE_INGRESS, Handle: netlink.MakeHandle(0xffff, 0)}}))
	failures := 0
	p := n.path(func(o *PacketPathOptions) { o.Failed = func() { failures++ } })
	for range 2 {
		p.Start()
	}
	n.want("eth1", "address")
	warnings := n.log.FilterField(zap.String("device", "eth0")).All()
	if len(warnings) != 1 || !strings.Contains(warnings[0].ContextMap()["problem"].(string), "tc qdisc del") || failures != 2 {
		n.Errorf("%d failures, log: %v", failures, n.logged())
	}
	status, err := DeviceAttachments(n.root, n.maps)
	if err != nil || len(status) != 4 || status[0].Device != "eth0" || status[0].By != "" || status[0].Problem == "" {
		n.Errorf("status: %+v, %v", status, err)
	}
	if q := n.qdiscs(eth0); !slices.Equal(q, []string{"ingress"}) {
		n.Errorf("qdiscs: %v", q)
	}
	n.must(netlink.QdiscDel(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: eth0, Parent: netlink.HANDLE_INGRESS}}))
	if !p.sync() {
		n.Errorf("it still fails: %v", n.logged())
	}
	n.want("eth0", "address", "eth1", "address")
}

// TestRemovedByOthers: what somebody else removes is restored and logged.
func TestRemovedByOthers(t *testing.T) {
	byBothWays(t, func(n *node) {
		eth0, _ := n.veth("eth0", "192.0.2.1/24")
		p := n.path()
		p.Start()
		a := n.found(point{eth0, egress})
		if f, ok := a.handle.(netlink.Filter); ok {
			n.must(netlink.FilterDel(f))
		} else {
			l, err := link.LoadPinnedLink(a.handle.(string), nil)
			n.must(err)
			n.must(errors.Join(l.Detach(), l.Close()))
		}
		status, err := DeviceAttachments(n.root, n.maps)
		if err != nil || !slices.ContainsFunc(status, func(a DeviceAttachment) bool { return a.Direction == "egress" && a.Problem != "" }) {
			n.Errorf("status: %+v, %v", status, err)
		}
		p.Start()
		n.want("eth0", "address")
		n.wantRun(eth0, frame)
		if n.noTCX { // the kernel sends notices about filters
			n.run(p)
			for range 3 {
				p.takeLost()
				n.must(netlink.QdiscDel(clsactOf(eth0)))
				n.follows("eth0", "address")
				// No look has seen that it was lost.
				n.eventually("both are noted as lost", func() bool {
					lost := p.takeLost()
					return strings.Contains(lost[ingress], "eth0") && strings.Contains(lost[egress], "eth0")
				})
			}
		}
	})
}

// TestProgramReplacedByOthers: a look and status report a foreign program in place of shunt's,
// and a scan restores shunt's.
func TestProgramReplacedByOthers(t *testing.T) {
	byBothWays(t, func(n *node) {
		eth0, _ := n.veth("eth0", "192.0.2.1/24")
		p := n.path()
		p.Start()
		if wrong := p.look(); wrong != [directions]string{} {
			n.Errorf("at first: %q", wrong)
		}
		a, foreign := n.found(point{eth0, ingress}), n.foreign()
		if f, ok := a.handle.(*netlink.BpfFilter); ok {
			f.Fd = foreign.FD()
			n.must(netlink.FilterReplace(f))
		} else {
			l, err := link.LoadPinnedLink(a.handle.(string), nil)
			n.must(err)
			n.must(errors.Join(l.Update(foreign), l.Close()))
		}
		if wrong := p.look(); !strings.Contains(wrong[ingress], "eth0") || wrong[egress] != "" {
			n.Errorf("a look: %q", wrong)
		}
		status, err := DeviceAttachments(n.root, n.maps)
		if err != nil || !slices.ContainsFunc(status, func(a DeviceAttachment) bool {
			return a.Direction == "ingress" && a.By == "" && strings.Contains(a.Problem, "foreign")
		}) {
			n.Errorf("status: %+v, %v", status, err)
		}
		p.sync()
		if wrong := p.look(); wrong != [directions]string{} {
			n.Errorf("after a scan: %q", wrong)
		}
		if lost := p.takeLost(); !strings.Contains(lost[ingress], "eth0") || lost[egress] != "" {
			n.Errorf("it was put right: %q", lost)
		}
		p.sync()
		if lost := p.takeLost(); lost != [directions]string{} {
			n.Errorf("a scan without a loss has put right: %q", lost)
		}
		n.wantRun(eth0, frame)
	})
}
