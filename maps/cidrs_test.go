// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"testing"

	"shunt/maps"
	"shunt/maps/mapstest"
)

// Programs look for a service CIDR only if map meta counts any. So the count must equal the
// map's at every moment, also for maps that replace others.
func TestServiceCIDRsAreCounted(t *testing.T) {
	k := mapstest.New(t, small)
	for _, c := range []struct {
		what string
		do   func() error
		want uint32
	}{
		{"one", func() error { return k.SetServiceCIDR(prefix("10.96.0.0/12")) }, 1},
		{"again", func() error { return k.SetServiceCIDR(prefix("10.96.0.0/12")) }, 1},
		{"another", func() error { return k.SetServiceCIDR(prefix("fd00:10:96::/112")) }, 2},
		{"what is not there goes", func() error { return k.DeleteServiceCIDR(prefix("10.0.0.0/8")) }, 2},
		{"the first goes", func() error { return k.DeleteServiceCIDR(prefix("10.96.0.0/12")) }, 1},
		{"the last goes", func() error { return k.DeleteServiceCIDR(prefix("fd00:10:96::/112")) }, 0},
	} {
		if err := c.do(); err != nil || k.Meta().ServiceCidrs != c.want {
			t.Errorf("%s: meta says %d, want %d (%v)", c.what, k.Meta().ServiceCidrs, c.want, err)
		}
	}
	root := mapstest.BPFFS(t)
	set, _ := open(t, root, small)
	old, err := maps.NewKernel(set)
	if err != nil {
		t.Fatal(err)
	}
	abi, err := maps.ABI()
	if err != nil {
		t.Fatal(err)
	}
	fill(t, old, abi)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	larger := small
	larger.Services *= 2
	staged, result := open(t, root, larger)
	k, err = maps.NewKernel(staged)
	if err != nil {
		t.Fatal(err)
	}
	if result.Replaces == "" || k.Meta().ServiceCidrs != 1 {
		t.Errorf("%+v: meta of the new maps says %d, want 1", result, k.Meta().ServiceCidrs)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
}
