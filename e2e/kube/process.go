// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
)

// process is a child that cannot outlive this process. A nil process has ended.
type process struct {
	name string
	pid  int
	os   *os.Process
	log  string
	done chan struct{} // closed when it has ended and was waited for
	err  error         // the result of its end; valid after done
}

// startProcess runs a program in a directory, with its output appended to
// <directory>/<name>.log.
func startProcess(dir, name, program string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open a log for %s: %w", name, err)
	}
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	// Its own process group: Ctrl-C must reach only this process, and the child ends with
	// it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	started := make(chan error, 1)
	go func() {
		defer close(p.done)
		defer func() { _ = log.Close() }()
		// The parent-death signal is sent when the thread that made the child ends, so this
		// goroutine keeps its thread until the child is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid, p.os = cmd.Process.Pid, cmd.Process
		started <- nil
		p.err = cmd.Wait()
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s (%s): %w", name, program, err)
	}
	return p, nil
}

// alive reports whether it was started and has not ended.
func (p *process) alive() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// kill kills it and returns when it is gone.
func (p *process) kill() {
	if p.alive() {
		_ = p.os.Kill() // it may have ended by itself
		<-p.done
	}
}

// terminate sends SIGTERM and waits. When the context ends first, it kills the process.
func (p *process) terminate(ctx context.Context) error {
	if !p.alive() {
		return nil
	}
	if err := p.os.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ask %s (pid %d) to end: %w", p.name, p.pid, err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		p.kill()
		return fmt.Errorf("%s was killed, since it did not end when asked: %w", p.name, ctx.Err())
	}
}

// failure describes an unexpected end.
func (p *process) failure() error {
	reason := "exit status 0"
	if p.err != nil {
		reason = p.err.Error()
	}
	return fmt.Errorf("%s ended (%s); its last words:\n%s", p.name, reason, tail(p.log))
}

// tail returns the last 4 KiB of a file, or the error.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil {
		_, _ = f.Seek(max(0, info.Size()-4096), io.SeekStart)
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(text)
}
