// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shunt/lb"
)

func ptr[T any](v T) *T { return &v }

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// lines returns warnings as they are logged, with the reason of the Event.
func lines(warnings []Warning) []string {
	var out []string
	for _, w := range warnings {
		s := w.String()
		if w.Event != "" {
			s += " [" + w.Event + "]"
		}
		out = append(out, s)
	}
	return out
}

// webService is a valid dual-stack load-balancer Service that uses every field.
func webService() *v1.Service {
	return &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u1", CreationTimestamp: metav1.Unix(1700000000, 0)},
		Spec: v1.ServiceSpec{
			Type:       v1.ServiceTypeLoadBalancer,
			ClusterIP:  "10.96.0.10",
			ClusterIPs: []string{"10.96.0.10", "fd00:96::10"},
			IPFamilies: []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol},
			Ports: []v1.ServicePort{
				{Name: "http", Protocol: v1.ProtocolTCP, Port: 80, NodePort: 30080},
				{Name: "dns", Protocol: v1.ProtocolUDP, Port: 53, NodePort: 30053},
			},
			ExternalIPs:              []string{"198.51.100.1", "2001:db8::1"},
			LoadBalancerSourceRanges: []string{"203.0.113.0/24", "2001:db8:1::/48"},
			SessionAffinity:          v1.ServiceAffinityClientIP,
			SessionAffinityConfig:    &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{TimeoutSeconds: ptr(int32(60))}},
			ExternalTrafficPolicy:    v1.ServiceExternalTrafficPolicyLocal,
			InternalTrafficPolicy:    ptr(v1.ServiceInternalTrafficPolicyCluster),
			HealthCheckNodePort:      32000,
		},
		Status: v1.ServiceStatus{LoadBalancer: v1.LoadBalancerStatus{Ingress: []v1.LoadBalancerIngress{
			{IP: "192.0.2.1", IPMode: ptr(v1.LoadBalancerIPModeVIP)}, {IP: "2001:db8::2"},
		}}},
	}
}

func webModel() *lb.Service {
	return &lb.Service{
		Name:            lb.ServiceName{Namespace: "shop", Name: "web"},
		Created:         time.Unix(1700000000, 0).UTC(),
		ClusterIPs:      addrs("10.96.0.10", "fd00:96::10"),
		ExternalIPs:     addrs("198.51.100.1", "2001:db8::1"),
		LoadBalancerIPs: addrs("192.0.2.1", "2001:db8::2"),
		SourceRanges:    prefixes("203.0.113.0/24", "2001:db8:1::/48"),
		ExternalLocal:   true, AffinityTimeout: time.Minute, HealthCheckNodePort: 32000,
		Ports: []lb.ServicePort{
			{Name: "http", Protocol: lb.TCP, Port: 80, NodePort: 30080},
			{Name: "dns", Protocol: lb.UDP, Port: 53, NodePort: 30053},
		},
	}
}

type serviceCase struct {
	name string
	// change changes webService to the input, and want changes webModel to the expected
	// model. nil: no change.
	change   func(*v1.Service)
	want     func(*lb.Service)
	skipped  bool
	warnings []string // after "Service shop/web: "
}

func (c serviceCase) run(t *testing.T) {
	in, want := webService(), webModel()
	c.change(in)
	if c.want != nil {
		c.want(want)
	}
	if c.skipped {
		want = nil
	}
	before := in.DeepCopy()
	got, warnings := new(Converter).Service(in)
	if !reflect.DeepEqual(in, before) {
		t.Error("the converter changed its input")
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("model:\n got %+v\nwant %+v", got, want)
	}
	var say []string
	for _, w := range c.warnings {
		say = append(say, fmt.Sprintf("Service %s/%s: %s", in.Namespace, in.Name, w))
	}
	if !slices.Equal(lines(warnings), say) {
		t.Errorf("warnings:\n got %q\nwant %q", lines(warnings), say)
	}
	if got != nil {
		if err := checkService(got); err != nil {
			t.Error(err)
		}
	}
}

func addressesOnly(m *lb.Service) {
	*m = lb.Service{Name: m.Name, ClusterIPs: m.ClusterIPs, NotServed: true}
}

// TestService has the rules for a Service, in the order of the contract.
func TestService(t *testing.T) {
	keep := func(*v1.Service) {}
	cases := []serviceCase{
		{name: "everything valid", change: keep},

		// Skipped services.
		{name: "no cluster IP", change: func(s *v1.Service) { s.Spec.ClusterIP = "" }, skipped: true},
		{name: "headless", change: func(s *v1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} }, skipped: true},

		// Services that shunt does not serve: only their addresses are used.
		{
			name: "ExternalName with a cluster IP", change: func(s *v1.Service) { s.Spec.Type = v1.ServiceTypeExternalName },
			want: addressesOnly,
		},
		{
			name: "another proxy's",
			change: func(s *v1.Service) {
				s.Labels = map[string]string{labelProxyName: ""}
				s.Spec.ExternalIPs = []string{"x"}
			},
			want: addressesOnly,
		},
		{
			name: "another proxy's, headless", skipped: true,
			change: func(s *v1.Service) { s.Labels = map[string]string{labelProxyName: "x"}; s.Spec.ClusterIP = "None" },
		},
		{
			name: "no name", change: func(s *v1.Service) { s.Name = "" }, skipped: true,
			warnings: []string{"metadata.name: is missing: object ignored"},
		},
		{
			name:     "a name that is no label, as a Service's must be",
			change:   func(s *v1.Service) { s.Name = strings.Repeat("n", 64) },
			skipped:  true,
			warnings: []string{`metadata.name: "` + strings.Repeat("n", 64) + `": object ignored: must be no more than 63 characters`},
		},

		// The cluster IP of a family, by its index in ipFamilies.
		{
			name:   "IPv6 first",
			change: func(s *v1.Service) { reverse(s); s.Spec.ClusterIP = "fd00:96::10" },
			want:   func(m *lb.Service) { slices.Reverse(m.ClusterIPs) },
		},
		{
			name:   "clusterIP alone",
			change: func(s *v1.Service) { s.Spec.ClusterIPs, s.Spec.IPFamilies = nil, nil; only4(s) },
			want:   only4Model,
		},
		{
			name:   "clusterIPs against ipFamilies",
			change: func(s *v1.Service) { s.Spec.IPFamilies = []v1.IPFamily{v1.IPv4Protocol, v1.IPv4Protocol}; only4(s) },
			want:   only4Model,
			warnings: []string{
				`spec.clusterIPs[1]: "fd00:96::10" is IPv6, but spec.ipFamilies[1] is IPv4: ignored [KubeProxyIncorrectIPVersion]`,
			},
		},
		{
			name:   "two of one family",
			change: func(s *v1.Service) { s.Spec.IPFamilies = nil; s.Spec.ClusterIPs[1] = "10.96.0.11"; only4(s) },
			want:   only4Model,
			warnings: []string{
				`spec.clusterIPs[1]: "10.96.0.11" is a second IPv4 address: ignored [KubeProxyIncorrectIPVersion]`,
			},
		},
		{
			name:     "a family that is none",
			change:   func(s *v1.Service) { s.Spec.IPFamilies = []v1.IPFamily{v1.IPv4Protocol, "IPv5"}; only4(s) },
			want:     func(m *lb.Service) { only4Model(m); m.ClusterIPs = addrs("10.96.0.10", "fd00:96::10") },
			warnings: []string{`spec.ipFamilies[1]: "IPv5" is not IPv4 or IPv6: ignored`},
		},
		{
			name:   "clusterIP and clusterIPs differ",
			change: func(s *v1.Service) { s.Spec.ClusterIP = "10.96.0.99" },
			warnings: []string{
				`spec.clusterIP: "10.96.0.99" differs from spec.clusterIPs[0] ("10.96.0.10"), which is used`,
			},
		},
		{
			name:     "an invalid cluster IP leaves the rest",
			change:   func(s *v1.Service) { s.Spec.ClusterIPs[1] = "fd00:96::g" },
			want:     func(m *lb.Service) { m.ClusterIPs = m.ClusterIPs[:1] },
			warnings: []string{`spec.clusterIPs[1]: "fd00:96::g" is not an IP address: ignored`},
		},
		{
			name:     "multicast as only cluster IP",
			change:   func(s *v1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "224.0.0.1", nil },
			want:     func(m *lb.Service) { m.ClusterIPs = nil },
			warnings: []string{`spec.clusterIP: "224.0.0.1" is a multicast address: ignored`},
		},

		// External IPs, by family, invalid ones skipped.
		{
			name: "external IPs, good and bad",
			change: func(s *v1.Service) {
				s.Spec.ExternalIPs = []string{"198.51.100.1", "300.1.1.1", "198.51.100.1", "127.0.0.1", "0.0.0.0", "fe80::1%eth0", "169.254.1.1", ""}
			},
			want: func(m *lb.Service) { m.ExternalIPs = addrs("198.51.100.1") },
			warnings: []string{
				`spec.externalIPs[1]: "300.1.1.1" is not an IP address: ignored`,
				`spec.externalIPs[3]: "127.0.0.1" is a loopback address: ignored`,
				`spec.externalIPs[4]: "0.0.0.0" is the unspecified address: ignored`,
				`spec.externalIPs[5]: "fe80::1%eth0" has a zone: ignored`,
				`spec.externalIPs[6]: "169.254.1.1" is a link-local address: ignored`,
				`spec.externalIPs[7]: "" is not an IP address: ignored`,
			},
		},
		{
			name: "external IP of a family that the service has not",
			change: func(s *v1.Service) {
				s.Spec.IPFamilies, s.Spec.ClusterIPs = s.Spec.IPFamilies[:1], s.Spec.ClusterIPs[:1]
				s.Status.LoadBalancer.Ingress = s.Status.LoadBalancer.Ingress[:1]
			},
			want: only4Model,
			warnings: []string{
				`spec.externalIPs[1]: "2001:db8::1" is IPv6, which the service does not have: ignored [KubeProxyIncorrectIPVersion]`,
			},
		},
		{
			name:   "forms that are not canonical",
			change: func(s *v1.Service) { s.Spec.ExternalIPs = []string{"198.051.100.001", "::ffff:198.51.100.2"} },
			want:   func(m *lb.Service) { m.ExternalIPs = addrs("198.51.100.1", "198.51.100.2") },
			warnings: []string{
				`spec.externalIPs[0]: "198.051.100.001" has leading zeros, read as decimal: 198.51.100.1`,
				`spec.externalIPs[1]: "::ffff:198.51.100.2" is IPv4-mapped, read as 198.51.100.2`,
			},
		},
	}
	for _, c := range slices.Concat(cases, serviceCasesMore()) {
		t.Run(c.name, c.run)
	}
}

// only4 removes the IPv6 addresses of a service, except its cluster IP.
func only4(s *v1.Service) {
	s.Spec.ExternalIPs = s.Spec.ExternalIPs[:1]
	s.Status.LoadBalancer.Ingress = s.Status.LoadBalancer.Ingress[:1]
}

func only4Model(m *lb.Service) {
	m.ClusterIPs, m.ExternalIPs, m.LoadBalancerIPs = m.ClusterIPs[:1], m.ExternalIPs[:1], m.LoadBalancerIPs[:1]
}

func reverse(s *v1.Service) {
	slices.Reverse(s.Spec.ClusterIPs)
	slices.Reverse(s.Spec.IPFamilies)
}
