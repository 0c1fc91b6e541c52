// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"shunt/e2e/rig"
	"shunt/lab"
	"shunt/maps"
)

// statusJSON has the fields of `shunt status -o json` that the tests read.
type statusJSON struct {
	InEffect        bool
	Wrong, Degraded []string
	Daemon          struct {
		Running bool
		PID     int
		Synced  *time.Time
		Pending int
	}
	Attachments []struct {
		Hook     string
		Attached bool
		Problem  string
	}
	Problems struct {
		Total int
		List  []struct{ Kind, Namespace, Service, Error string }
	}
	Maps []struct {
		Map, Flag  string
		Used, Size uint32
	}
	Reasons  map[string]uint64
	Features []struct {
		Feature string
		Has     bool
	}
}

// statusOf runs status in the daemon's pod, and checks the exit code.
func statusOf(d *rig.Daemon, want int) (s statusJSON) {
	d.T.Helper()
	stdout, stderr, code := runInPod(d.T, d.Pod, rig.Self, "status", "--bpffs-root", d.Root, "-o", "json")
	if err := json.Unmarshal([]byte(stdout), &s); err != nil || code != want || strings.Count(stderr, "\n") != min(want, 1) {
		d.T.Fatalf("status: %v, exit code %d, want %d\n%s%s", err, code, want, stdout, stderr)
	}
	return s
}

// runInPod runs a program to its end in a pod's network namespace and cgroup.
func runInPod(t *testing.T, p *lab.Pod, path string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	c := p.Command(t.Context(), path, args...)
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	code = rig.ExitCodeOf(t, c.Wait())
	return out.String(), errs.String(), code
}

// TestStatus: status distinguishes a live daemon, a dead one and none, and reports what is
// in effect.
func TestStatus(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...))
	ways[0].wantServers(t, c.client, rig.VIP(1, 4), c.web[0])
	check := func(running bool, want int) {
		t.Helper()
		s := statusOf(c.d, want)
		if s.Daemon.Running != running || s.Daemon.PID != c.d.Cmd.PID() || s.Daemon.Synced == nil || s.Daemon.Pending != 0 {
			t.Errorf("daemon: %+v, want pid %d, running %v, synced", s.Daemon, c.d.Cmd.PID(), running)
		}
		if !s.InEffect || len(s.Attachments) != 8 {
			t.Errorf("in effect: %v, %d attachments", s.InEffect, len(s.Attachments))
		}
		if s.Reasons["translated"] == 0 {
			t.Errorf("reasons: %v", s.Reasons)
		}
		fill := map[string]uint32{}
		for _, m := range s.Maps {
			fill[m.Map] = m.Used
			// Only client_addrs has no flag for its size.
			if m.Size == 0 || strings.HasPrefix(m.Flag, "--") != (m.Map != maps.NameClientAddrs) {
				t.Errorf("map %+v", m)
			}
		}
		// Two ports in two families and the rig's mark service. Each has one endpoint.
		if fill["services"] != 5 || fill["backends"] != 5 || fill["slots"] != 5 {
			t.Errorf("fill: %v", fill)
		}
		for _, f := range s.Features {
			if f.Has == rig.Lacks(f.Feature) {
				t.Errorf("%s: %v. Is it so?", f.Feature, f.Has)
			}
		}
		table, _, code := runInPod(t, c.d.Pod, rig.Self, "status", "--bpffs-root", c.d.Root)
		if code != want {
			t.Errorf("the table's exit code is %d, want %d", code, want)
		}
		for _, want := range []string{"in effect: new connections are translated", "connect4", "services", "bpf_set_retval"} {
			if !strings.Contains(table, want) {
				t.Errorf("the table does not say %q:\n%s", want, table)
			}
		}
		if strings.Contains(table, "not running") == running {
			t.Errorf("running is %v, the table says:\n%s", running, table)
		}
	}
	check(true, 0)
	c.d.Kill()
	check(false, 3)
	t.Run("with a hook gone", func(t *testing.T) {
		if err := os.Remove(c.d.Root + "/links/sendmsg6"); err != nil {
			t.Fatal(err)
		}
		s := statusOf(c.d, 1)
		if s.InEffect || len(s.Wrong) != 1 || !strings.Contains(s.Wrong[0], "sendmsg6") {
			t.Errorf("in effect: %v, wrong: %v", s.InEffect, s.Wrong)
		}
		for _, a := range s.Attachments {
			if a.Attached == (a.Hook == "sendmsg6") || a.Attached != (a.Problem == "") {
				t.Errorf("%+v", a)
			}
		}
		if table, _, _ := rig.Shunt(t, "status", "--bpffs-root", c.d.Root); !strings.Contains(table, "NOT in effect") {
			t.Errorf("the table says:\n%s", table)
		}
		c.d.Start() // repairs it
		if s := statusOf(c.d, 0); !s.InEffect {
			t.Errorf("after a start: %+v", s.Attachments)
		}
	})
}

// frontendJSON has the fields of `shunt services -o json` that the tests read.
type frontendJSON struct {
	Address, Protocol, Kind, Namespace, Service, PortName string
	Port                                                  uint16
	AffinitySeconds                                       uint32
	InsidePolicy, OutsidePolicy                           string
	SourceRanges                                          []string
	Inside, Outside                                       []struct {
		Address     string
		Port        uint16
		Local       bool
		Terminating bool
		Connections uint64
	}
}

// TestServices: the list has every frontend with its endpoints, in each output format, with
// the daemon alive and dead.
func TestServices(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1, rig.Everywhere(1), rig.ExternalLocal, rig.WithAffinity(60), rig.FromRanges("203.0.113.0/24", "100.64.0.0/10", "2001:db8::/32")), rig.SlicesOf("web", rig.Up(c.web[0], c.web[1])...),
		rig.Service("drain", 2), rig.SlicesOf("drain", rig.Draining(c.web[1])))
	for range 3 {
		if a := ways[0].ask(c.client, rig.VIP(2, 4)); a.Err != nil {
			t.Fatal(a.Err)
		}
	}
	for _, alive := range []bool{true, false} {
		if !alive {
			c.d.Kill()
		}
		list := func(args ...string) (all []frontendJSON) {
			stdout, stderr, code := rig.Shunt(t, append([]string{"services", "--bpffs-root", c.d.Root}, args...)...)
			if err := yaml.Unmarshal([]byte(stdout), &all); err != nil || code != 0 {
				t.Fatalf("services %v: %v, exit code %d\n%s%s", args, err, code, stdout, stderr)
			}
			return all
		}
		all := list("-o", "json")
		if asYAML := list("-o", "yaml"); fmt.Sprint(all) != fmt.Sprint(asYAML) {
			t.Errorf("as JSON %+v\nas YAML %+v", all, asYAML)
		}
		kinds := map[string]int{}
		for _, f := range all {
			kinds[f.Kind]++
		}
		// Two protocols, in both families except for the mark service.
		want := map[string]int{"ClusterIP": 9, "NodePort": 4, "LoadBalancerIP": 4, "ExternalIP": 4, "UndefinedPort": 5}
		if fmt.Sprint(kinds) != fmt.Sprint(want) {
			t.Errorf("kinds of frontends: %v, want %v", kinds, want)
		}
		checkServices(t, c, list)
		table, _, _ := rig.Shunt(t, "services", "--bpffs-root", c.d.Root, "198.51.100.1:80")
		if !strings.Contains(table, "default/web:t") || !strings.Contains(table, "Cluster, outside Local, only from 100.64.0.0/10,203.0.113.0/24") || !strings.Contains(table, "ClientIP 60s") || strings.Count(table, "\n") != 3 {
			t.Errorf("table:\n%s", table)
		}
	}
	for _, test := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"10.96.0.77"}, 1, "no frontend has the address 10.96.0.77"},
		{[]string{"nonsense"}, 2, "neither ADDRESS nor ADDRESS:PORT"},
		{[]string{"10.96.0.1:80", "more"}, 2, "accepts at most 1 arg"},
		{[]string{"-o", "xml"}, 2, "-o xml"},
		{[]string{"--bpffs-root", c.d.Root + "/nowhere"}, 1, "no daemon has run here"},
	} {
		stdout, stderr, code := rig.Shunt(t, append([]string{"services", "--bpffs-root", c.d.Root}, test.args...)...)
		if code != test.code || !strings.Contains(stderr, test.says) || stdout != "" || strings.Count(stderr, "\n") != 1 {
			t.Errorf("services %v: exit code %d, want %d; said\n%s%s", test.args, code, test.code, stdout, stderr)
		}
	}
}

// checkServices checks single frontends, by the filter.
func checkServices(t *testing.T, c *cluster, list func(...string) []frontendJSON) {
	t.Helper()
	one := list("-o", "json", "*:30001")
	if len(one) != 4 || one[0].Service != "web" || one[0].AffinitySeconds != 60 {
		t.Fatalf("the node port: %+v", one)
	}
	f := one[0]
	if f.InsidePolicy != "Cluster" || f.OutsidePolicy != "Local" || len(f.Inside) != 2 || len(f.Outside) != 1 {
		t.Errorf("policies and endpoints: %+v", f)
	}
	if len(f.SourceRanges) != 0 {
		t.Errorf("a node port that is bound by source ranges: %+v", f)
	}
	for ip, want := range map[string]string{
		rig.BalancerIPs(1)[0].String(): "[100.64.0.0/10 203.0.113.0/24]", rig.BalancerIPs(1)[1].String(): "[2001:db8::/32]", rig.ExternalIPs(1)[0].String(): "[]"} {
		for _, f := range list("-o", "json", ip) {
			if got := fmt.Sprint(f.SourceRanges); got != want {
				t.Errorf("%s %s lets in %s, want %s", f.Kind, ip, got, want)
			}
		}
	}
	if b := f.Outside[0]; b.Address != c.web[0].Addr4().String() || b.Port != rig.ServerPort || !b.Local {
		t.Errorf("the local endpoint: %+v", b)
	}
	one = list("-o", "json", "10.96.0.2:80")
	if len(one) != 2 || one[0].PortName != "t" || len(one[0].Inside) != 1 || !one[0].Inside[0].Terminating || one[0].Inside[0].Connections != 3 {
		t.Errorf("the service with a terminating endpoint: %+v", one)
	}
	if one = list("-o", "json", "[fd00:10:96::2]:80"); len(one) != 2 || one[0].Inside[0].Address != c.web[1].Addr6().String() {
		t.Errorf("by IPv6: %+v", one)
	}
	if one = list("-o", "json", "10.96.0.2"); len(one) != 3 {
		t.Errorf("by address alone: %+v", one)
	}
}

// TestVersion needs neither root nor a daemon.
func TestVersion(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := rig.Shunt(t, "version", "-o", "json")
	var v struct {
		Version, Go string
		ABI         int
	}
	if err := json.Unmarshal([]byte(stdout), &v); err != nil || code != 0 || v.Version == "" || v.ABI == 0 || !strings.HasPrefix(v.Go, "go") {
		t.Errorf("%v, exit code %d: %s%s", err, code, stdout, stderr)
	}
	if stdout, _, code = rig.Shunt(t, "version"); code != 0 || !strings.HasPrefix(stdout, "shunt ") {
		t.Errorf("exit code %d: %s", code, stdout)
	}
}

// TestCleanup: cleanup refuses while a daemon runs, then removes everything. Then nothing
// is translated, and earlier connections continue.
func TestCleanup(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1, rig.WithNodePort(1)), rig.SlicesOf("web", rig.Up(c.web[0])...))
	tcp := ways[0].openTo(t, c.client, rig.VIP(1, 4))
	tcp.ask(rig.VIP(1, 4))
	if stdout, stderr, code := rig.Shunt(t, "cleanup", "--bpffs-root", c.d.Root); code != 1 || stdout != "" ||
		!strings.Contains(stderr, "another shunt daemon is at work") || strings.Count(stderr, "\n") != 1 {
		t.Fatalf("cleanup of a running daemon: exit code %d\n%s%s", code, stdout, stderr)
	}
	ways[0].wantServers(t, c.client, rig.VIP(1, 4), c.web[0])
	// A dry run only reports, also while a daemon runs.
	dry, _, code := runInPod(t, c.d.Pod, rig.Self, "cleanup", "--bpffs-root", c.d.Root, "--dry-run")
	for _, want := range []string{"program shunt_connect4, of cgroup", c.d.Root + "/links/recvmsg6", c.d.Root + "/maps/services", c.d.Root + "/memory", "flow-seed"} {
		if code != 0 || !strings.Contains(dry, "would detach") || !strings.Contains(dry, want) {
			t.Errorf("dry run: exit code %d, no %q in\n%s", code, want, dry)
		}
	}
	if strings.Contains(dry, "kept") {
		t.Errorf("dry run: something of the daemon's is not known:\n%s", dry)
	}
	// In another directory it finds nothing, and leaves the empty directory, which is not
	// its own.
	empty := c.d.Root + "-empty"
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	if stdout, stderr, code := rig.Shunt(t, "cleanup", "--bpffs-root", empty); code != 0 || !strings.Contains(stdout, "nothing to remove") {
		t.Errorf("cleanup of an empty directory: exit code %d\n%s%s", code, stdout, stderr)
	}
	if err := os.Remove(empty); err != nil {
		t.Error(err)
	}
	statusOf(c.d, 0)
	c.d.Stop()
	// The links of the hooks are in a directory where no daemon looks, and maps/ has a
	// foreign directory.
	if err := errors.Join(os.Rename(c.d.Root+"/links", c.d.Root+"-links"), os.Mkdir(c.d.Root+"/maps/theirs", 0o700)); err != nil {
		t.Fatal(err)
	}
	if stdout, stderr, code := rig.Shunt(t, "cleanup", "--bpffs-root", c.d.Root); code != 0 || !strings.Contains(stdout, "kept "+c.d.Root+"/maps/theirs") {
		t.Errorf("cleanup beside another's: exit code %d\n%s%s", code, stdout, stderr)
	}
	if a := ways[0].ask(c.client, rig.VIP(1, 4)); a.Err == nil {
		t.Error("the hooks are still attached, by links that were moved")
	}
	if err := errors.Join(os.RemoveAll(c.d.Root+"-links"), os.Remove(c.d.Root+"/maps/theirs")); err != nil {
		t.Fatal(err)
	}
	c.d.Start()
	c.m.Settle(c.d)
	c.d.Stop()
	stdout, stderr, code := rig.Shunt(t, "cleanup", "--bpffs-root", c.d.Root, "-o", "json")
	if code != 0 || !strings.Contains(stdout, `"removed": true`) {
		t.Fatalf("cleanup: exit code %d\n%s%s", code, stdout, stderr)
	}
	if _, err := os.Stat(c.d.Root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there (%v)", c.d.Root, err)
	}
	for _, w := range ways {
		short := lab.RequestOptions{Unconnected: w.sendto, Timeout: 50 * time.Millisecond}
		if a := c.client.Request(w.network, rig.VIP(1, w.family), short); !errors.Is(a.Err, syscall.ETIMEDOUT) {
			t.Errorf("%s: after cleanup: answered by %q (%v)", w, a.Server, a.Err)
		}
	}
	tcp.ask(rig.VIP(1, 4)) // established connections need no translation
	if stdout, _, code := rig.Shunt(t, "cleanup", "--bpffs-root", c.d.Root); code != 0 || !strings.Contains(stdout, "nothing to remove") {
		t.Errorf("cleanup of nothing: exit code %d, %s", code, stdout)
	}
	c.d.Start()
	c.m.Settle(c.d)
	ways[0].wantServers(t, c.client, rig.VIP(1, 4), c.web[0])
}
