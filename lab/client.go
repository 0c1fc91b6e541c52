// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// agentConn is the connection to the agent of one pod.
type agentConn struct {
	cmd    *Cmd
	in     *os.File
	stderr *Tail

	mu      sync.Mutex
	last    uint64
	pending map[uint64]chan response
	dead    bool
}

// startAgent returns the pod's agent. The first call starts it.
func (p *Pod) startAgent() (*agentConn, error) {
	p.agentMu.Lock()
	defer p.agentMu.Unlock()
	if err := p.lab.Err(); err != nil {
		return nil, err
	}
	if p.removed {
		return nil, fmt.Errorf("pod %s was removed", p.name)
	}
	if p.agent != nil {
		return p.agent, nil
	}
	// /proc/self/exe names this executable even after its file was replaced.
	cmd := p.Command(p.lab.ctx, "/proc/self/exe")
	a := &agentConn{cmd: cmd, stderr: &Tail{}, pending: map[uint64]chan response{}}
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
	// No garbage collection within the memory that a run needs, and no signals that preempt
	// goroutines: both would disturb measurements.
	cmd.Env = append(os.Environ(), agentEnv+"="+p.name,
		"GOGC=off", "GOMEMLIMIT=256MiB", "GODEBUG=asyncpreemptoff=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = inRead, outWrite, a.stderr
	if err := cmd.Start(); err != nil {
		inWrite.Close()
		outRead.Close()
		return nil, err
	}
	a.in = inWrite
	go a.read(outRead)
	p.agent = a
	return a, nil
}

// read delivers responses until the agent ends.
func (a *agentConn) read(out *os.File) {
	defer out.Close()
	lines := json.NewDecoder(out)
	for {
		var r response
		if err := lines.Decode(&r); err != nil {
			break
		}
		a.mu.Lock()
		ch := a.pending[r.ID]
		delete(a.pending, r.ID)
		a.mu.Unlock()
		if ch != nil {
			ch <- r // has a buffer of one
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dead = true
	a.in.Close()
	for _, ch := range a.pending {
		close(ch)
	}
	a.pending = nil
}

// call runs one operation in the pod. When ctx ends it asks the agent to cancel the
// operation and returns the result up to then: every operation is bounded.
func (p *Pod) call(ctx context.Context, op string, args, result any) error {
	a, err := p.startAgent()
	if err != nil {
		return err
	}
	raw, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	id, answer, err := a.send(op, raw)
	if err == nil {
		var r response
		var ok bool
		select {
		case r, ok = <-answer:
		case <-ctx.Done():
			_ = a.write(request{ID: id, Cancel: true}) // if the agent is dead, answer is closed
			r, ok = <-answer
		}
		switch {
		case !ok:
			err = io.ErrUnexpectedEOF
		case r.Err != nil:
			return r.Err
		default:
			return json.Unmarshal(r.Result, result)
		}
	}
	return fmt.Errorf("%s: the agent of pod %s is gone: %w%s", op, p.name, err, a.stderr)
}

func (a *agentConn) send(op string, args json.RawMessage) (uint64, chan response, error) {
	answer := make(chan response, 1)
	a.mu.Lock()
	if a.dead {
		a.mu.Unlock()
		return 0, nil, errors.New("its output has ended")
	}
	a.last++
	id := a.last
	a.pending[id] = answer
	a.mu.Unlock()
	return id, answer, a.write(request{ID: id, Op: op, Args: args})
}

func (a *agentConn) write(r request) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_, err = a.in.Write(append(line, '\n'))
	return err
}

// Tail keeps the last bytes that a process wrote to it.
type Tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 4096

// Write never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if extra := len(t.buf) - tailSize; extra > 0 {
		t.buf = t.buf[extra:]
	}
	return len(p), nil
}

// String returns the text with a prefix, to append it to a message.
func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if text := bytes.TrimSpace(t.buf); len(text) > 0 {
		return "\nit said: " + string(text)
	}
	return ""
}
