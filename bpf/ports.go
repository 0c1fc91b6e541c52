// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"strconv"
	"strings"
)

// SNATPorts are the SNAT ports: Count of them from First on, in host byte order. Port 1024
// follows 65535.
type SNATPorts struct {
	First, Count uint32
	// Shared reports whether the SNAT ports include those that the kernel assigns to sockets of
	// this node, because too few other ports are left. A socket's connection and a translated one
	// can then have the same port and endpoint, and be mistaken for one another.
	Shared bool
}

// portSpan is the ports from first to last, inclusive.
type portSpan struct{ first, last uint32 }

// portFirst to portLast are the ports that need no privilege.
const (
	portFirst = 1024
	portLast  = 65535
	portCount = portLast - portFirst + 1
)

var nodePortSpan = portSpan{30000, 32767}

// enoughPorts is the least number of SNAT ports, and so of connections to one endpoint. If fewer
// ports are left without the ephemeral ones, the ephemeral ports are used too, and shared with
// the node's own sockets.
const enoughPorts = 1024

// chooseSNATPorts returns the longest run of ports without node ports, reserved ports and
// those that the kernel assigns (ephemeral). If that is too short, ephemeral ports are used
// too.
func chooseSNATPorts(ephemeral portSpan, reserved []portSpan) SNATPorts {
	taken := append([]portSpan{nodePortSpan}, reserved...)
	first, count := longestRun(append(taken, ephemeral))
	if count >= enoughPorts {
		return SNATPorts{First: first, Count: count}
	}
	first, count = longestRun(taken)
	return SNATPorts{First: first, Count: count, Shared: true}
}

// longestRun returns the longest run of ports that are in no span, on the circle where 1024
// follows 65535.
func longestRun(taken []portSpan) (first, count uint32) {
	var used [portCount]bool
	for _, s := range taken {
		for p := max(s.first, portFirst); p <= min(s.last, portLast); p++ {
			used[p-portFirst] = true
		}
	}
	run := uint32(0)
	for i := range uint32(2 * portCount) { // two rounds, for a run that continues at the first port
		if used[i%portCount] || run == portCount {
			run = 0
			continue
		}
		run++
		if run > count {
			first, count = portFirst+(i+1-run)%portCount, run
		}
	}
	return first, count
}

// parseSpans parses ports as sysctls print them: "8080,30000-32767", or the two ends of one
// span, separated by blanks.
func parseSpans(text string) ([]portSpan, error) {
	var all []portSpan
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		ends := strings.FieldsFunc(part, func(r rune) bool { return r == '-' || r == ' ' || r == '\t' })
		if len(ends) == 0 {
			return nil, fmt.Errorf("%q is no range of ports", part)
		}
		first, err := strconv.ParseUint(ends[0], 10, 16)
		last := first
		if err == nil && len(ends) == 2 {
			last, err = strconv.ParseUint(ends[1], 10, 16)
		}
		if err != nil || len(ends) > 2 || last < first {
			return nil, fmt.Errorf("%q is no range of ports", part)
		}
		all = append(all, portSpan{uint32(first), uint32(last)})
	}
	return all, nil
}

// skippedPorts returns the range of ports that the kernel assigns to sockets of this network
// namespace. None of them is a node port, so the programs skip the look-up for them. If the
// range overlaps with that of node ports it returns an empty one.
func skippedPorts() (first, last uint32, err error) {
	text, err := readSysctl(sysctlEphemeral)
	if err != nil {
		return 0, 0, err
	}
	spans, err := parseSpans(text)
	if err != nil {
		return 0, 0, fmt.Errorf("read sysctl %s: %w", sysctlEphemeral, err)
	}
	if len(spans) != 1 {
		return 0, 0, fmt.Errorf("read sysctl %s: %q is not one range", sysctlEphemeral, text)
	}
	if s := spans[0]; s.first > nodePortSpan.last || s.last < nodePortSpan.first {
		return s.first, s.last, nil
	}
	return 1, 0, nil
}

// ReadSNATPorts chooses the SNAT ports by this network namespace's sysctls.
func ReadSNATPorts() (SNATPorts, error) {
	spans := map[string][]portSpan{}
	for _, name := range []string{sysctlEphemeral, sysctlReserved} {
		text, err := readSysctl(name)
		if err != nil {
			return SNATPorts{}, err
		}
		if spans[name], err = parseSpans(text); err != nil {
			return SNATPorts{}, fmt.Errorf("read sysctl %s: %w", name, err)
		}
	}
	if len(spans[sysctlEphemeral]) != 1 {
		return SNATPorts{}, fmt.Errorf("read sysctl %s: not one range", sysctlEphemeral)
	}
	return chooseSNATPorts(spans[sysctlEphemeral][0], spans[sysctlReserved]), nil
}

const (
	sysctlEphemeral = "net.ipv4.ip_local_port_range"
	sysctlReserved  = "net.ipv4.ip_local_reserved_ports"
)
