// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// forker starts processes from one OS thread that exists as long as the lab. A child inherits
// the network namespace of the thread that forks it. The kernel sends the child its
// parent-death signal when that thread ends, not when the process ends: a thread that the
// runtime chooses may end at any time.
type forker struct {
	mu     sync.Mutex
	closed bool
	jobs   chan func()
	home   *os.File // the network namespace that the thread came from
}

func newForker() (*forker, error) {
	f := &forker{jobs: make(chan func())}
	ready := make(chan error)
	go f.run(ready)
	return f, <-ready
}

func (f *forker) run(ready chan error) {
	runtime.LockOSThread()
	var err error
	f.home, err = os.Open("/proc/thread-self/ns/net")
	ready <- err
	if err != nil {
		runtime.UnlockOSThread()
		return
	}
	defer f.home.Close()
	for job := range f.jobs {
		job()
	}
	// If this fails the thread ends with this goroutine.
	if unix.Setns(int(f.home.Fd()), unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	}
}

// stop ends the thread, after all processes that it started.
func (f *forker) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed = true
		close(f.jobs)
	}
}

// start starts cmd in a network namespace.
func (f *forker) start(cmd *exec.Cmd, space *netns) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return errors.New("the lab is closed")
	}
	done := make(chan error, 1)
	f.jobs <- func() {
		if err := unix.Setns(int(space.handle.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", space.name, err)
			return
		}
		err := cmd.Start()
		// If this fails, the next job still switches to the namespace it needs.
		_ = unix.Setns(int(f.home.Fd()), unix.CLONE_NEWNET)
		done <- err
	}
	return <-done
}

// stopTimeout bounds the time until killed processes have ended.
const stopTimeout = 10 * time.Second

// Cmd is a process in a pod, like exec.Cmd. It is killed when its context, the lab, or this
// process ends.
type Cmd struct {
	// Env is the environment. Nil means this process's own.
	Env []string
	// Dir is the working directory. Empty means this process's own.
	Dir string
	// Stdin, Stdout and Stderr are as in exec.Cmd.
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	pod    *Pod
	cmd    *exec.Cmd
	done   chan struct{}
	err    error // of Wait, once done is closed
	cancel func()
}

// Command prepares a process in the pod's network namespace and cgroup. It shares
// everything else with this process: mounts, file systems, process ids.
func (p *Pod) Command(ctx context.Context, path string, args ...string) *Cmd {
	ctx, cancel := context.WithCancel(ctx)
	c := &Cmd{pod: p, cmd: exec.CommandContext(ctx, path, args...), done: make(chan struct{}), cancel: cancel}
	// Wait must return even if a grandchild holds a pipe open.
	c.cmd.WaitDelay = 2 * time.Second
	return c
}

// Start starts the process.
func (c *Cmd) Start() error {
	if err := c.start(); err != nil {
		c.cancel()
		return fmt.Errorf("start %s in pod %s: %w", c.cmd.Path, c.pod.name, err)
	}
	return nil
}

func (c *Cmd) start() error {
	l := c.pod.lab
	if err := l.Err(); err != nil {
		return err
	}
	dir, err := os.Open(c.pod.cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	c.cmd.Env, c.cmd.Dir = c.Env, c.Dir
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig:   syscall.SIGKILL,
		UseCgroupFD: true,
		CgroupFD:    int(dir.Fd()),
	}
	// Under the lock, so that Close finds every process that was started.
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.ctx.Err(); err != nil {
		return fmt.Errorf("the lab is closed: %w", err)
	}
	if err := l.fork.start(c.cmd, c.pod.space); err != nil {
		return err
	}
	l.procs[c] = struct{}{}
	unlink := context.AfterFunc(l.ctx, c.cancel)
	go func() {
		c.err = c.cmd.Wait()
		unlink()
		c.cancel()
		close(c.done)
	}()
	return nil
}

// Wait waits for the process that Start started and for its output to be
// copied; its errors are those of exec.Cmd.Wait. It may be called repeatedly.
func (c *Cmd) Wait() error {
	<-c.done
	return c.err
}

// Run starts the process and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Done is closed when a started process has ended.
func (c *Cmd) Done() <-chan struct{} { return c.done }

// PID is the process id; it is only valid once Start has returned without error.
func (c *Cmd) PID() int { return c.cmd.Process.Pid }

// Signal sends a signal. It returns os.ErrProcessDone if the process has ended.
func (c *Cmd) Signal(sig os.Signal) error { return c.cmd.Process.Signal(sig) }

// Stop sends SIGTERM and, after the grace period, SIGKILL. It waits for the end and returns
// the error of Wait.
func (c *Cmd) Stop(grace time.Duration) error {
	_ = c.Signal(syscall.SIGTERM) // fails if it has ended
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
		c.cancel()
	}
	return c.Wait()
}

// reap waits for the commands, which the lab's context has killed.
func (l *Lab) reap() error {
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	for c := range l.procs {
		select {
		case <-c.done:
		case <-timer.C:
			return fmt.Errorf("process %d did not end within %v of being killed", c.PID(), stopTimeout)
		}
	}
	return nil
}
