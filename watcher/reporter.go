package watcher

import (
	"strings"
	"sync"

	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"

	"shunt/lb"
)

// mostSaid bounds the lines that one version of one object can put in the log.
const mostSaid = 10

// Recorder records Events (the API's objects). Its methods return at once.
type Recorder interface {
	// ServiceWarning records a Warning on a Service. The UID may be empty.
	ServiceWarning(service lb.ServiceName, uid types.UID, reason, note string)
}

// reporter says every warning once: neither a relist nor a newer version of the
// object with the same fault says it again.
type reporter[K comparable] struct {
	log      *zap.Logger
	recorder Recorder // nil: none
	uidOf    func(lb.ServiceName) types.UID

	mu   sync.Mutex
	said map[K]map[string]struct{}
}

// report says what is new in the warnings of an object, and forgets those that
// it no longer earns. The fields go with each line of the log.
func (r *reporter[K]) report(key K, warnings []Warning, fields ...zap.Field) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.said[key]
	if len(warnings) == 0 {
		if before != nil {
			delete(r.said, key)
		}
		return
	}
	now := make(map[string]struct{}, len(warnings))
	events := make(map[string]bool)
	fresh := 0
	for _, w := range warnings {
		what := w.identity()
		now[what] = struct{}{}
		if _, ok := before[what]; ok {
			continue
		}
		if fresh++; fresh <= mostSaid {
			r.log.Warn(w.String(), fields...)
		}
		if w.Event != "" && !events[w.Event] && r.recorder != nil {
			events[w.Event] = true
			r.recorder.ServiceWarning(w.Service, r.uidOf(w.Service), w.Event, w.String())
		}
	}
	if fresh > mostSaid {
		r.log.Warn(warnings[0].Object()+": and more of the like", append(fields, zap.Int("warnings", fresh-mostSaid))...)
	}
	if r.said == nil {
		r.said = make(map[K]map[string]struct{})
	}
	r.said[key] = now
}

// forget drops what was said of an object that is gone.
func (r *reporter[K]) forget(key K) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.said, key)
}

// retain forgets all objects but those that keep says are still there.
func (r *reporter[K]) retain(keep func(K) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range r.said {
		if !keep(key) {
			delete(r.said, key)
		}
	}
}

// identity is the warning without the indices of its field: the same fault is
// not news because another entry of the list came or went.
func (w Warning) identity() string {
	var b strings.Builder
	in := false
	for _, c := range w.Field {
		switch c {
		case '[':
			in = true
		case ']':
			in = false
		}
		if !in || c < '0' || c > '9' {
			b.WriteRune(c)
		}
	}
	b.WriteByte(' ')
	b.WriteString(w.Problem)
	return b.String()
}
