// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shunt/lb"
)

// webSlice is a valid EndpointSlice that uses every field.
func webSlice() *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web-1",
			Labels:      map[string]string{discoveryv1.LabelServiceName: "web"},
			Annotations: map[string]string{v1.EndpointsLastChangeTriggerTime: "2024-05-06T07:08:09.5+02:00"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{
			{Name: ptr("http"), Protocol: ptr(v1.ProtocolTCP), Port: ptr(int32(8080))},
			{Name: ptr("dns"), Protocol: ptr(v1.ProtocolUDP), Port: ptr(int32(5353))},
		},
		Endpoints: []discoveryv1.Endpoint{
			{
				Addresses: []string{"10.1.0.1"}, NodeName: ptr("n1"), Zone: ptr("z1"),
				Conditions: discoveryv1.EndpointConditions{Ready: ptr(true), Serving: ptr(true), Terminating: ptr(false)},
				Hints:      &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "z1"}}, ForNodes: []discoveryv1.ForNode{{Name: "n1"}, {Name: "n2"}}},
			},
			{Addresses: []string{"10.1.0.2"}},
		},
	}
}

func sliceModel() *lb.EndpointSlice {
	return &lb.EndpointSlice{
		Name:       lb.SliceName{Namespace: "shop", Name: "web-1"},
		Service:    lb.ServiceName{Namespace: "shop", Name: "web"},
		LastChange: time.Date(2024, 5, 6, 5, 8, 9, 500000000, time.UTC),
		Ports:      []lb.EndpointPort{{Name: "http", Protocol: lb.TCP, Port: 8080}, {Name: "dns", Protocol: lb.UDP, Port: 5353}},
		Endpoints: []lb.Endpoint{
			{Addr: addrs("10.1.0.1")[0], Ready: true, Serving: true, Node: "n1", Hints: &lb.Hints{Nodes: []string{"n1", "n2"}, Zones: []string{"z1"}}},
			{Addr: addrs("10.1.0.2")[0], Ready: true, Serving: true},
		},
	}
}

// TestSlice has the rules for an EndpointSlice, in the order of the contract.
func TestSlice(t *testing.T) {
	type in = discoveryv1.EndpointSlice
	type out = lb.EndpointSlice
	ports := func(list ...discoveryv1.EndpointPort) func(*in) { return func(s *in) { s.Ports = list } }
	addresses := func(list ...string) func(*in) { return func(s *in) { s.Endpoints[1].Addresses = list } }
	first := func(m *out) { m.Endpoints = m.Endpoints[:1] }
	cases := []struct {
		name     string
		change   func(*in)
		want     func(*out)
		ignored  bool
		warnings []string // after "EndpointSlice shop/web-1: "
	}{
		{name: "everything valid", change: func(*in) {}},

		// Conditions: the defaults for nil.
		{
			name: "conditions are taken as they are",
			change: func(s *in) {
				s.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(false), Terminating: ptr(true)}
			},
			want: func(m *out) {
				e := &m.Endpoints[0]
				e.Ready, e.Serving, e.Terminating = false, false, true
			},
		},

		// Ports.
		{
			name:     "nil name",
			change:   ports(discoveryv1.EndpointPort{Port: ptr(int32(80))}, discoveryv1.EndpointPort{Name: ptr(""), Port: ptr(int32(81))}),
			want:     func(m *out) { m.Ports = []lb.EndpointPort{{Protocol: lb.TCP, Port: 81}} },
			warnings: []string{`ports[0].name: is missing: port ignored (the unnamed port is written as name: "")`},
		},
		{
			name: "nil and zero and impossible numbers",
			change: ports(discoveryv1.EndpointPort{Name: ptr("a")}, discoveryv1.EndpointPort{Name: ptr("b"), Port: ptr(int32(0))},
				discoveryv1.EndpointPort{Name: ptr("c"), Port: ptr(int32(-1))}, discoveryv1.EndpointPort{Name: ptr("d"), Port: ptr(int32(65536))}),
			want: func(m *out) { m.Ports = []lb.EndpointPort{} },
			warnings: []string{
				"ports[0].port: is missing: port ignored", "ports[1].port: is missing: port ignored",
				"ports[2].port: -1 is not a port number: port ignored", "ports[3].port: 65536 is not a port number: port ignored",
			},
		},
		{
			name:     "SCTP",
			change:   ports(discoveryv1.EndpointPort{Name: ptr("a"), Protocol: ptr(v1.ProtocolSCTP), Port: ptr(int32(80))}),
			want:     func(m *out) { m.Ports = []lb.EndpointPort{} },
			warnings: []string{"ports[0].protocol: SCTP is not supported: port ignored"},
		},
		{
			name: "one name twice",
			change: ports(discoveryv1.EndpointPort{Name: ptr("a"), Port: ptr(int32(80))}, discoveryv1.EndpointPort{Name: ptr("a"), Port: ptr(int32(80))},
				discoveryv1.EndpointPort{Name: ptr("a"), Port: ptr(int32(81))}, discoveryv1.EndpointPort{Name: ptr("a"), Port: ptr(int32(80)), Protocol: ptr(v1.ProtocolUDP)}),
			want: func(m *out) {
				m.Ports = []lb.EndpointPort{{Name: "a", Protocol: lb.TCP, Port: 80}, {Name: "a", Protocol: lb.UDP, Port: 80}}
			},
			warnings: []string{`ports[2].name: "a"/TCP is there with port 80 already: port ignored`},
		},
		{name: "no ports", change: ports(), want: func(m *out) { m.Ports = nil }},

		// Addresses: only the first one is used.
		{name: "the first address only", change: addresses("10.1.0.2", "nonsense", "10.1.0.3")},
		{name: "no address", change: addresses(), want: first, warnings: []string{"endpoints[1].addresses: is empty: endpoint ignored"}},
		{name: "no IP address", change: addresses("pod-1"), want: first, warnings: []string{`endpoints[1].addresses[0]: "pod-1" is not an IP address: ignored`}},
		{name: "loopback", change: addresses("127.0.0.1"), want: first, warnings: []string{`endpoints[1].addresses[0]: "127.0.0.1" is a loopback address: ignored`}},
		{name: "unspecified", change: addresses("0.0.0.0"), want: first, warnings: []string{`endpoints[1].addresses[0]: "0.0.0.0" is the unspecified address: ignored`}},
		{name: "link-local", change: addresses("169.254.169.254"), want: first, warnings: []string{`endpoints[1].addresses[0]: "169.254.169.254" is a link-local address: ignored`}},
		{name: "multicast", change: addresses("239.1.1.1"), want: first, warnings: []string{`endpoints[1].addresses[0]: "239.1.1.1" is a multicast address: ignored`}},
		{name: "broadcast", change: addresses("255.255.255.255"), want: first, warnings: []string{`endpoints[1].addresses[0]: "255.255.255.255" is the broadcast address: ignored`}},
		{name: "leading zeros", change: addresses("010.001.000.002"), warnings: []string{`endpoints[1].addresses[0]: "010.001.000.002" has leading zeros, read as decimal: 10.1.0.2`}},
		{name: "absurdly long", change: addresses(strings.Repeat("1", 5000)), want: first, warnings: []string{`endpoints[1].addresses[0]: "` + strings.Repeat("1", 64) + `"… is not an IP address: ignored`}},
		{name: "none at all", change: func(s *in) { s.Endpoints = nil }, want: func(m *out) { m.Endpoints = nil }},

		// The wrong family.
		{
			name: "an endpoint of the other family", change: addresses("fd00::2"), want: first,
			warnings: []string{`endpoints[1].addresses[0]: "fd00::2" is IPv6, but addressType is IPv4: endpoint ignored [KubeProxyIncorrectIPVersion]`},
		},
		{
			name: "a slice of the other family", change: func(s *in) { s.AddressType = discoveryv1.AddressTypeIPv6 }, ignored: true,
			warnings: []string{`addressType: is IPv6, but no address of the slice ("10.1.0.1", …) is: slice ignored [KubeProxyIncorrectIPVersion]`},
		},
		{
			name: "IPv6",
			change: func(s *in) {
				s.AddressType, s.Endpoints = discoveryv1.AddressTypeIPv6, s.Endpoints[:1]
				s.Endpoints[0].Addresses[0] = "fd00::1"
			},
			want: func(m *out) { first(m); m.Endpoints[0].Addr = addrs("fd00::1")[0] },
		},
		{
			name: "FQDN", change: func(s *in) { s.AddressType = discoveryv1.AddressTypeFQDN }, ignored: true,
			warnings: []string{`addressType: "FQDN" is not IPv4 or IPv6: slice ignored`},
		},

		// The Service.
		{name: "without a Service", change: func(s *in) { delete(s.Labels, discoveryv1.LabelServiceName) }, ignored: true},
		{
			name: "of a Service that can't be", change: func(s *in) { s.Labels[discoveryv1.LabelServiceName] = "a/b" }, ignored: true,
			warnings: []string{`metadata.labels[kubernetes.io/service-name]: "a/b": object ignored: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')`},
		},

		// Hints and the trigger time.
		{
			name: "hints, empty and twice",
			change: func(s *in) {
				s.Endpoints[0].Hints.ForZones = []discoveryv1.ForZone{{Name: ""}, {Name: "z1"}, {Name: "z1"}}
				s.Endpoints[1].Hints = &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{}}}
			},
			warnings: []string{
				`endpoints[0].hints.forZones[0].name: "" is no name: hint ignored`,
				`endpoints[1].hints.forNodes[0].name: "" is no name: hint ignored`,
			},
		},
		{
			name: "no time", change: func(s *in) { s.Annotations[v1.EndpointsLastChangeTriggerTime] = "yesterday" },
			want:     func(m *out) { m.LastChange = time.Time{} },
			warnings: []string{`metadata.annotations[endpoints.kubernetes.io/last-change-trigger-time]: "yesterday" is not an RFC 3339 time: ignored`},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in, want := webSlice(), sliceModel()
			c.change(in)
			if c.want != nil {
				c.want(want)
			}
			if c.ignored {
				want = nil
			}
			before := in.DeepCopy()
			got, warnings := new(Converter).Slice(in)
			if !reflect.DeepEqual(in, before) {
				t.Error("the converter changed its input")
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("model:\n got %+v\nwant %+v", got, want)
			}
			var say []string
			for _, w := range c.warnings {
				say = append(say, "EndpointSlice shop/web-1: "+w)
			}
			if !slices.Equal(lines(warnings), say) {
				t.Errorf("warnings:\n got %q\nwant %q", lines(warnings), say)
			}
			for _, w := range warnings {
				if w.Service.Namespace != "shop" || w.Service.Name == "" {
					t.Errorf("the warning does not name the Service: %+v", w)
				}
			}
			if got != nil {
				if err := checkSlice(got); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestSharedStrings: equal names and hints of many endpoints are in memory once, and share
// no memory with the object.
func TestSharedStrings(t *testing.T) {
	var c Converter
	a, _ := c.Slice(webSlice())
	b, _ := c.Slice(webSlice())
	if a.Endpoints[0].Hints != b.Endpoints[0].Hints {
		t.Error("equal hints are two in memory")
	}
	var in interner
	buf := []byte("a node of a name that is cut from a large buffer")
	s := in.string(string(buf[2:6]))
	for i := range interned + 10 {
		in.string("filler-" + time.Duration(i).String())
	}
	if len(in.strings) > interned {
		t.Errorf("the interner holds %d strings, more than %d", len(in.strings), interned)
	}
	if s != "node" || in.string("node") != "node" {
		t.Error("a string changed")
	}
	if n, z := in.hintSet([]string{"a"}, []string{"b"}), in.hintSet([]string{"a", "b"}, nil); n == z {
		t.Error("different hints are taken as equal")
	}
}

func TestNode(t *testing.T) {
	now := metav1.Now()
	n := &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{v1.LabelTopologyZone: "z1"}, DeletionTimestamp: &now},
		Spec:       v1.NodeSpec{Taints: []v1.Taint{{Key: "other"}, {Key: "ToBeDeletedByClusterAutoscaler"}}},
		Status: v1.NodeStatus{Addresses: []v1.NodeAddress{
			{Type: v1.NodeHostName, Address: "n1"}, {Type: v1.NodeInternalIP, Address: "192.0.2.1"}, {Type: v1.NodeInternalIP, Address: "192.0.2.1"},
			{Type: v1.NodeExternalIP, Address: "2001:db8::1"}, {Type: v1.NodeInternalIP, Address: "::1"}, {Type: v1.NodeInternalIP, Address: "n1.example"},
		}},
	}
	got, warnings := new(Converter).Node(n)
	want := &lb.Node{Name: "n1", Zone: "z1", Addrs: addrs("192.0.2.1", "2001:db8::1"), Deleting: true, Tainted: true}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	say := []string{
		`Node n1: status.addresses[4].address: "::1" is a loopback address: ignored`,
		`Node n1: status.addresses[5].address: "n1.example" is not an IP address: ignored`,
	}
	if !slices.Equal(lines(warnings), say) {
		t.Errorf("warnings: %q", lines(warnings))
	}
	if err := checkNode(got); err != nil {
		t.Error(err)
	}
	if got, _ := new(Converter).Node(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}}); !reflect.DeepEqual(got, &lb.Node{Name: "n2"}) {
		t.Errorf("a bare node: %+v", got)
	}
}

func TestIgnoredByLabels(t *testing.T) {
	for _, c := range []struct {
		labels map[string]string
		want   bool
	}{
		{nil, false},
		{map[string]string{labelProxyName: "other"}, true},
		{map[string]string{labelHeadless: ""}, true},
		{map[string]string{discoveryv1.LabelServiceName: "web"}, false},
	} {
		if got := ignored(c.labels); got != c.want {
			t.Errorf("a slice with %v: ignored = %v", c.labels, got)
		}
	}
}
