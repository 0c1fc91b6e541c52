// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"io"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// RunStats has the kernel's counts of one program, which it makes while counting is enabled
// (BPF_ENABLE_STATS, or sysctl kernel.bpf_stats_enabled).
type RunStats struct {
	Runs uint64
	Time time.Duration
}

// PerRun returns the mean time of a run; 0 without runs.
func (s RunStats) PerRun() time.Duration {
	if s.Runs == 0 {
		return 0
	}
	return s.Time / time.Duration(s.Runs)
}

// EnableRunStats enables counting until the closer is closed. Counting costs every program some
// 20 ns a run.
func EnableRunStats() (io.Closer, error) {
	c, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return nil, fmt.Errorf("ask for run-time statistics of programs: %w", err)
	}
	return c, nil
}

// RunStats returns the counts by hook.
func (p *Programs) RunStats() (map[string]RunStats, error) {
	all := map[string]RunStats{}
	for _, h := range p.hooks() {
		st, err := h.prog.Stats()
		if err != nil {
			return nil, fmt.Errorf("read the run-time statistics of program %s: %w", h.pin, err)
		}
		all[h.pin] = RunStats{Runs: st.RunCount, Time: st.Runtime}
	}
	return all, nil
}

// RunStats returns the counts of the packet path's programs by direction ("ingress" and
// "egress"), summed over all kinds of devices.
func (p *PacketPath) RunStats() (map[string]RunStats, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[string]RunStats{}
	for _, l := range p.programs.loaded {
		for dir, prog := range l.by {
			st, err := prog.Stats()
			if err != nil {
				return nil, fmt.Errorf("read the run-time statistics of program %s: %w", prog, err)
			}
			sum := all[direction(dir).String()]
			all[direction(dir).String()] = RunStats{Runs: sum.Runs + st.RunCount, Time: sum.Time + st.Runtime}
		}
	}
	return all, nil
}
