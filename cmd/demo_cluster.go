// SPDX-License-Identifier: Apache-2.0

//go:build !node

package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"shunt/lab"
)

// demoCluster contains the nodes and pods whose addresses are in demo.yaml.
type demoCluster struct {
	lab    *lab.Lab
	nodes  []*lab.Node
	hosts  []*lab.Pod // the nodes' own processes
	web    []*lab.Pod // the endpoints: one on each node
	client []*lab.Pod // one on each node
	daemon []*demoDaemon
	// executable is the daemon's program: this executable.
	executable string
}

// demoDaemon is a running `shunt run`.
type demoDaemon struct {
	node *lab.Node
	cmd  *lab.Cmd
	log  lastLines
}

const (
	demoTCPPort = 8080
	demoUDPPort = 5353
	demoHealthz = "127.0.0.1:10256"
	demoMetrics = "127.0.0.1:10249"
	// demoStartDeadline bounds the time until a started daemon is healthy.
	demoStartDeadline = 20 * time.Second
)

// newDemoCluster makes the nodes and pods. The servers serve when it returns.
func newDemoCluster(l *lab.Lab) (*demoCluster, error) {
	// This link remains valid if the executable's file is replaced in the meantime.
	c := &demoCluster{lab: l, executable: "/proc/self/exe"}
	for i, name := range []string{"n1", "n2"} {
		n := l.Node(name)
		web := n.Pod(fmt.Sprintf("web-%d", i)) // the node's first pod has the address in demo.yaml
		web.Serve("tcp", demoTCPPort)
		web.Serve("udp", demoUDPPort)
		c.nodes = append(c.nodes, n)
		c.web = append(c.web, web)
		c.client = append(c.client, n.Pod("client"))
		c.hosts = append(c.hosts, n.HostPod("host"))
		n.BPFFS()
	}
	if err := l.Err(); err != nil {
		return nil, fmt.Errorf("make nodes and pods: %w", err)
	}
	return c, nil
}

// startDaemons runs the daemon on every node and waits until all are healthy.
func (c *demoCluster) startDaemons(ctx context.Context) error {
	file := filepath.Join(c.lab.Dir(), "demo.yaml")
	if err := os.WriteFile(file, demoManifests, 0o644); err != nil {
		return err
	}
	for _, n := range c.nodes {
		d := &demoDaemon{node: n}
		pod := n.HostPod("shunt")
		d.cmd = pod.Command(ctx, c.executable, "run",
			"--manifests", file, "--node-name", n.Name(),
			"--cgroup-root", n.Cgroup(), "--bpffs-root", filepath.Join(n.BPFFS(), "shunt"),
			"--healthz-bind-address", demoHealthz, "--metrics-bind-address", demoMetrics)
		d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
		if err := d.cmd.Start(); err != nil {
			return fmt.Errorf("node %s: %w", n.Name(), err)
		}
		c.daemon = append(c.daemon, d)
	}
	for _, d := range c.daemon {
		if err := d.waitHealthy(ctx); err != nil {
			return err
		}
	}
	return nil
}

// daemonsAlive returns an error if a daemon has ended.
func (c *demoCluster) daemonsAlive() error {
	for _, d := range c.daemon {
		select {
		case <-d.cmd.Done():
			return d.failed("ended", d.cmd.Wait())
		default:
		}
	}
	return nil
}

// failed returns an error that contains the parameter what and the end of the daemon's log.
func (d *demoDaemon) failed(what string, err error) error {
	text := fmt.Sprintf("the daemon of node %s %s", d.node.Name(), what)
	if err != nil {
		text += ": " + err.Error()
	}
	return fmt.Errorf("%s; its log ends with:\n%s", text, d.log.String())
}

// waitHealthy polls the daemon's healthz from within its node until it is healthy.
func (d *demoDaemon) waitHealthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, demoStartDeadline)
	defer cancel()
	transport := &http.Transport{DialContext: d.node.DialContext}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: time.Second}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := getHealthz(ctx, client)
		if err == nil {
			return nil
		}
		select {
		case <-d.cmd.Done():
			return d.failed("ended", d.cmd.Wait())
		case <-ctx.Done():
			return d.failed(fmt.Sprintf("was not healthy within %v", demoStartDeadline), err)
		case <-tick.C:
		}
	}
}

func getHealthz(ctx context.Context, client *http.Client) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+demoHealthz+"/healthz", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1024)) // only for the message
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status + ": " + strings.TrimSpace(string(body)))
	}
	return nil
}

// direct returns the endpoints' own addresses in the family of like.
func (c *demoCluster) direct(like netip.Addr, port uint16) []netip.AddrPort {
	var all []netip.AddrPort
	for _, p := range c.web {
		addr := p.Addr6()
		if like.Is4() {
			addr = p.Addr4()
		}
		all = append(all, netip.AddrPortFrom(addr, port))
	}
	return all
}

// lastLines is a Writer that retains the end of a log.
type lastLines struct {
	mu  sync.Mutex
	buf []byte
}

const (
	lastLinesBytes = 16 << 10
	lastLinesCount = 15
)

func (l *lastLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p...)
	if extra := len(l.buf) - lastLinesBytes; extra > 0 {
		l.buf = l.buf[extra:]
	}
	return len(p), nil
}

// String returns the last lines, indented.
func (l *lastLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.TrimSpace(string(l.buf))
	if text == "" {
		return "  (nothing)"
	}
	lines := strings.Split(text, "\n")
	lines = lines[max(0, len(lines)-lastLinesCount):]
	return "  " + strings.Join(lines, "\n  ")
}
