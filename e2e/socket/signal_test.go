// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"shunt/e2e/rig"
	"shunt/maps"
)

// TestSignals: SIGHUP and the like, with which other daemons read their files again, do not
// end this one, nor does a log whose reader is gone.
func TestSignals(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	for i, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPIPE} {
		if err := c.d.Cmd.Signal(sig); err != nil {
			t.Fatal(err)
		}
		c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[i%2])...))
		ways[0].wantServers(t, c.client, rig.VIP(1, 4), c.web[i%2])
	}
	rig.Eventually(t, "the log has a line about SIGHUP", func() bool { return strings.Contains(c.d.Log.String(), "SIGHUP has no effect") })
	c.d.Stop()

	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	c.d.Cmd = c.d.Pod.Command(context.Background(), rig.Self, c.d.Args...)
	c.d.Cmd.Stderr, c.d.Cmd.Stdout = writer, writer
	if err := c.d.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	c.d.WaitHealthy() // it has written log lines by then
	if err := c.d.Cmd.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	c.apply(rig.SlicesOf("web", rig.Up(c.web[2])...))
	ways[0].wantServers(t, c.client, rig.VIP(1, 4), c.web[2])
	c.d.Stop()
}

// TestOtherABI: commands that read the maps refuse maps of another ABI, whose layout they
// do not know, and name a remedy.
func TestOtherABI(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.apply(rig.Service("web", 1), rig.SlicesOf("web", rig.Up(c.web[0])...))
	c.d.Kill()
	own, err := maps.ABI()
	if err != nil {
		t.Fatal(err)
	}
	for _, abi := range []uint32{own - 1, own + 1} {
		if err := c.d.Kernel(func(k *maps.Kernel) { k.UpdateMeta(func(m *maps.DaemonMeta) { m.Abi = abi }) }); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"status"}, {"status", "-o", "json"}, {"services"}, {"services", "10.96.0.1:80"}} {
			stdout, stderr, code := rig.Shunt(t, append(args, "--bpffs-root", c.d.Root)...)
			says := fmt.Sprintf("have ABI %d and this shunt reads ABI %d", abi, own)
			if code != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, says) || !strings.Contains(stderr, "shunt run") {
				t.Errorf("%v with maps of ABI %d: exit code %d\n%s%s", args, abi, code, stdout, stderr)
			}
		}
	}
	c.d.Start() // replaces them
	if _, stderr, code := rig.Shunt(t, "services", "--bpffs-root", c.d.Root); code != 0 {
		t.Errorf("services after the start: exit code %d\n%s", code, stderr)
	}
	ways[0].wantServers(t, c.client, rig.VIP(1, 4), c.web[0])
}
