// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"
	stdmaps "maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"shunt/lb"
)

// sink is an lb.Sink that records its calls and checks the models.
type sink struct {
	t *testing.T

	mu       sync.Mutex
	calls    []string // in order
	services map[lb.ServiceName]*lb.Service
	slices   map[lb.SliceName]*lb.EndpointSlice
	node     *lb.Node
	cidrs    []netip.Prefix
	cidrsSet int
	synced   int
}

var _ lb.Sink = (*sink)(nil)

func newSink(t *testing.T) *sink {
	return &sink{t: t, services: make(map[lb.ServiceName]*lb.Service), slices: make(map[lb.SliceName]*lb.EndpointSlice)}
}

func (s *sink) call(format string, args ...any) {
	s.calls = append(s.calls, fmt.Sprintf(format, args...))
}

func (s *sink) SetService(m *lb.Service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := checkService(m); err != nil {
		s.t.Errorf("SetService(%s): %v", m.Name, err)
	}
	if m.NotServed {
		s.call("leave service %s", m.Name)
	} else {
		s.call("set service %s", m.Name)
	}
	s.services[m.Name] = m
}

func (s *sink) DeleteService(n lb.ServiceName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.call("delete service %s", n)
	delete(s.services, n)
}

func (s *sink) SetSlice(m *lb.EndpointSlice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := checkSlice(m); err != nil {
		s.t.Errorf("SetSlice(%s): %v", m.Name, err)
	}
	s.call("set slice %s", m.Name)
	s.slices[m.Name] = m
}

func (s *sink) DeleteSlice(n lb.SliceName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.call("delete slice %s", n)
	delete(s.slices, n)
}

func (s *sink) SetNode(n *lb.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n == nil {
		s.call("no node")
	} else {
		s.call("set node %s", n.Name)
	}
	s.node = n
}

func (s *sink) SetServiceCIDRs(ranges []netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cidrs = slices.SortedFunc(slices.Values(ranges), netip.Prefix.Compare)
	s.cidrsSet++
}

func (s *sink) SetSynced() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.call("synced")
	s.synced++
}

// service returns the last model of a service, nil if there is none.
func (s *sink) service(n lb.ServiceName) *lb.Service {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.services[n]
}

// sliceNames returns the names of the slices that were set and not deleted.
func (s *sink) sliceNames() []lb.SliceName {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(stdmaps.Keys(s.slices))
}

// take returns the calls since the last take.
func (s *sink) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

// deadline bounds every wait of a test. A test waits that long only if it fails.
const deadline = 20 * time.Second

// eventually polls until ok returns true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	within(t, deadline, what, ok)
}

// within is eventually with another limit.
func within(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within %v: %s", limit, what)
}

// next waits for these calls, in any order, and checks that there are no others.
func (s *sink) next(want ...string) {
	s.t.Helper()
	var got []string
	for end := time.Now().Add(deadline); time.Now().Before(end) && len(got) < len(want); time.Sleep(2 * time.Millisecond) {
		got = append(got, s.take()...)
	}
	s.same(got, want)
}

func (s *sink) same(got, want []string) {
	s.t.Helper()
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		s.t.Fatalf("calls:\n got %q\nwant %q", got, want)
	}
}

// testLog returns a logger whose lines a test can read.
func testLog(level zapcore.Level) (*zap.Logger, *observer.ObservedLogs) {
	core, logs := observer.New(level)
	return zap.New(core), logs
}

// said counts the lines of a log that contain a text, in message or fields.
func said(logs *observer.ObservedLogs, text string) int {
	n := 0
	for _, e := range logs.All() {
		line := e.Message
		values := e.ContextMap()
		for _, k := range slices.Sorted(stdmaps.Keys(values)) {
			line += fmt.Sprintf(" %s=%v", k, values[k])
		}
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}
