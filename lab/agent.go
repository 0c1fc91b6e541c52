// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// agentEnv is the environment variable that makes a process an agent. Its value is the pod's
// name.
const agentEnv = "SHUNT_LAB_AGENT"

// MaybeAgent turns this process into the agent of a pod if a lab started it as
// one, and then never returns. A program that uses a lab calls it first in main,
// a test package first in TestMain, before anything is written to the standard
// output: a lab's agents are this same executable.
func MaybeAgent() {
	name, ok := os.LookupEnv(agentEnv)
	if !ok {
		return
	}
	if err := serveAgent(name, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "lab agent of pod %s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// agent runs a lab's requests inside a pod.
type agent struct {
	name string

	outMu sync.Mutex
	out   *json.Encoder

	mu      sync.Mutex
	running map[uint64]context.CancelFunc
	last    uint64 // handle
	servers map[uint64]*server
	sockets map[uint64]*socket
	held    map[uint64]*held
	moved   map[uint64]*transfer
}

// handler runs one request.
type handler func(*agent, context.Context, json.RawMessage) (any, error)

func handle[A, R any](fn func(*agent, context.Context, A) (R, error)) handler {
	return func(a *agent, ctx context.Context, raw json.RawMessage) (any, error) {
		var args A
		if err := json.Unmarshal(raw, &args); err != nil {
			return nil, fmt.Errorf("arguments: %w", err)
		}
		return fn(a, ctx, args)
	}
}

var handlers = map[string]handler{
	"serve":           handle((*agent).serve),
	"serve.stop":      handle((*agent).serveStop),
	"serve.count":     handle((*agent).serveCount),
	"request":         handle((*agent).request),
	"hammer":          handle((*agent).hammer),
	"compare":         handle((*agent).compare),
	"pour":            handle((*agent).pour),
	"await":           handle((*agent).await),
	"netns.cookie":    handle((*agent).netnsCookie),
	"socket":          handle((*agent).socketOpen),
	"socket.call":     handle((*agent).socketCall),
	"socket.close":    handle((*agent).socketClose),
	"socket.cookie":   handle((*agent).socketCookie),
	"hold":            handle((*agent).hold),
	"hold.ask":        handle((*agent).holdAsk),
	"hold.close":      handle((*agent).holdClose),
	"transfer":        handle((*agent).transfer),
	"transfer.bytes":  handle((*agent).transferBytes),
	"transfer.paused": handle((*agent).transferPaused),
	"transfer.resume": handle((*agent).transferResume),
	"transfer.wait":   handle((*agent).transferWait),
	"flood":           handle((*agent).flood),
}

// serveAgent answers requests until EOF on in, which means that the lab's process has
// closed the pipe or ended.
func serveAgent(name string, in io.Reader, out io.Writer) error {
	a := &agent{
		name:    name,
		out:     json.NewEncoder(out),
		running: map[uint64]context.CancelFunc{},
		servers: map[uint64]*server{},
		sockets: map[uint64]*socket{},
		held:    map[uint64]*held{},
		moved:   map[uint64]*transfer{},
	}
	lines := json.NewDecoder(in)
	for {
		var r request
		if err := lines.Decode(&r); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if r.Cancel {
			a.mu.Lock()
			if cancel := a.running[r.ID]; cancel != nil {
				cancel()
			}
			a.mu.Unlock()
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		a.mu.Lock()
		a.running[r.ID] = cancel
		a.mu.Unlock()
		go a.answer(ctx, r)
	}
}

func (a *agent) answer(ctx context.Context, r request) {
	reply := response{ID: r.ID}
	h, ok := handlers[r.Op]
	if !ok {
		reply.Err = &Error{Op: r.Op, Detail: "no such operation"}
	} else if result, err := h(a, ctx, r.Args); err != nil {
		reply.Err = failure(r.Op, err)
	} else if reply.Result, err = json.Marshal(result); err != nil {
		reply.Err = failure(r.Op, err)
	}
	a.mu.Lock()
	a.running[r.ID]() // ends ctx
	delete(a.running, r.ID)
	a.mu.Unlock()
	a.outMu.Lock()
	defer a.outMu.Unlock()
	if err := a.out.Encode(reply); err != nil {
		fmt.Fprintf(os.Stderr, "lab agent of pod %s: answer: %v\n", a.name, err)
	}
}

// nextHandle returns a number that was never used as a handle before.
func (a *agent) nextHandle() uint64 {
	a.last++
	return a.last
}

// none is for operations without arguments or without a result.
type none struct{}
