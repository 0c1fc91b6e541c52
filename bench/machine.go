// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"shunt/lab"
)

// Machine describes where a run was.
type Machine struct {
	Kernel string `json:"kernel"`
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	// MemoryMiB is the total, AvailableMiB what was available at the start.
	MemoryMiB    int    `json:"memoryMiB"`
	AvailableMiB int    `json:"availableMiB"`
	Go           string `json:"go"`
	Arch         string `json:"arch"`
	// Load is the one-minute load average at the start: the load of other processes.
	Load string `json:"loadAverage"`
}

func readMachine() (Machine, error) {
	m := Machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), Arch: runtime.GOARCH}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return m, fmt.Errorf("uname: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(uts.Release[:])
	mem, err := fields("/proc/meminfo", ":")
	if err != nil {
		return m, err
	}
	m.MemoryMiB, m.AvailableMiB = int(kib(mem["MemTotal"])/1024), int(kib(mem["MemAvailable"])/1024)
	if cpu, err := fields("/proc/cpuinfo", ":"); err == nil {
		m.CPU = cpu["model name"]
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load, _, _ = strings.Cut(string(load), " ")
	}
	return m, nil
}

// fields reads lines of "name SEPARATOR value". The first line of a name counts.
func fields(path, separator string) (map[string]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for line := range strings.Lines(string(data)) {
		name, value, ok := strings.Cut(line, separator)
		name = strings.TrimSpace(name)
		if _, seen := all[name]; ok && !seen {
			all[name] = strings.TrimSpace(value)
		}
	}
	return all, nil
}

// kib parses "123 kB".
func kib(text string) float64 {
	v, _ := strconv.ParseFloat(strings.TrimSuffix(text, " kB"), 64)
	return v
}

// kernelMemory returns the memory in MiB that the kernel uses and cannot reclaim, which
// includes netfilter's rules.
func kernelMemory() (float64, error) {
	mem, err := fields("/proc/meminfo", ":")
	if err != nil {
		return 0, err
	}
	return (kib(mem["SUnreclaim"]) + kib(mem["VmallocUsed"]) + kib(mem["Percpu"])) / 1024, nil
}

// residentMemory returns the resident memory of a process in MiB. It includes eBPF maps
// that the process has mapped.
func residentMemory(pid int) (float64, error) {
	status, err := fields(fmt.Sprintf("/proc/%d/status", pid), ":")
	return kib(status["VmRSS"]) / 1024, err
}

// mapMemory returns the memory of the eBPF maps that a process has open, in MiB.
func mapMemory(pid int) (float64, error) {
	dir := fmt.Sprintf("/proc/%d/fdinfo", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	seen, sum := map[string]bool{}, 0.0
	for _, e := range entries {
		info, err := fields(filepath.Join(dir, e.Name()), ":")
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed since ReadDir
		}
		if err != nil {
			return 0, err
		}
		if id := info["map_id"]; id != "" && !seen[id] {
			seen[id] = true
			bytes, err := strconv.ParseFloat(info["memlock"], 64)
			if err != nil {
				return 0, fmt.Errorf("%s/%s: memlock of a map: %w", dir, e.Name(), err)
			}
			sum += bytes / (1 << 20)
		}
	}
	return sum, nil
}

// busyTime returns the CPU time that the machine has spent since boot, in seconds of all
// CPUs together, interrupts included. Its resolution is the kernel's tick.
func busyTime() (float64, error) {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		return 0, fmt.Errorf("read /proc/stat: %w", err)
	}
	// cpu user nice system idle iowait irq softirq steal guest guest_nice
	words := strings.Fields(line)
	if len(words) < 8 {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	sum := 0.0
	for i, w := range words[1:8] {
		if i == 3 || i == 4 { // idle, iowait
			continue
		}
		v, err := strconv.ParseFloat(w, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat begins with %q: %w", line, err)
		}
		sum += v
	}
	return sum / userHZ, nil
}

// userHZ is the unit of /proc/stat on every architecture of Go.
const userHZ = 100

// packetsOf returns how many packets a pod's device has sent and received.
func packetsOf(p *lab.Pod) (n float64, err error) {
	err = p.Do(func() error {
		devices, err := fields("/proc/thread-self/net/dev", ":")
		if err != nil {
			return err
		}
		// Eight numbers of received traffic (bytes, packets, ...), then eight of sent
		// traffic.
		words := strings.Fields(devices["eth0"])
		if len(words) < 10 {
			return fmt.Errorf("no eth0 in /proc/net/dev of %s", p.Name())
		}
		for _, i := range []int{1, 9} {
			v, err := strconv.ParseFloat(words[i], 64)
			if err != nil {
				return fmt.Errorf("packets of %s's eth0: %w", p.Name(), err)
			}
			n += v
		}
		return nil
	})
	return n, err
}
