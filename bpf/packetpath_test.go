// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestAttachDevices: devices with and without an Ethernet header and devices of pods get their
// programs, which see the packets of both directions. Detach removes all of them.
func TestAttachDevices(t *testing.T) {
	byBothWays(t, func(n *node) {
		n.real = true
		eth0, peer := n.veth("eth0", "192.0.2.1/24", "2001:db8::1/64")
		vxlan := n.add(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "flannel.1"}, VxlanId: 1, VtepDevIndex: eth0, Port: 8472}, "10.244.0.0/32")
		pod, podPeer := n.veth("veth0")
		n.add(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0"}}, "10.244.0.1/24")
		n.veth("other")
		p := n.path(func(o *PacketPathOptions) { o.PodDevices = DeviceNames{"veth0"} })
		n.want()
		p.Start()
		n.want("eth0", "address", "flannel.1", "tunnel", "veth0", "pod")
		for _, index := range []int{eth0, peer, vxlan, pod, podPeer} { // what a peer sends arrives at the other end
			n.wantRun(index, frame)
		}
		for index, want := range map[int]string{eth0: "192.0.2.1 2001:db8::1", vxlan: "10.244.0.0 2001:db8::1", pod: "192.0.2.1 2001:db8::1", peer: ""} {
			if got := n.sourceAddrsOf(index); got != want {
				n.Errorf("device %d: source %q, want %q", index, got, want)
			}
		}
		if status, err := DeviceAttachments(n.root, n.maps); err != nil || len(status) != 6 || status[0].Device != "eth0" ||
			status[0].Direction != "ingress" || status[0].Why != WhyAddress || status[0].By != n.by() || status[0].Program == 0 || status[0].Problem != "" {
			n.Errorf("status: %+v, %v", status, err)
		}
		n.must(Detach(n.root))
		n.want()
		if qdiscs := n.qdiscs(eth0); len(qdiscs) != 0 {
			n.Errorf("left: %v", qdiscs)
		}
		if entries, err := filepath.Glob(filepath.Join(n.root, "*")); err != nil || len(entries) != 1 { // that of maps
			n.Errorf("left: %v, %v", entries, err)
		}
	})
}

// qdiscs returns the kinds of a device's qdiscs at ingress and egress.
func (n *node) qdiscs(index int) (kinds []string) {
	n.Helper()
	all, err := netlink.QdiscList(linkOf(index))
	n.must(err)
	for _, q := range all {
		if q.Attrs().Parent == netlink.HANDLE_CLSACT {
			kinds = append(kinds, q.Type())
		}
	}
	return kinds
}

// TestAttachNoEthernet attaches to a device whose packets begin with the IP header.
func TestAttachNoEthernet(t *testing.T) {
	byBothWays(t, func(n *node) {
		tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			n.Skipf("the kernel has no tun devices: %v", err)
		}
		defer tun.Close()
		req, err := unix.NewIfreq("tun0")
		n.must(err)
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		n.must(unix.IoctlIfreq(int(tun.Fd()), unix.TUNSETIFF, req))
		link, err := netlink.LinkByName("tun0")
		n.must(err)
		n.must(netlink.LinkSetUp(link))
		p := n.path()
		p.Start()
		n.want("tun0", "tunnel")
		n.wantRun(link.Attrs().Index, frame[14:])
		before := n.runs()
		_, err = tun.Write(frame[14:])
		n.must(err)
		n.eventually("what comes in goes through a program", func() bool { return n.runs() > before })
		if p.programs.loaded[variant{}] == nil || p.programs.loaded[variant{}].by[ingress].id == p.programs.loaded[variant{ethernet: true}].by[ingress].id {
			n.Error("it has no programs of its own")
		}
		if got := n.sourceAddrsOf(link.Attrs().Index); got != "- -" {
			n.Errorf("source %q with no address on the node", got)
		}
	})
}

// TestAttachRestart: a newer daemon replaces the programs in place. It detaches from devices
// that its rule does not choose, and updates why a device is chosen.
func TestAttachRestart(t *testing.T) {
	byBothWays(t, func(n *node) {
		eth0, _ := n.veth("eth0", "192.0.2.1/24")
		n.veth("eth1", "198.51.100.1/24")
		n.path().Start()
		n.want("eth0", "address", "eth1", "address")
		before := n.found(point{eth0, ingress})
		id := n.id(before)
		p := n.path(func(o *PacketPathOptions) { o.Devices = DeviceNames{"eth0", "eth7"} })
		p.Start()
		n.want("eth0", "asked")
		after := n.found(point{eth0, ingress})
		if after.program == before.program || after.program != p.programs.loaded[variant{ethernet: true}].by[ingress].id {
			n.Errorf("program %d before, %d after", before.program, after.program)
		}
		if n.id(after) != id {
			n.Errorf("another attachment than before: %v, %v", id, n.id(after))
		}
		n.must(p.Close())
		n.want("eth0", "asked") // the attachments outlive the daemon
		n.wantRun(eth0, frame)
	})
}

func (n *node) found(at point) attachment {
	n.Helper()
	found, err := listAll(waysBelow(n.root, n.noTCX))
	n.must(err)
	for w := range found {
		if a := found.at(w, at); a != nil {
			return *a
		}
	}
	n.Fatalf("nothing is attached at %+v", at)
	return attachment{}
}

// id returns a value that stays the same when a program is replaced in place, and changes when
// one is attached anew behind another.
func (n *node) id(a attachment) any {
	n.Helper()
	if f, ok := a.handle.(netlink.Filter); ok {
		return f.Attrs().Priority
	}
	return n.linkID(a)
}

// TestAttachOther: after a daemon that attached by the other method, only this daemon's
// programs are attached.
func TestAttachOther(t *testing.T) {
	byBothWays(t, func(n *node) {
		if haveTCX() != nil {
			n.Skip("this kernel has one way only")
		}
		eth0, _ := n.veth("eth0", "192.0.2.1/24")
		n.noTCX = !n.noTCX
		n.path().Start()
		n.want("eth0", "address")
		n.noTCX = !n.noTCX
		n.path().Start()
		n.want("eth0", "address")
		n.wantRun(eth0, frame)
	})
}

// TestSetNodeAddrsDoesNotWait: the reconcile loop calls SetNodeAddrs, and a scan of the devices
// may take long.
func TestSetNodeAddrsDoesNotWait(t *testing.T) {
	p := &PacketPath{poke: make(chan struct{}, 1)}
	p.mu.Lock() // a scan is under way
	defer p.mu.Unlock()
	done := make(chan struct{})
	go func() {
		p.SetNodeAddrs([]netip.Addr{netip.MustParseAddr("192.0.2.1")})
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("it waits for the pass")
	}
	if len(p.nodeAddrs()) != 1 || len(p.poke) != 1 {
		t.Errorf("%v, %d pokes", p.nodeAddrs(), len(p.poke))
	}
}
