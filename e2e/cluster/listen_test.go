// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// listeners returns the ports on which a daemon listens, such as "tcp 30050", without those
// of healthz and metrics. It finds sockets by the process, as other processes share the
// network namespace.
func (d *daemon) listeners() ([]string, error) {
	proc := fmt.Sprintf("/proc/%d", d.cmd.PID())
	links, err := filepath.Glob(proc + "/fd/*")
	if err != nil {
		return nil, err
	}
	own := map[string]bool{}
	for _, link := range links {
		to, err := os.Readlink(link)
		if inode, is := strings.CutPrefix(to, "socket:["); is && err == nil { // it may be closed by now
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	var all []string
	for _, protocol := range []string{"tcp", "tcp6", "udp", "udp6"} {
		ports, err := boundPorts(filepath.Join(proc, "net", protocol), own)
		if err != nil {
			return nil, err
		}
		for _, port := range ports {
			if at := fmt.Sprintf(":%d", port); !strings.HasSuffix(d.o.healthz, at) && !strings.HasSuffix(d.o.metrics, at) {
				all = append(all, strings.TrimSuffix(protocol, "6")+" "+at[1:])
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// boundPorts reads a table of /proc/net. It returns the ports of sockets with these inodes
// that listen, or are bound and not connected.
func boundPorts(table string, inodes map[string]bool) (ports []uint64, err error) {
	file, err := os.Open(table)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		words := strings.Fields(lines.Text()) // sl local remote state … inode is the tenth
		const listening, unconnected = "0A", "07"
		if len(words) < 10 || !inodes[words[9]] || words[3] != listening && words[3] != unconnected {
			continue
		}
		_, hex, _ := strings.Cut(words[1], ":")
		port, err := strconv.ParseUint(hex, 16, 16)
		if err != nil {
			return nil, fmt.Errorf("%s: %q: %w", table, lines.Text(), err)
		}
		ports = append(ports, port)
	}
	return ports, lines.Err()
}

// sameListeners returns an error if two daemons listen on different ports.
func sameListeners(old, fresh *daemon) error {
	a, err := old.listeners()
	if err != nil {
		return err
	}
	b, err := fresh.listeners()
	if err != nil {
		return err
	}
	if !slices.Equal(a, b) {
		return fmt.Errorf("it listens on %q, a fresh one on %q", a, b)
	}
	return nil
}
