// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"
	"strconv"
	"strings"

	"shunt/lb"
)

// The reasons of the Events that shunt records. The first two and Starting are kube-proxy's.
const (
	// EventIncorrectIPVersion (Warning, on a Service): an address is not of the IP family
	// that the Service or EndpointSlice specifies.
	EventIncorrectIPVersion = "KubeProxyIncorrectIPVersion"
	// EventFailedHealthCheck (Warning, on a Service): the server on its
	// healthCheckNodePort could not be started.
	EventFailedHealthCheck = "FailedToStartServiceHealthcheck"
	// EventFrontendConflict (Warning, on a Service): another Service has a frontend (address,
	// port and protocol) that this Service asks for.
	EventFrontendConflict = "FrontendConflict"
	// EventTooManyFrontends (Warning, on a Service): the Service asks for more frontends
	// than one Service may have.
	EventTooManyFrontends = "TooManyFrontends"
	// EventFrontendRefused (Warning, on a Service): the Service asks for a frontend that is
	// never programmed.
	EventFrontendRefused = "FrontendRefused"
	// EventNoRoom (Warning, on a Service): a map has no room for a part of the Service.
	EventNoRoom = "NoRoomInMap"
	// EventNotProgrammed (Warning, on a Service): a write to a map failed.
	EventNotProgrammed = "ServiceNotProgrammed"
	// EventStarting (Normal, on the Node): the proxy starts.
	EventStarting = "Starting"
)

// Warning names a field of an object that is not used as it is written, and why. The other
// fields of the object are used, unless Problem reports the contrary.
type Warning struct {
	// Kind is Service, EndpointSlice, Node or ServiceCIDR; Namespace is empty for
	// the last two.
	Kind, Namespace, Name string
	// Field is the path of the field within the object, like
	// spec.externalIPs[1]; empty where the whole object is meant.
	Field string
	// Problem describes the fault, and what shunt does instead.
	Problem string
	// Event is the reason of the Event to record on Service, empty for none.
	Event string
	// Service is the object itself if it is a Service, or the Service of an EndpointSlice.
	Service lb.ServiceName
}

// Object returns "Kind namespace/name", or "Kind name" for a kind without namespace.
func (w Warning) Object() string {
	if w.Namespace == "" {
		return w.Kind + " " + w.Name
	}
	return w.Kind + " " + w.Namespace + "/" + w.Name
}

// String returns the warning as one line: object, field, problem.
func (w Warning) String() string {
	if w.Field == "" {
		return w.Object() + ": " + w.Problem
	}
	return w.Object() + ": " + w.Field + ": " + w.Problem
}

// warnings collects the warnings of one object.
type warnings struct {
	of   Warning // the parts that all warnings of the object share
	list []Warning
}

func (p *warnings) add(field, format string, args ...any) {
	w := p.of
	w.Field, w.Problem = field, fmt.Sprintf(format, args...)
	p.list = append(p.list, w)
}

// event adds a warning for which an Event of that reason is recorded.
func (p *warnings) event(reason, field, format string, args ...any) {
	p.add(field, format, args...)
	p.list[len(p.list)-1].Event = reason
}

// path is a field path. It is formatted only for a warning.
type path struct {
	list string
	i    int
	leaf string
}

// noIndex is the index in the path of a field that is not a list.
const noIndex = -1

func (p path) String() string {
	s := p.list
	if p.i != noIndex {
		s += "[" + strconv.Itoa(p.i) + "]"
	}
	if p.leaf != "" {
		s += "." + p.leaf
	}
	return s
}

// show quotes a value for a message, and cuts it after 64 bytes.
func show(s string) string {
	const most = 64
	if len(s) > most {
		return strconv.Quote(strings.ToValidUTF8(s[:most], "")) + "…"
	}
	return strconv.Quote(s)
}
