// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"shunt/lab"
)

// pin restricts every thread of the pods' processes to these CPUs. If a client and a server
// share one CPU, the time of an exchange is the sum of the work on its path. On several CPUs
// the time depends more on the CPU on which the scheduler wakes the server.
func pin(cpus *unix.CPUSet, pods ...*lab.Pod) error {
	for _, p := range pods {
		err := eachThread(p.Cgroup(), func(tid int) error { return unix.SchedSetaffinity(tid, cpus) })
		if err != nil {
			return fmt.Errorf("give pod %s its CPUs: %w", p.Name(), err)
		}
	}
	return nil
}

// yielding sets SCHED_BATCH for a server, so that the server never preempts its client when
// the kernel wakes the server. Without SCHED_BATCH, connect(2) takes twice as long whenever
// the scheduler runs accept in the server before connect has returned.
func yielding(p *lab.Pod) error {
	err := eachThread(p.Cgroup(), func(tid int) error {
		return unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_BATCH}, 0)
	})
	if err != nil {
		return fmt.Errorf("schedule the server of pod %s as a batch: %w", p.Name(), err)
	}
	return nil
}

// eachThread calls fn for every thread of the processes in a cgroup. It ignores ESRCH from
// fn: the thread has ended.
func eachThread(dir string, fn func(tid int) error) error {
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, pid := range strings.Fields(string(procs)) {
		threads, err := os.ReadDir(filepath.Join("/proc", pid, "task"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has ended
		}
		if err != nil {
			return err
		}
		for _, t := range threads {
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				return err
			}
			if err := fn(tid); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("thread %d: %w", tid, err)
			}
		}
	}
	return nil
}

// oneOf returns the nth CPU of a set, modulo its size.
func oneOf(all *unix.CPUSet, n int) *unix.CPUSet {
	var one unix.CPUSet
	n %= all.Count()
	for cpu := 0; ; cpu++ {
		if all.IsSet(cpu) {
			if n == 0 {
				one.Set(cpu)
				return &one
			}
			n--
		}
	}
}
