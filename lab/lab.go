// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// T is the part of a test that a lab needs. *testing.T and *testing.B implement it.
type T interface {
	Helper()
	Cleanup(func())
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Options of New.
type Options struct {
	// Logf receives the output of the lab's own processes. Nil discards it.
	Logf func(format string, args ...any)
	// CloseOnSignal closes the lab on SIGINT and SIGTERM and then lets the signal end this
	// process. Without it the caller must make sure that Close runs.
	CloseOnSignal bool
}

// Lab is a set of nodes, pods and clients.
//
// Methods that create something (Node, Pod, Client, Serve, Socket, BPFFS …) return no error.
// If one fails, the lab records the first error (see Err) and later calls do nothing, so that
// a topology needs few lines and one check. In a lab of ForTest the test fails at once.
type Lab struct {
	t     T
	state *state
	fork  *forker

	ctx    context.Context
	cancel context.CancelFunc
	close  func() error

	mu      sync.Mutex // serializes changes to the topology
	network Network
	nodes   []*Node
	clients int
	wire    *netns
	spaces  []*netns
	procs   map[*Cmd]struct{}

	errMu sync.Mutex
	err   error
}

// New calls Sweep and then creates an empty lab. When ctx ends, the processes in the lab are
// killed, but the lab remains: the caller must call Close, even if another call has failed.
func New(ctx context.Context, opts Options) (*Lab, error) {
	return newLab(ctx, noTest{opts.Logf}, opts.CloseOnSignal)
}

// ForTest creates a lab that is closed at the end of the test, and when the test process is
// interrupted. The test fails if something cannot be created, so ForTest and the lab's methods
// must be called from the test's own goroutine, like t.Fatal.
func ForTest(t T) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("network namespaces and cgroups need root: skipped")
	}
	l, err := newLab(context.Background(), t, true)
	if err != nil {
		t.Fatalf("make a lab: %v", err)
		return nil
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Logf("lab %s was not removed completely: %v", l.ID(), err)
		}
	})
	return l
}

// noTest is the T of a lab outside tests.
type noTest struct{ logf func(string, ...any) }

func (noTest) Helper()               {}
func (noTest) Cleanup(func())        {}
func (noTest) Fatalf(string, ...any) {}
func (noTest) Skipf(string, ...any)  {}
func (n noTest) Logf(format string, args ...any) {
	if n.logf != nil {
		n.logf(format, args...)
	}
}

func newLab(ctx context.Context, t T, onSignal bool) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces and cgroups need root: run as root")
	}
	if _, err := Sweep(); err != nil {
		t.Logf("remove what earlier labs left: %v", err)
	}
	if err := ensureNetnsDir(); err != nil {
		return nil, err
	}
	root, err := findCgroup2()
	if err != nil {
		return nil, err
	}
	l := &Lab{t: t, procs: map[*Cmd]struct{}{}}
	if l.state, err = newState(root); err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	l.ctx, l.cancel = context.WithCancel(ctx)
	l.close = sync.OnceValue(l.closeOnce)
	if onSignal {
		if err := interrupts.add(l); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	if err := l.begin(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) begin() error {
	if err := makeCgroup(l.state.cgroup); err != nil {
		return err
	}
	var err error
	if l.fork, err = newForker(); err != nil {
		return err
	}
	return l.makeWire()
}

// ID returns the lab's id. It is part of the name of everything that belongs to the lab.
func (l *Lab) ID() string { return l.state.id }

// Dir returns a directory of the lab, on no particular file system, which is removed with
// it.
func (l *Lab) Dir() string {
	dir := filepath.Join(l.state.dir, "files")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		l.t.Helper()
		l.fail(err)
	}
	return dir
}

// Cgroup returns the cgroup directory above those of all the lab's nodes and clients.
func (l *Lab) Cgroup() string { return l.state.cgroup }

// Err returns the first failure to make something.
func (l *Lab) Err() error {
	l.errMu.Lock()
	defer l.errMu.Unlock()
	return l.err
}

func (l *Lab) fail(err error) {
	l.t.Helper()
	l.errMu.Lock()
	if l.err == nil {
		l.err = err
	}
	l.errMu.Unlock()
	l.t.Fatalf("lab: %v", err)
}

// Close ends every process in the lab and removes everything that the lab made. It may be
// called more than once and from several goroutines: all wait for the first call.
func (l *Lab) Close() error { return l.close() }

func (l *Lab) closeOnce() error {
	interrupts.remove(l)
	l.cancel() // kills the commands
	l.mu.Lock()
	defer l.mu.Unlock()
	// Also processes that the commands started: they may hold the pipes that reap waits
	// for.
	errs := []error{killCgroup(l.state.cgroup), l.reap()}
	for _, n := range l.spaces {
		errs = append(errs, n.remove())
	}
	errs = append(errs, l.state.remove())
	if l.fork != nil {
		l.fork.stop()
	}
	return errors.Join(errs...)
}
