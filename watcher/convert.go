// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"k8s.io/apimachinery/pkg/util/validation"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"shunt/lb"
)

// Labels of objects that shunt does not serve. The API server does not send EndpointSlices
// with these labels (sliceSelector); for manifest files, ignored drops them. Services of
// another proxy are watched, since their cluster IPs are allocated. They are in the same
// watch as other Services: with two watches, a Service whose label changes would be missing
// from both for a moment.
const (
	// labelProxyName means that another proxy implements this Service (KEP-2447).
	labelProxyName = "service.kubernetes.io/service-proxy-name"
	// labelHeadless is set by the EndpointSlice controller on the slices of a
	// headless Service. On a Service it has no meaning.
	labelHeadless = v1.IsHeadlessService
)

// Converter converts API objects to the model of package lb. It is pure, except that it
// interns strings that many objects share. The zero value is ready to use. It is safe for
// concurrent use. No method retains or changes the object that it converts.
type Converter struct {
	shared interner
}

// ignored reports whether sliceSelector leaves out a slice with these labels.
func ignored(labels map[string]string) bool {
	_, headless := labels[labelHeadless]
	return headless || ofAnotherProxy(labels)
}

func ofAnotherProxy(labels map[string]string) bool {
	_, ok := labels[labelProxyName]
	return ok
}

// The kinds of object, as the API and warnings spell them.
const (
	kindService = "Service"
	kindSlice   = "EndpointSlice"
	kindNode    = "Node"
)

// named reports whether an object's namespace and name are valid by the API server's rules,
// and adds a warning if not. Both are written to maps, logs and metrics.
func (p *warnings) named() bool {
	if msgs := validation.IsDNS1123Label(p.of.Namespace); len(msgs) > 0 {
		p.add("metadata.namespace", "%s: object ignored: %s", show(p.of.Namespace), msgs[0])
		return false
	}
	if !p.validName("metadata.name", p.of.Name) {
		return false
	}
	// A Service's name must be a DNS label (63 bytes), which is shorter than a subdomain:
	// the maps have no room for more.
	if msgs := validation.IsDNS1123Label(p.of.Name); p.of.Kind == kindService && len(msgs) > 0 {
		p.add("metadata.name", "%s: object ignored: %s", show(p.of.Name), msgs[0])
		return false
	}
	return true
}

func (p *warnings) validName(field, name string) bool {
	if name == "" {
		p.add(field, "is missing: object ignored")
		return false
	}
	if msgs := validation.IsDNS1123Subdomain(name); len(msgs) > 0 {
		p.add(field, "%s: object ignored: %s", show(name), msgs[0])
		return false
	}
	return true
}

// protocol converts a protocol; "" is TCP, the API's default. The second result is the reason
// why a protocol is not supported, "" if it is.
func protocol(p v1.Protocol) (lb.Protocol, string) {
	switch p {
	case v1.ProtocolTCP, "":
		return lb.TCP, ""
	case v1.ProtocolUDP:
		return lb.UDP, ""
	case v1.ProtocolSCTP:
		return 0, "SCTP is not supported"
	}
	return 0, show(string(p)) + " is not TCP or UDP"
}

// port reports whether n is a port number.
func port(n int32) bool { return n >= 1 && n <= 65535 }

func family(f v1.IPFamily) (lb.Family, bool) {
	switch f {
	case v1.IPv4Protocol:
		return lb.IPv4, true
	case v1.IPv6Protocol:
		return lb.IPv6, true
	}
	return 0, false
}

func addressFamily(t discoveryv1.AddressType) (lb.Family, bool) {
	return family(v1.IPFamily(t))
}
