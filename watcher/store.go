// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// item is a converted API object for a store. It does not reference the API object.
type item[K comparable, M any] struct {
	key      K
	uid      types.UID
	model    *M // nil: nothing of the object is programmed
	warnings []Warning
}

// handling contains the functions that differ between the kinds of object.
type handling[K comparable, M any] struct {
	// convert converts an API object, and returns false for an object of another type.
	convert func(obj any) (item[K, M], bool)
	equal   func(a, b *M) bool
	// set and remove pass a change to the Sink. They return at once.
	set    func(*M)
	remove func(K)
}

// store contains the objects of one kind that a reflector delivers. It replaces an
// informer's queue and cache. It contains the model and shares it with the Sink, so that
// nothing is in memory twice. It compares a new model with the stored model, and calls the
// Sink only if they differ: neither a relist (after a restart of the API server, or a lost
// watch) nor a change of a field that shunt does not use reaches the Sink. Replace finds the
// objects that were deleted between two lists. An object that was deleted and created again
// between two lists has another UID: the store passes the new model, without a removal before,
// so that the object remains programmed.
//
// A reflector calls the store from one goroutine; the lock is for other callers of uid and len.
type store[K comparable, M any] struct {
	handling[K, M]
	reports reporter[K]

	mu   sync.RWMutex
	held map[K]entry[M]
	// heard is called for each list, event and bookmark that the API server sends.
	heard  func()
	once   sync.Once
	synced chan struct{} // closed when the initial list has been passed to the Sink
}

type entry[M any] struct {
	uid   types.UID
	model *M
}

var (
	_ cache.ReflectorStore    = (*store[string, int])(nil)
	_ cache.TransformingStore = (*store[string, int])(nil)

	_ cache.ResourceVersionUpdater = (*store[string, int])(nil)
)

func newStore[K comparable, M any](h handling[K, M]) *store[K, M] {
	return &store[K, M]{handling: h, held: make(map[K]entry[M]), synced: make(chan struct{}), heard: func() {}}
}

// Transformer makes the reflector drop the original of each object of a
// streamed list as it arrives (cache.TransformingStore).
func (s *store[K, M]) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) { return s.item(obj) }
}

// item converts an API object. It returns an item unchanged: the objects of a streamed
// list pass through it twice.
func (s *store[K, M]) item(obj any) (item[K, M], error) {
	if it, ok := obj.(item[K, M]); ok {
		return it, nil
	}
	if it, ok := s.convert(obj); ok {
		return it, nil
	}
	return item[K, M]{}, fmt.Errorf("the API server sent an object of type %T", obj)
}

// UpdateResourceVersion is called for each event of the watch, bookmarks included.
func (s *store[K, M]) UpdateResourceVersion(string) { s.heard() }

// Add is called for an object that was created, or that the selector now matches.
func (s *store[K, M]) Add(obj any) error {
	it, err := s.item(obj)
	if err == nil {
		s.put(it)
	}
	return err
}

// Update is called for an object that has changed.
func (s *store[K, M]) Update(obj any) error { return s.Add(obj) }

// Delete is called for an object that was deleted, or that the selector no longer matches.
func (s *store[K, M]) Delete(obj any) error {
	it, err := s.item(obj)
	if err == nil {
		s.reports.forget(it.key)
		s.drop(it.key)
	}
	return err
}

// Replace is called with a whole list: at start, and for each relist. It sets the objects of
// the list before it removes those that are not in the list: an endpoint that moved from one
// slice to another is never missing from both.
func (s *store[K, M]) Replace(list []any, _ string) error {
	seen := make(map[K]struct{}, len(list))
	for _, obj := range list {
		it, err := s.item(obj)
		if err != nil {
			return err
		}
		seen[it.key] = struct{}{}
		s.put(it)
	}
	there := func(key K) bool { _, ok := seen[key]; return ok }
	for _, key := range s.keys() {
		if !there(key) {
			s.drop(key)
		}
	}
	s.reports.retain(there)
	s.heard()
	s.once.Do(func() { close(s.synced) })
	return nil
}

// Resync does nothing: the reconcile loop behind the Sink retries by itself.
func (s *store[K, M]) Resync() error { return nil }

func (s *store[K, M]) put(it item[K, M]) {
	if it.model == nil {
		s.drop(it.key)
	} else if s.keep(it) {
		s.set(it.model)
	}
	s.reports.report(it.key, it.warnings)
}

// keep stores the item, and reports whether its model has changed.
func (s *store[K, M]) keep(it item[K, M]) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.held[it.key]
	if ok && s.equal(old.model, it.model) {
		s.held[it.key] = entry[M]{it.uid, old.model}
		return false
	}
	s.held[it.key] = entry[M]{it.uid, it.model}
	return true
}

func (s *store[K, M]) drop(key K) {
	s.mu.Lock()
	_, ok := s.held[key]
	delete(s.held, key)
	s.mu.Unlock()
	if ok {
		s.remove(key)
	}
}

func (s *store[K, M]) keys() []K {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]K, 0, len(s.held))
	for key := range s.held {
		out = append(out, key)
	}
	return out
}

func (s *store[K, M]) len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.held)
}

// uid returns the UID of an object, empty for one that the store does not hold.
func (s *store[K, M]) uid(key K) types.UID {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.held[key].uid
}
