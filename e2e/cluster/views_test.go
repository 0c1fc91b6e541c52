// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"shunt/bpf"
	"shunt/maps"
)

// frontend is an element of `shunt services -o json`, as a user's script would read it.
// Fields that are not compared are missing.
type frontend struct {
	Address         string    `json:"address"`
	Port            uint16    `json:"port"`
	Protocol        string    `json:"protocol"`
	Kind            string    `json:"kind"`
	Family          string    `json:"family"`
	Namespace       string    `json:"namespace"`
	Service         string    `json:"service"`
	PortName        string    `json:"portName"`
	AffinitySeconds uint32    `json:"affinitySeconds"`
	InsidePolicy    string    `json:"insidePolicy"`
	OutsidePolicy   string    `json:"outsidePolicy"`
	Inside          []backend `json:"inside"`
	Outside         []backend `json:"outside"`
}

type backend struct {
	Address     string `json:"address"`
	Port        uint16 `json:"port"`
	Local       bool   `json:"local"`
	Terminating bool   `json:"terminating"`
}

// line returns a frontend as tests write what they expect, like
//
//	web:http ClusterIP 10.96.0.5:80/TCP Cluster p0:8000 p1:8000
//	web NodePort *:30080/TCP IPv4 Cluster p0:8000 p5:8000 | Local p0:8000
//
// After the bar are the endpoints for packets from outside, if they differ from those for
// clients of this node. A pod's name stands for its address in the frontend's family. The
// endpoint's conditions follow in brackets.
func (f *fixture) line(fe frontend) string {
	service := fe.Service
	if fe.PortName != "" {
		service += ":" + fe.PortName
	}
	host := fe.Address
	family := ""
	if host == "*" {
		family = " " + fe.Family
	} else if fe.Family == "IPv6" {
		host = "[" + host + "]"
	}
	line := fmt.Sprintf("%s %s %s:%d/%s%s", service, fe.Kind, host, fe.Port, fe.Protocol, family)
	if fe.AffinitySeconds > 0 {
		line += fmt.Sprintf(" affinity=%ds", fe.AffinitySeconds)
	}
	inside, outside := f.side(fe.InsidePolicy, fe.Inside), f.side(fe.OutsidePolicy, fe.Outside)
	line += " " + inside
	if outside != inside {
		line += " | " + outside
	}
	return line
}

func (f *fixture) side(policy string, backends []backend) string {
	words := make([]string, 0, len(backends))
	for _, be := range backends {
		a, _ := netip.ParseAddr(be.Address)
		name, known := f.names[a]
		if !known {
			name = "[" + be.Address + "]"
		}
		word := fmt.Sprintf("%s:%d", name, be.Port)
		if be.Terminating {
			word += "(terminating)"
		}
		words = append(words, word)
	}
	slices.Sort(words)
	return strings.Join(append([]string{policy}, words...), " ")
}

// lines returns the sorted lines of a namespace.
func (f *fixture) lines(all []frontend, namespace string) []string {
	var lines []string
	for _, fe := range all {
		if fe.Namespace == namespace {
			lines = append(lines, f.line(fe))
		}
	}
	slices.Sort(lines)
	return lines
}

// openPins opens a daemon's maps for reading.
func openPins(root string) (*maps.Kernel, func() error, error) {
	set, err := maps.Load(root)
	if err != nil {
		return nil, nil, err
	}
	kernel, err := maps.NewKernel(set)
	if err != nil {
		return nil, nil, errors.Join(err, set.Close())
	}
	return kernel, func() error { return errors.Join(kernel.Close(), set.Close()) }, nil
}

// dump returns the content of a daemon's maps.
func dump(root string) (*maps.Dump, error) {
	kernel, closePins, err := openPins(root)
	if err != nil {
		return nil, err
	}
	d, err := kernel.Dump()
	return d, errors.Join(err, closePins())
}

// frontends converts a dump to the form of `shunt services`, by independent code.
func frontends(d *maps.Dump) (all []frontend) {
	policy := map[bool]string{true: "Local", false: "Cluster"}
	for key, svc := range d.Frontends {
		name, at := d.Names[svc.Id], key.AddrPort()
		fe := frontend{
			Address: at.Addr().String(), Port: at.Port(), Protocol: maps.ProtocolName(key.Protocol),
			Kind: maps.FrontendKind(svc.Kind).String(), Family: fmt.Sprintf("IPv%d", name.Family),
			Namespace: name.Namespace, Service: name.Name, PortName: name.Port, AffinitySeconds: svc.AffinitySeconds,
			InsidePolicy: policy[svc.Flags&maps.InsideLocal != 0], OutsidePolicy: policy[svc.Flags&maps.OutsideLocal != 0],
			Inside: backends(d, svc.Inside), Outside: backends(d, svc.Outside),
		}
		if at.Addr().IsUnspecified() {
			fe.Address = "*"
		}
		all = append(all, fe)
	}
	return all
}

func backends(d *maps.Dump, r maps.SlotRange) (all []backend) {
	ids, err := d.Range(r)
	if err != nil {
		return []backend{{Address: err.Error()}}
	}
	for _, id := range ids {
		be := d.Backends[id]
		at := be.AddrPort()
		all = append(all, backend{at.Addr().String(), at.Port(), be.Flags&maps.OnNode != 0, be.Flags&maps.Terminating != 0})
	}
	return all
}

// shuntServices runs `shunt services -o json`.
func shuntServices(root string, args ...string) ([]frontend, error) {
	args = append([]string{"services", "-o", "json", "--bpffs-root", root}, args...)
	c := exec.Command("/proc/self/exe", args...)
	c.Env = shuntEnv()
	text, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("shunt services: %w", err)
	}
	var all []frontend
	return all, json.Unmarshal(text, &all)
}

// expect waits until the daemon of n1 has exactly these lines for a namespace, and then
// checks that `shunt services` shows the same.
func (f *fixture) expect(t *testing.T, namespace string, want ...string) {
	t.Helper()
	f.expectOf(t, f.daemon.o.root, namespace, want...)
}

func (f *fixture) expectOf(t *testing.T, root, namespace string, want ...string) {
	t.Helper()
	slices.Sort(want)
	differ := func(got []string) error {
		if slices.Equal(got, want) {
			return nil
		}
		return fmt.Errorf("there is\n  %s\nwanted is\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
	eventually(t, "the frontends of namespace "+namespace, func() error {
		d, err := dump(root)
		if err != nil {
			return err
		}
		return differ(f.lines(frontends(d), namespace))
	})
	said, err := shuntServices(root)
	check(t, err)
	said = slices.DeleteFunc(said, func(fe frontend) bool { return fe.Kind == "none" }) // not in the maps
	if err := differ(f.lines(said, namespace)); err != nil {
		t.Fatalf("shunt services differs from the maps: %v", err)
	}
}

// expectFresh checks that the maps of n1's daemon, and the ports it listens on, equal those
// of a daemon that starts now with the same objects: earlier changes may leave nothing.
func (f *fixture) expectFresh(t *testing.T) {
	t.Helper()
	f.freshMu.Lock()
	defer f.freshMu.Unlock()
	o := daemonOptions{name: "fresh", node: f.fresh, nodeName: "n1"}
	o.root = filepath.Join(o.node.BPFFS(), fmt.Sprintf("fresh-%d", f.starts.Load()))
	d, err := f.run(o)
	check(t, err)
	defer func() {
		d.stop(t)
		if err := errors.Join(bpf.Detach(o.root), maps.Remove(o.root)); err != nil {
			t.Error(err)
		}
	}()
	d.await(t, `"in effect"`)
	eventually(t, "the maps of the daemon are those of a fresh one", func() error {
		old, err := mapsText(f.daemon.o.root)
		if err != nil {
			return err
		}
		fresh, err := mapsText(o.root)
		if err != nil {
			return err
		}
		return errors.Join(sameLines(old, fresh), sameListeners(f.daemon, d))
	})
}

// mapsText returns the dump of a daemon's maps without what a fresh daemon does not have:
// the node's addresses, which differ, and backends of unready endpoints and renamed ports,
// which are kept for earlier connections.
func mapsText(root string) ([]string, error) {
	d, err := dump(root)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(strings.Split(strings.TrimSpace(d.Lasting().Text()), "\n"), func(line string) bool {
		return strings.HasPrefix(line, "node-addr ")
	}), nil
}

// sameLines returns an error with the lines that only one of two sorted texts has.
func sameLines(old, fresh []string) error {
	var diff []string
	for _, side := range []struct {
		sign     string
		of, from []string
	}{{"- ", old, fresh}, {"+ ", fresh, old}} {
		has := map[string]bool{}
		for _, line := range side.from {
			has[line] = true
		}
		for _, line := range side.of {
			if !has[line] {
				diff = append(diff, side.sign+line)
			}
		}
	}
	if len(diff) == 0 && len(old) == len(fresh) {
		return nil
	}
	return fmt.Errorf("%d lines against %d, - only the daemon has, + only the fresh one:\n%s",
		len(old), len(fresh), strings.Join(diff[:min(len(diff), 40)], "\n"))
}
