// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPacketOptions: the programs' constants are the options, and the defaults of config.h for
// options that are not set.
func TestPacketOptions(t *testing.T) {
	p := &packetPrograms{cookie: 7, opts: PacketOptions{
		SNATPorts: SNATPorts{First: 61000, Count: 33512}, FlowSeed: 1 << 40,
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/14"), netip.MustParsePrefix("fd00:10::/57")},
		Timeouts:     Timeouts{TCPEstablished: time.Hour, UDPNew: time.Minute},
	}}
	spec, err := loadTc()
	if err != nil {
		t.Fatal(err)
	}
	before, after := tcTimeouts{}, tcTimeouts{}
	if err := spec.Variables[tcVarConfigTimeouts].Get(&before); err != nil {
		t.Fatal(err)
	}
	if err := p.configure(spec, variant{pod: true}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint64{
		tcVarConfigNetnsCookie: 7, tcVarConfigEthernet: 0, tcVarConfigPodDevice: 1, tcVarConfigFlowSeed: 1 << 40,
		tcVarConfigSnatPortFirst: 61000, tcVarConfigSnatPortCount: 33512, tcVarConfigClusterCidrCount: 2,
	} {
		v, got := spec.Variables[name], uint64(0)
		for i, b := range v.Value {
			got |= uint64(b) << (8 * i)
		}
		if got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
	if err := spec.Variables[tcVarConfigTimeouts].Get(&after); err != nil {
		t.Fatal(err)
	}
	want := before
	want.TcpEstablished, want.UdpNew = uint64(time.Hour), uint64(time.Minute)
	if after != want || before.TcpEstablished != uint64(24*time.Hour) {
		t.Errorf("timeouts %+v, want %+v", after, want)
	}
	cidrs := make([]tcCidr, 4)
	if err := spec.Variables[tcVarConfigClusterCidrs].Get(&cidrs); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"::ffff:10.244.0.0 ffff:ffff:ffff:ffff:ffff:ffff:fffc:0", "fd00:10:: ffff:ffff:ffff:ff80::", ":: ::", ":: ::"} {
		if got := netip.AddrFrom16(cidrs[i].Addr.B).String() + " " + netip.AddrFrom16(cidrs[i].Mask.B).String(); got != want {
			t.Errorf("cluster CIDR %d: %s, want %s", i, got, want)
		}
	}
	for range 3 {
		p.opts.ClusterCIDRs = append(p.opts.ClusterCIDRs, netip.MustParsePrefix("10.0.0.0/8"))
	}
	if err := p.configure(spec, variant{}); err == nil || !strings.Contains(err.Error(), "5 cluster CIDRs") {
		t.Errorf("more than there is room for: %v", err)
	}
}

// TestPacketVariants: the programs of every kind of device load on this kernel.
func TestPacketVariants(t *testing.T) {
	set, _ := openMaps(t, filepath.Join(bpffs(t), "shunt"))
	p, err := newPacketPrograms(set, PacketOptions{SNATPorts: SNATPorts{First: 61000, Count: 4536}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		v := variant{ethernet: i&1 != 0, pod: i&2 != 0}
		l, err := p.get(v)
		if err != nil {
			t.Fatalf("%+v: %v", v, err)
		}
		if again, err := p.get(v); again != l || err != nil {
			t.Errorf("%+v was loaded twice (%v)", v, err)
		}
	}
	if len(p.loaded) != 4 {
		t.Errorf("%d variants", len(p.loaded))
	}
	if err := p.close(); err != nil {
		t.Error(err)
	}
}

// TestFlowSeed: the next daemon has the same seed, another node has a different one, and Detach
// removes it.
func TestFlowSeed(t *testing.T) {
	root, other := bpffs(t), bpffs(t)
	read := func(dir string) uint64 {
		t.Helper()
		seed, err := FlowSeed(dir)
		if err != nil {
			t.Fatal(err)
		}
		return seed
	}
	seed := read(root)
	if seed == 0 || read(root) != seed {
		t.Errorf("seed %d is not kept", seed)
	}
	if read(other) == seed {
		t.Error("two nodes have one seed")
	}
	if err := removeFlowSeed(root); err != nil {
		t.Fatal(err)
	}
	if read(root) == seed {
		t.Error("the seed is still there")
	}
	if _, err := FlowSeed("/proc"); err == nil {
		t.Error("a seed was kept where nothing can be")
	}
}
