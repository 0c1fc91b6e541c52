// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"strings"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"

	"shunt/lb"
)

const (
	// reportingController is the field of that name in the Events that shunt records.
	reportingController = "shunt"
	// maxNote is the API's limit for the note of an Event, in bytes.
	maxNote = 1024
	// queuedEvents is how many Events may wait for Run.
	queuedEvents = 256
)

// Events records Events (events.k8s.io/v1) through the API server. Equal Events become
// a series. An Event that can't be written is logged. All methods except Run may be
// called at any time and return at once. Run writes Events from a queue; an Event that
// finds queuedEvents in the queue is dropped.
type Events struct {
	node        string
	log         *zap.Logger
	broadcaster events.EventBroadcaster
	recorder    events.EventRecorder
	queue       chan event
}

type event struct {
	kind, reason, note string
	regarding          *v1.ObjectReference
}

var _ Recorder = (*Events)(nil)

// NewEvents returns a recorder for the proxy on a node. log may be nil.
func NewEvents(client kubernetes.Interface, nodeName string, log *zap.Logger) *Events {
	if log == nil {
		log = zap.NewNop()
	}
	b := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	logger := zapr.NewLogger(log)
	return &Events{
		node: nodeName, log: log, broadcaster: b,
		// An ObjectReference is used as it is: no scheme is needed.
		recorder: b.NewRecorder(runtime.NewScheme(), reportingController).WithLogger(logger),
		queue:    make(chan event, queuedEvents),
	}
}

// Run writes Events until ctx is done. Events that are not written by then are lost.
func (e *Events) Run(ctx context.Context) error {
	defer e.broadcaster.Shutdown()
	ctx = klog.NewContext(ctx, zapr.NewLogger(e.log))
	if err := e.broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev := <-e.queue:
			e.recorder.Eventf(ev.regarding, nil, ev.kind, ev.reason, ev.reason, "%s", ev.note)
		}
	}
}

// ServiceWarning records an Event of type Warning on a Service.
func (e *Events) ServiceWarning(service lb.ServiceName, uid types.UID, reason, note string) {
	e.record(v1.EventTypeWarning, reason, note, &v1.ObjectReference{
		APIVersion: "v1", Kind: kindService, Namespace: service.Namespace, Name: service.Name, UID: uid,
	})
}

// Starting records an Event on the Node: the proxy starts. The UID in the reference is the
// node's name, since kubectl describe finds Events of a node's programs by that UID.
func (e *Events) Starting() {
	e.record(v1.EventTypeNormal, EventStarting, "shunt starts to serve Services on this node", &v1.ObjectReference{
		APIVersion: "v1", Kind: kindNode, Name: e.node, UID: types.UID(e.node),
	})
}

func (e *Events) record(kind, reason, note string, regarding *v1.ObjectReference) {
	if len(note) > maxNote {
		note = strings.ToValidUTF8(note[:maxNote-len("…")], "") + "…"
	}
	select {
	case e.queue <- event{kind, reason, note, regarding}:
	default:
		e.log.Warn("too many Events at once: one is not recorded", zap.String("reason", reason), zap.String("note", note))
	}
}
