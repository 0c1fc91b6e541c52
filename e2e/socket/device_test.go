// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"shunt/e2e/rig"
	"shunt/lab"
)

// packetsJSON has the fields of the packet path in `shunt status -o json` that the tests
// read.
type packetsJSON struct {
	Devices []struct {
		Device, Why, Direction, By, Problem, Source4, Source6 string
		Program                                               int
	}
	Problems []string
}

// inNode runs shunt in the node's network namespace.
func inNode(t *testing.T, pod *lab.Pod, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	c := pod.Command(context.Background(), rig.Self, args...)
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Fatalf("shunt %q: %v\n%s%s", args, err, out.String(), errs.String())
	}
	return out.String()
}

func packetsOf(d *rig.Daemon, pod *lab.Pod) (s packetsJSON, lines []string) {
	d.T.Helper()
	var all struct{ Packets packetsJSON }
	text, _, _ := runInPod(d.T, pod, rig.Self, "status", "--bpffs-root", d.Root, "-o", "json") // TestStatus checks the exit code
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		d.T.Fatalf("status: %v\n%s", err, text)
	}
	for _, a := range all.Packets.Devices {
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", a.Device, a.Direction, a.Why, a.Problem)))
	}
	return all.Packets, lines
}

// TestDevices: the daemon attaches to the node's uplink, not to its pods' veths. status
// shows the devices, also with a dead daemon, and why packets from pods are not translated.
// Other flags select other devices. cleanup leaves none.
func TestDevices(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	uplink := []string{"eth0 ingress address", "eth0 egress address"}
	c.d.Stop()
	s, lines := packetsOf(c.d, c.host)
	if !slices.Equal(lines, uplink) || len(s.Problems) != 0 {
		t.Fatalf("%q, problems %q", lines, s.Problems)
	}
	by := "TCX"
	if rig.Lacks("TCX") {
		by = "clsact"
	}
	if a := s.Devices[0]; a.By != by || a.Program == 0 || a.Source4 != c.n1.Addr4().String() || a.Source6 != c.n1.Addr6().String() {
		t.Errorf("%+v", a)
	}
	forward := func(on string) {
		if err := c.n1.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte(on), 0o644) }); err != nil {
			t.Fatal(err)
		}
	}
	forward("0")
	if s, _ := packetsOf(c.d, c.host); len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "net.ipv4.ip_forward=1") {
		t.Errorf("problems: %q", s.Problems)
	}
	c.d.Start("--devices=eth[1-9],eth0", "--pod-devices=nothing*")
	if !strings.Contains(c.d.Log.Tail(100), "IPv4 forwarding is off") {
		t.Error("the log does not say that forwarding is off")
	}
	forward("1")
	uplink = []string{"eth0 ingress asked", "eth0 egress asked"}
	if _, lines := packetsOf(c.d, c.host); !slices.Equal(lines, uplink) {
		t.Errorf("%q, want %q", lines, uplink)
	}
	if table, _, _ := runInPod(t, c.host, rig.Self, "status", "--bpffs-root", c.d.Root); !strings.Contains(table, "eth0 egress") || !strings.Contains(table, "asked, ") {
		t.Errorf("the table:\n%s", table)
	}
	if elsewhere, _, _ := rig.Shunt(t, "status", "--bpffs-root", c.d.Root); !strings.Contains(elsewhere, "another network namespace") {
		t.Errorf("from elsewhere:\n%s", elsewhere)
	}
	c.d.Stop()
	c.d.Args = slices.DeleteFunc(c.d.Args, func(arg string) bool { return strings.HasPrefix(arg, "--devices=") })
	c.d.Start("--devices=none")
	const why = " address not attached: --devices names others, or the daemon's log says why"
	if _, lines := packetsOf(c.d, c.host); !slices.Equal(lines, []string{"eth0 ingress" + why, "eth0 egress" + why}) {
		t.Errorf("with nothing that was asked for: %q", lines)
	}
	if !strings.Contains(c.d.Log.Tail(100), "no device here is") {
		t.Error("the log does not say that nothing is attached to")
	}
	c.d.Stop()
	if text := inNode(t, c.host, "cleanup", "--bpffs-root", c.d.Root); !strings.Contains(text, "removed") {
		t.Error(text)
	}
}
