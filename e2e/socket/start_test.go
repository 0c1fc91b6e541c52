// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"shunt/e2e/rig"
	"shunt/maps"
)

// TestForeignMaps: maps that this binary cannot use are replaced while the old ones serve,
// under traffic, and the log says why.
func TestForeignMaps(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1, rig.Everywhere(1)), rig.SlicesOf("web", rig.Up(c.web[0], c.web[1])...))
	before := c.d.Dump().Text()
	traffic := startTraffic(t, c, 1)
	for _, test := range []struct {
		name  string
		spoil func() error
		why   string
	}{
		{"another ABI", func() error {
			return c.d.Kernel(func(k *maps.Kernel) { k.UpdateMeta(func(m *maps.DaemonMeta) { m.Abi = 4711 }) })
		}, "they have ABI 4711"},
		{"a map is missing", func() error { return os.Remove(filepath.Join(c.d.Root, "maps", maps.NameNames)) }, maps.NameNames},
		{"left half-made", func() error { return os.Mkdir(filepath.Join(c.d.Root, "maps-new"), 0o700) }, ""},
	} {
		c.progress()
		c.d.Kill()
		if err := test.spoil(); err != nil {
			t.Fatal(err)
		}
		c.d.Start()
		said := c.d.Log.Find("the maps of the daemon before are replaced; they serve until the new ones are filled")
		if why, _ := said["why"].(string); (said != nil) != (test.why != "") || !strings.Contains(why, test.why) {
			t.Errorf("%s: the log says %v", test.name, said)
		}
		if after := c.d.Dump().Text(); after != before {
			t.Errorf("%s: the maps held\n%s\nand hold now\n%s", test.name, before, after)
		}
		if _, err := os.Stat(filepath.Join(c.d.Root, "maps-new")); !os.IsNotExist(err) {
			t.Errorf("%s: maps-new is left (%v)", test.name, err)
		}
		c.progress()
	}
	wantAnswered(t, traffic, c.web[0], c.web[1])
}

// TestTakenPort: a node whose port is in use by another process has no health checks, but
// its services work. The daemon takes the port as soon as it is free, unless a flag makes
// that an error.
func TestTakenPort(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	taken := c.host.ServeOn("tcp", netip.MustParseAddrPort(rig.HealthzAddr))
	c.d = rig.NewDaemon(t, c.n1, c.m.Path)
	c.d.Launch("--bind-address-hard-fail")
	rig.Eventually(t, "the daemon ends", func() bool { return !c.d.Alive() })
	if code := rig.ExitCodeOf(t, c.d.Cmd.Wait()); code != 1 || !strings.Contains(c.d.Log.String(), "--healthz-bind-address") {
		t.Errorf("exit code %d; it said\n%s", code, c.d.Log)
	}
	c.d.Launch("--bind-address-hard-fail=false")
	rig.Eventually(t, "it is in effect", func() bool { return c.d.Log.Find("in effect") != nil })
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...))
	ways[0].wantServers(t, c.client, rig.VIP(1, 4), c.web[0])
	if err := taken.Stop(); err != nil {
		t.Fatal(err)
	}
	c.d.WaitHealthy()
}
