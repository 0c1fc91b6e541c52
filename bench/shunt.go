// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"shunt/lab"
	"shunt/maps"
)

// shunt is shunt's contender, without a watcher: its process is MaybeProxy.
type shunt struct {
	node *lab.Node
	host *lab.Pod
	run  *running
}

// running is such a process.
type running struct {
	cmd  *lab.Cmd
	in   *os.File
	out  *os.File
	read *json.Decoder
	said lab.Tail
	root string
}

// endDeadline bounds the end of a process that was told to stop.
const endDeadline = 10 * time.Second

// buildVersion returns the revision from which this program was built.
func buildVersion() string {
	version, dirty := "unknown revision", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				version = "revision " + s.Value[:min(12, len(s.Value))]
			case s.Key == "vcs.modified" && s.Value == "true":
				dirty = ", changed"
			}
		}
	}
	return version + dirty + ", " + runtime.Version()
}

// sizesFor returns map sizes that fit the workload twice, for the time of a change.
func sizesFor(w *workload) maps.Sizes {
	d := maps.DefaultSizes()
	grow := func(size *uint32, need int) {
		for int(*size) < need {
			*size *= 2
		}
	}
	grow(&d.Services, 3*w.Services)
	grow(&d.Backends, 2*w.Services*w.Endpoints)
	grow(&d.Slots, 4*w.Services*w.Endpoints)
	return d
}

func (s *shunt) load(ctx context.Context, w *workload) (step, error) {
	if s.node.BPFFS() == "" {
		return nil, errLabClosed
	}
	if s.host == nil {
		s.host = s.node.HostPod("shunt")
	}
	r, err := startRunning(ctx, s.host)
	if err != nil {
		return nil, err
	}
	r.root = shuntRoot(s.node)
	s.run = r
	if err := r.do(proxyTask{Op: "prepare", Workload: *w, Node: nodeName, Sizes: sizesFor(w),
		Root: r.root, Cgroup: s.node.Cgroup()}); err != nil {
		return nil, err
	}
	return func(context.Context) error { return r.do(proxyTask{Op: "load"}) }, nil
}

func (s *shunt) update(_, after *workload) (step, error) {
	return func(context.Context) error { return s.run.do(proxyTask{Op: "update", Workload: *after}) }, nil
}

func (s *shunt) memory() (memoryUse, error) {
	process, err := residentMemory(s.run.cmd.PID())
	if err != nil {
		return cannotTell, err
	}
	kernel, err := mapMemory(s.run.cmd.PID())
	return memoryUse{process, kernel}, err
}

// unload ends the process, which detaches its hooks, and removes the pins.
func (s *shunt) unload(context.Context) error {
	if s.run == nil {
		return nil
	}
	r := s.run
	s.run = nil
	err := r.do(proxyTask{Op: "stop"})
	r.in.Close() // at EOF it ends
	timer := time.NewTimer(endDeadline)
	defer timer.Stop()
	select {
	case <-r.cmd.Done():
		err = errors.Join(err, r.cmd.Wait())
	case <-timer.C:
		err = errors.Join(err, fmt.Errorf("shunt's process did not end within %v", endDeadline), r.cmd.Stop(0))
	}
	r.out.Close()
	return errors.Join(err, os.RemoveAll(r.root))
}

func startRunning(ctx context.Context, host *lab.Pod) (*running, error) {
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer inRead.Close()
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		inWrite.Close()
		return nil, err
	}
	defer outWrite.Close()
	r := &running{in: inWrite, out: outRead, read: json.NewDecoder(outRead)}
	// /proc/self/exe names this executable even after its file was replaced.
	r.cmd = host.Command(ctx, "/proc/self/exe")
	r.cmd.Env = append(os.Environ(), proxyEnv+"=1")
	r.cmd.Stdin, r.cmd.Stdout, r.cmd.Stderr = inRead, outWrite, &r.said
	if err := r.cmd.Start(); err != nil {
		inWrite.Close()
		outRead.Close()
		return nil, err
	}
	return r, nil
}

// do sends a task to the process and waits for the answer.
func (r *running) do(t proxyTask) error {
	var a proxyAnswer
	err := json.NewEncoder(r.in).Encode(t)
	if err == nil {
		err = r.read.Decode(&a)
	}
	if err != nil {
		_ = r.cmd.Stop(time.Second) // then its log is complete
		return fmt.Errorf("shunt's process of the benchmark ended (%s): %w%s", t.Op, err, &r.said)
	}
	if a.Err != "" {
		return fmt.Errorf("shunt, %s: %s", t.Op, a.Err)
	}
	return nil
}
