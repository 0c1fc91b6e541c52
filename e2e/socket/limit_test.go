// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"shunt/e2e/rig"
	"shunt/maps"
)

// TestFullMap fills each map that a user's objects can fill. The log's error names the map,
// its size and its flag. What was programmed before works. When there is room again, the
// rest is programmed without further action. A restart meanwhile changes nothing. The size is
// such that one Service's share of a map, a sixteenth, holds the four entries of "first".
func TestFullMap(t *testing.T) {
	t.Parallel()
	const size, many = 128, 40
	for _, test := range []struct {
		flag, name string
	}{
		{maps.FlagServices, maps.NameServices},
		{maps.FlagSlots, maps.NameSlots},
		{maps.FlagBackends, maps.NameBackends},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, test.flag, fmt.Sprint(size))
			c.apply(rig.Service("first", 1), rig.SlicesOf("first", rig.Up(c.web[0])...))
			for i := 2; i <= many; i++ {
				name := fmt.Sprintf("more-%d", i)
				// Every kind of frontend, unless the map of the services' names is to be
				// filled: otherwise that one would be full first.
				options := []func(*corev1.Service){rig.Everywhere(i)}
				if test.name != maps.NameServices {
					options = nil
				}
				c.m.Put(rig.Service(name, i, options...), rig.SlicesOf(name, rig.Up(c.web[1])...))
			}
			c.m.Write()
			rig.Eventually(t, "it is said that the map is full", func() bool {
				return strings.Contains(c.d.Log.String(), "is full") && c.d.Metrics()["shunt_services_failing"] > 0
			})
			checkFull(t, c, test.name, test.flag, size)
			c.d.Kill()
			checkProblems(t, c, test.flag)
			c.d.Start()
			checkFull(t, c, test.name, test.flag, size)
			var all []string
			for i := 2; i < many; i++ {
				all = append(all, fmt.Sprintf("more-%d", i))
			}
			c.remove(all...)
			rig.Eventually(t, "the rest is programmed", func() bool {
				dump := c.d.Dump()
				for _, family := range []int{4, 6} {
					for _, protocol := range []uint8{6, 17} {
						if len(rig.BackendsOf(dump, rig.VIP(many, family), protocol)) != 1 {
							return false
						}
					}
				}
				return true
			})
			for _, w := range ways {
				w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[0])
				w.wantServers(t, c.client, rig.VIP(many, w.family), c.web[1])
			}
			rig.Eventually(t, "health has nothing to say any more", func() bool {
				h, err := c.d.Healthz()
				return err == nil && len(h.Warnings) == 0
			})
			if s := statusOf(c.d, 0); s.Problems.Total != 0 || len(s.Problems.List) != 0 {
				t.Errorf("status has problems: %+v", s.Problems)
			}
		})
	}
}

// checkProblems checks the Services without room, with the daemon dead: status and services
// have a line with the error of each.
func checkProblems(t *testing.T, c *cluster, flag string) {
	t.Helper()
	problems := statusOf(c.d, 3).Problems
	if problems.Total == 0 || len(problems.List) == 0 {
		t.Fatalf("status has %d problems of %d", len(problems.List), problems.Total)
	}
	status, _, _ := rig.Shunt(t, "status", "--bpffs-root", c.d.Root)
	services, _, _ := rig.Shunt(t, "services", "--bpffs-root", c.d.Root)
	for i, p := range problems.List {
		name, problem := p.Namespace+"/"+p.Service, "no_room: "
		if p.Kind != "no_room" || !strings.Contains(p.Error, "with a larger "+flag) ||
			!strings.HasPrefix(p.Service, "more-") && p.Service != "zzz" { // the rig's own Service is the last one
			t.Errorf("a problem that is not asked for: %+v", p)
		}
		if i < 3 && !strings.Contains(status, name) {
			t.Errorf("status does not name %s:\n%s", name, status)
		}
		if !slices.ContainsFunc(strings.Split(services, "\n"), func(line string) bool {
			return strings.Contains(line, name) && strings.Contains(line, problem)
		}) {
			t.Errorf("services does not name %s:\n%s", name, services)
		}
	}
}

func checkFull(t *testing.T, c *cluster, name, flag string, size int) {
	t.Helper()
	full := fmt.Sprintf("map %s is full: it has room for %d entries; start shunt run with a larger %s", name, size, flag)
	h, err := c.d.Healthz()
	if err != nil || h.Code != http.StatusOK {
		t.Errorf("healthz: %d (%v), want 200: what is programmed works", h.Code, err)
	}
	warnings := strings.Join(h.Warnings, "; ")
	if !strings.Contains(warnings, "Services could not be brought into the maps") || strings.Contains(warnings, "more-") {
		t.Errorf("healthz warns %q, want a count of Services without their names", h.Warnings)
	}
	for _, path := range []string{"/healthz", "/livez"} {
		if code, body, err := c.d.Get(rig.HealthzAddr, path); err != nil || code != http.StatusOK {
			t.Errorf("%s: %d %s (%v)", path, code, body, err)
		}
	}
	if !strings.Contains(c.d.Log.String(), full) {
		t.Errorf("the log does not say %q:\n%s", full, c.d.Log.Tail(10))
	}
	for _, w := range ways {
		w.wantServers(t, c.client, rig.VIP(1, w.family), c.web[0])
	}
	if m := c.d.Metrics(); m["shunt_services_failing"] == 0 {
		t.Error("metrics: no services failing")
	}
	if m := c.d.Metrics(); m[`shunt_service_problems{kind="no_room"}`] == 0 || m[`shunt_service_problems{kind="conflict"}`] != 0 {
		t.Errorf("metrics: problems %v without room, %v conflicts",
			m[`shunt_service_problems{kind="no_room"}`], m[`shunt_service_problems{kind="conflict"}`])
	}
	s := statusOf(c.d, 0)
	for _, m := range s.Maps {
		if m.Map == name && m.Used*10 < m.Size*8 {
			t.Errorf("status has map %s filled with %d of %d", m.Map, m.Used, m.Size)
		}
	}
	// Slots and ids that are held back become free after a moment. For the rest there is no
	// room, and nothing to wait for.
	rig.Eventually(t, "status has no changes pending", func() bool { return statusOf(c.d, 0).Daemon.Pending == 0 })
}

// TestFullAffinity: with more clients than entries, the least recently seen clients are
// evicted, and every connection works.
func TestFullAffinity(t *testing.T) {
	t.Parallel()
	const size, many = 16, 60
	c := startCluster(t, maps.FlagAffinity, fmt.Sprint(size))
	for i := 1; i <= many; i++ {
		name := fmt.Sprintf("sticky-%d", i)
		c.m.Put(rig.Service(name, i, rig.WithAffinity(3600)), rig.SlicesOf(name, rig.Up(c.web...)...))
	}
	c.apply()
	for i := 1; i <= many; i++ {
		for _, w := range []way{ways[0], ways[7]} {
			if a := w.ask(c.client, rig.VIP(i, w.family)); a.Err != nil {
				t.Fatalf("%s: %v", w, a.Err)
			}
		}
	}
	ways[0].stuck(t, c.client, rig.VIP(many, 4))
	for _, m := range statusOf(c.d, 0).Maps {
		if m.Map == maps.NameAffinity && (m.Used == 0 || m.Used > m.Size) {
			t.Errorf("status: %+v", m)
		}
	}
}
