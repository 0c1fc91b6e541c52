package socket_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"shunt/maps"
)

// TestForeignMaps: maps that this binary can't work with are replaced beside the
// ones that serve, under traffic, and the log says why.
func TestForeignMaps(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(service("web", 1, everywhere(1)), slicesOf("web", up(c.web[0], c.web[1])...))
	before := c.d.dump().Text()
	traffic := startTraffic(t, c, 1)
	for _, test := range []struct {
		name  string
		spoil func() error
		why   string
	}{
		{"another ABI", func() error {
			return c.d.kernel(func(k *maps.Kernel) { k.UpdateMeta(func(m *maps.Meta) { m.Abi = 4711 }) })
		}, "they have ABI 4711"},
		{"a map is missing", func() error { return os.Remove(filepath.Join(c.d.root, "maps", maps.NameNames)) }, maps.NameNames},
		{"left half-made", func() error { return os.Mkdir(filepath.Join(c.d.root, "maps-new"), 0o700) }, ""},
	} {
		c.progress()
		c.d.kill()
		if err := test.spoil(); err != nil {
			t.Fatal(err)
		}
		c.d.start()
		said := c.d.log.find("the maps of the daemon before are replaced; they serve until the new ones are filled")
		if why, _ := said["why"].(string); (said != nil) != (test.why != "") || !strings.Contains(why, test.why) {
			t.Errorf("%s: the log says %v", test.name, said)
		}
		if after := c.d.dump().Text(); after != before {
			t.Errorf("%s: the maps held\n%s\nand hold now\n%s", test.name, before, after)
		}
		if _, err := os.Stat(filepath.Join(c.d.root, "maps-new")); !os.IsNotExist(err) {
			t.Errorf("%s: maps-new is left (%v)", test.name, err)
		}
		c.progress()
	}
	wantAnswered(t, traffic, c.web[0], c.web[1])
}

// TestTakenPort: a port that somebody else has costs a node its health checks and
// not its services, and is taken as soon as it is free; unless that is not wanted.
func TestTakenPort(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	taken := c.host.ServeOn("tcp", netip.MustParseAddrPort(healthzAddr))
	c.d = newDaemon(t, c.n1, c.m.path)
	c.d.launch("--bind-address-hard-fail")
	eventually(t, "the daemon ends", func() bool { return !c.d.alive() })
	if code := exitCodeOf(t, c.d.cmd.Wait()); code != 1 || !strings.Contains(c.d.log.String(), "--healthz-bind-address") {
		t.Errorf("exit code %d; it said\n%s", code, c.d.log)
	}
	c.d.launch("--bind-address-hard-fail=false")
	eventually(t, "it is in effect", func() bool { return c.d.log.find("in effect") != nil })
	c.apply(service("web", 1), slicesOf("web", up(c.web[0])...))
	ways[0].wantServers(t, c.client, vip(1, 4), c.web[0])
	if err := taken.Stop(); err != nil {
		t.Fatal(err)
	}
	c.d.waitHealthy()
}
