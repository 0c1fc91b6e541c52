// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"strconv"
	"strings"
)

// SourcePorts are those that translated packets leave with: Count of them from
// First on, in host byte order; after 65535 comes 1024.
type SourcePorts struct {
	First, Count uint32
	// Shared: they are also ports that the kernel gives to sockets of this node,
	// since it left too few. Two such connections to one endpoint may then be
	// mistaken for one another.
	Shared bool
}

// portSpan is the ports from first to last, both included.
type portSpan struct{ first, last uint32 }

// The ports that anybody may use, and those of services of type NodePort.
const (
	portFirst = 1024
	portLast  = 65535
	portCount = portLast - portFirst + 1
)

var nodePortSpan = portSpan{30000, 32767}

// enoughPorts is how many connections to one endpoint there must be room for
// before the ports are shared with the node's own sockets.
const enoughPorts = 1024

// chooseSourcePorts gives the longest run that has none of the ports that the
// kernel chooses from (ephemeral), node ports and reserved ones.
func chooseSourcePorts(ephemeral portSpan, reserved []portSpan) SourcePorts {
	taken := append([]portSpan{nodePortSpan}, reserved...)
	first, count := longestRun(append(taken, ephemeral))
	if count >= enoughPorts {
		return SourcePorts{First: first, Count: count}
	}
	first, count = longestRun(taken)
	return SourcePorts{First: first, Count: count, Shared: true}
}

// longestRun gives the longest run of ports on the circle that no span has.
func longestRun(taken []portSpan) (first, count uint32) {
	var used [portCount]bool
	for _, s := range taken {
		for p := max(s.first, portFirst); p <= min(s.last, portLast); p++ {
			used[p-portFirst] = true
		}
	}
	run := uint32(0)
	for i := range uint32(2 * portCount) { // twice round, for the run across the end
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

// parseSpans reads ports as sysctls have them: "8080,30000-32767", or, separated
// by blanks, the two ends of one span.
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

// skippedPorts returns the ports that the kernel chooses for sockets of this network
// namespace, of which the programs know without a look-up that none is a node port; an
// empty range where some may be.
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

// ReadSourcePorts works out the ports from this network namespace's sysctls.
func ReadSourcePorts() (SourcePorts, error) {
	spans := map[string][]portSpan{}
	for _, name := range []string{sysctlEphemeral, sysctlReserved} {
		text, err := readSysctl(name)
		if err != nil {
			return SourcePorts{}, err
		}
		if spans[name], err = parseSpans(text); err != nil {
			return SourcePorts{}, fmt.Errorf("read sysctl %s: %w", name, err)
		}
	}
	if len(spans[sysctlEphemeral]) != 1 {
		return SourcePorts{}, fmt.Errorf("read sysctl %s: not one range", sysctlEphemeral)
	}
	return chooseSourcePorts(spans[sysctlEphemeral][0], spans[sysctlReserved]), nil
}

const (
	sysctlEphemeral = "net.ipv4.ip_local_port_range"
	sysctlReserved  = "net.ipv4.ip_local_reserved_ports"
)
