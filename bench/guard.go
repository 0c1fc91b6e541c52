// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"shunt/bpf"
)

// Preflight returns an error if a run could disturb this machine or would not measure the
// contenders alone. pins is the directory of the maps of a daemon on this machine.
func Preflight(o Options, pins string) error {
	if err := o.Check(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("the benchmark makes network namespaces and loads eBPF programs and rules, which needs root: sudo " +
			"shunt bench")
	}
	m, err := readMachine()
	if err != nil {
		return err
	}
	if need := needMiB(&o); m.AvailableMiB < need {
		return fmt.Errorf("%v need some %d MiB, and %d are available: ask for less by --services or --endpoints",
			o.setup().largest(), need, m.AvailableMiB)
	}
	for _, file := range []string{o.Kubeconfig, o.KubeProxy} {
		if file == "" {
			continue
		}
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("what takes part is not there: %w", err)
		}
	}
	if err := noProxy("/proc"); err != nil {
		return err
	}
	lock, err := bpf.TakeLock(pins)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("no benchmark on a machine at work: %w", err)
	}
	return lock.Release()
}

// needMiB returns a rough upper bound of the memory that a run needs, in MiB. Most of it is for
// iptables-restore and the kernel's form of the rules; with an API server it includes that
// server and the daemons that watch it.
func needMiB(o *Options) int {
	endpoints := slices.Max(o.Services) * slices.Max(o.Endpoints)
	need := 400 + endpoints*12/1024 + slices.Max(o.Services)*16/1024
	if o.Kubeconfig != "" {
		need += 1000 + endpoints*12/1024 + slices.Max(o.Services)*100/1024
	}
	return need
}

// noProxy returns an error if a service proxy runs in this network namespace. Those in
// other namespaces (a test's, a node of kind) do not count.
func noProxy(proc string) error {
	own, err := os.Readlink(filepath.Join(proc, "self/ns/net"))
	if err != nil {
		return fmt.Errorf("find out whether a proxy is at work: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(proc, "[0-9]*/cmdline"))
	if err != nil {
		return err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		name := proxyName(strings.Split(string(data), "\x00"))
		if name == "" {
			continue
		}
		dir := filepath.Dir(file)
		if space, err := os.Readlink(filepath.Join(dir, "ns/net")); err == nil && space == own {
			return fmt.Errorf("no benchmark on a machine at work: %s runs here (process %s), and each would disturb the "+
				"other: stop it, or measure elsewhere",
				name, filepath.Base(dir))
		}
	}
	return nil
}

// proxyName returns the name of the service proxy with that command line, empty if it is
// none.
func proxyName(args []string) string {
	switch base := filepath.Base(args[0]); {
	case base == "kube-proxy":
		return base
	case base == "shunt" && len(args) > 1 && args[1] == "run":
		return "shunt run"
	}
	return ""
}
