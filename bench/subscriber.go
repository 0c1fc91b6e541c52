// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"shunt/bpf"
	"shunt/lab"
	"shunt/maps"
)

// subscriber is a contender that is a separate program and watches the API server.
type subscriber struct {
	name string
	node *lab.Node
	api  *apiServer
	// args returns the command line for a workload. clean removes what the program leaves.
	args  func(w *workload, kubeconfig string) []string
	clean func(context.Context, *lab.Pod) error

	host  *lab.Pod // the pod of the program, one for each load
	tools *lab.Pod // the pod in which clean runs
	relay *relay
	cmd   *lab.Cmd
	said  *lab.Tail
}

// errLabClosed means that an interrupt closed the lab before the process was started.
var errLabClosed = errors.New("the lab is closed")

// kubeProxyArgs returns kube-proxy's arguments. They differ from a cluster's only so that
// it can work in a network namespace, where some sysctls are missing.
func kubeProxyArgs(program, mode string) func(*workload, string) []string {
	return func(_ *workload, kubeconfig string) []string {
		return []string{program, "--kubeconfig", kubeconfig, "--hostname-override", nodeName, "--proxy-mode", mode,
			"--cluster-cidr", lab.ClusterCIDR4.String(), "--nodeport-addresses", "192.168.100.0/24",
			"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
			"--oom-score-adj=0"}
	}
}

func (s *subscriber) load(_ context.Context, w *workload) (step, error) {
	if s.tools == nil {
		s.tools = s.node.HostPod("clean")
		var err error
		if s.relay, err = newRelay(s.node, s.api.upstream); err != nil {
			return nil, err
		}
	}
	bpffs := s.node.BPFFS()
	if bpffs == "" {
		return nil, errLabClosed
	}
	kubeconfig := filepath.Join(filepath.Dir(bpffs), "kubeconfig-"+s.name)
	if err := s.api.kubeconfig(kubeconfig, s.relay.addr()); err != nil {
		return nil, err
	}
	args := s.args(w, kubeconfig)
	return func(ctx context.Context) error {
		s.said = &lab.Tail{}
		s.host = s.node.HostPod(s.name)
		s.cmd = s.host.Command(ctx, args[0], args[1:]...)
		s.cmd.Stdout, s.cmd.Stderr = s.said, s.said
		return s.cmd.Start()
	}, nil
}

// update writes the change to the API server.
func (s *subscriber) update(_, after *workload) (step, error) {
	return func(ctx context.Context) error { return s.api.move(ctx, after) }, nil
}

func (s *subscriber) memory() (memoryUse, error) {
	process, err := residentMemory(s.cmd.PID())
	if err != nil {
		return cannotTell, err
	}
	use := memoryUse{process, -1}
	if s.name == nameShuntAPI {
		use.kernel, err = mapMemory(s.cmd.PID())
	}
	return use, err
}

func (s *subscriber) unload(ctx context.Context) error {
	if s.cmd == nil {
		return nil
	}
	cmd := s.cmd
	s.cmd = nil
	err := cmd.Signal(syscall.SIGCONT)
	_ = cmd.Stop(endDeadline) // after SIGTERM, kube-proxy's exit status reports the signal
	s.host.Remove()           // also ends a tool that it still runs
	return errors.Join(err, s.clean(ctx, s.tools))
}

// pause stops the process, so that it takes no CPU from others. Its rules and programs stay
// in the kernel.
func (s *subscriber) pause() error { return s.cmd.Signal(syscall.SIGSTOP) }

func (s *subscriber) resume() error { return s.cmd.Signal(syscall.SIGCONT) }

// ended returns a context that ends with the process, with the reason as its cause.
func (s *subscriber) ended(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	cmd := s.cmd
	go func() {
		select {
		case <-cmd.Done():
			cancel(fmt.Errorf("%s ended: %w%s", s.name, cmp.Or(cmd.Wait(), errors.New("exit status 0")), s.said))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// Limits of settle. A process is idle if it uses less than a tenth of a CPU in each of
// three periods. Together these are much longer than kube-proxy's pause between two syncs
// (a second): a small sync in the first period has finished, and the next change need not
// wait.
const (
	idlePeriod   = 600 * time.Millisecond
	idlePeriods  = 3
	idleShare    = 0.1
	idleDeadline = time.Minute
)

// settle waits until the process is idle.
func (s *subscriber) settle(ctx context.Context) error {
	deadline := time.Now().Add(idleDeadline)
	before, err := spentBy(s.cmd.PID())
	for idle := 0; err == nil && idle < idlePeriods; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(idlePeriod):
		}
		var now float64
		if now, err = spentBy(s.cmd.PID()); err != nil {
			break
		}
		idle++
		if now-before > idleShare*idlePeriod.Seconds() {
			idle = 0
		}
		before = now
		if time.Now().After(deadline) {
			return nil // it may always be busy
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w%s", s.name, err, s.said)
	}
	return nil
}

// spentBy returns the CPU time of a process and of its children that have ended, in
// seconds.
func spentBy(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in brackets, may contain spaces. After it come the fields from the third
	// on: utime, stime, cutime and cstime are 14 to 17.
	_, rest, _ := strings.Cut(string(data), ") ")
	words := strings.Fields(rest)
	if len(words) < 15 {
		return 0, fmt.Errorf("/proc/%d/stat is %q", pid, data)
	}
	sum := 0.0
	for _, w := range words[11:15] {
		v, err := strconv.ParseFloat(w, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat is %q: %w", pid, data, err)
		}
		sum += v
	}
	return sum / userHZ, nil
}

// shuntArgs returns the command line of this program's own daemon.
func shuntArgs(node *lab.Node) func(*workload, string) []string {
	return func(w *workload, kubeconfig string) []string {
		size := sizesFor(w)
		args := []string{"/proc/self/exe", "run", "--kubeconfig", kubeconfig, "--node-name", nodeName,
			"--cgroup-root", node.Cgroup(), "--bpffs-root", shuntRoot(node), "--cluster-cidr", lab.ClusterCIDR4.String()}
		for flag, n := range map[string]uint32{maps.FlagServices: size.Services, maps.FlagSlots: size.Slots,
			maps.FlagBackends: size.Backends} {
			args = append(args, flag, strconv.FormatUint(uint64(n), 10))
		}
		return args
	}
}

func shuntRoot(node *lab.Node) string { return filepath.Join(node.BPFFS(), "shunt") }

func cleanShunt(node *lab.Node) func(context.Context, *lab.Pod) error {
	return func(context.Context, *lab.Pod) error {
		root := shuntRoot(node)
		return errors.Join(bpf.Detach(root), os.RemoveAll(root))
	}
}

// cleanRules removes all rules from the node's network namespace.
func cleanRules(ctx context.Context, host *lab.Pod) error {
	empty := "*mangle\nCOMMIT\n*filter\nCOMMIT\n*nat\nCOMMIT\n"
	var errs []error
	for _, t := range []struct{ input, tool string }{
		{empty, "iptables-restore"}, {empty, "ip6tables-restore"}, {"flush ruleset\n", "nft"}} {
		if _, err := exec.LookPath(t.tool); err != nil {
			continue // then there are no such rules
		}
		args := []string{"-w", "5"}
		if t.tool == "nft" {
			args = []string{"-f", "-"}
		}
		errs = append(errs, toolStep(host, t.input, t.tool, args...)(ctx))
	}
	return errors.Join(errs...)
}
