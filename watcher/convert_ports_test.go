// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"shunt/lb"
)

// serviceCasesMore continues TestService: load balancers, source ranges,
// affinity, policies, ports.
func serviceCasesMore() []serviceCase {
	ingress := func(list ...v1.LoadBalancerIngress) func(*v1.Service) {
		return func(s *v1.Service) { s.Status.LoadBalancer.Ingress = list }
	}
	lbIPs := func(list ...string) func(*lb.Service) {
		return func(m *lb.Service) { m.LoadBalancerIPs = addrs(list...) }
	}
	ranges := func(list ...string) func(*v1.Service) {
		return func(s *v1.Service) { s.Spec.LoadBalancerSourceRanges = list }
	}
	timeout := func(n int32) func(*v1.Service) {
		return func(s *v1.Service) { s.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds = &n }
	}
	ports := func(list ...v1.ServicePort) func(*v1.Service) {
		return func(s *v1.Service) { s.Spec.Ports = list }
	}
	portModel := func(list ...lb.ServicePort) func(*lb.Service) {
		return func(m *lb.Service) { m.Ports = list }
	}
	const defaultTimeout = 10800 * time.Second
	return []serviceCase{
		// Load-balancer IPs: an ip, and ipMode VIP or unset.
		{name: "ipMode Proxy is not captured", change: ingress(v1.LoadBalancerIngress{IP: "192.0.2.1", IPMode: ptr(v1.LoadBalancerIPModeProxy)}), want: lbIPs()},
		{name: "host name only", change: ingress(v1.LoadBalancerIngress{Hostname: "lb.example"}), want: lbIPs()},
		{
			name:     "ipMode that is none",
			change:   ingress(v1.LoadBalancerIngress{IP: "192.0.2.1", IPMode: ptr(v1.LoadBalancerIPMode("Magic"))}, v1.LoadBalancerIngress{IP: "192.0.2.2"}),
			want:     lbIPs("192.0.2.2"),
			warnings: []string{`status.loadBalancer.ingress[0].ipMode: "Magic" is not VIP or Proxy: ingress ignored`},
		},
		{
			name:     "an invalid ingress leaves the rest",
			change:   ingress(v1.LoadBalancerIngress{IP: "nonsense"}, v1.LoadBalancerIngress{IP: "192.0.2.2"}, v1.LoadBalancerIngress{IP: "192.0.2.2"}),
			want:     lbIPs("192.0.2.2"),
			warnings: []string{`status.loadBalancer.ingress[0].ip: "nonsense" is not an IP address: ignored`},
		},

		// Source ranges are trimmed and masked. They fail closed where they can't be read.
		{
			name:   "ranges are trimmed, masked and unique",
			change: ranges(" 203.0.113.7/24\t", "203.0.113.0/24", "2001:db8:1::1/48", "010.0.0.0/8", "::ffff:192.0.2.0/120"),
			want: func(m *lb.Service) {
				m.SourceRanges = prefixes("203.0.113.0/24", "2001:db8:1::/48", "10.0.0.0/8", "192.0.2.0/24")
			},
		},
		{
			name:     "an invalid range beside valid ones of both families",
			change:   ranges("203.0.113.0/24", "2001:db8:1::/48", "203.0.113.1"),
			warnings: []string{`spec.loadBalancerSourceRanges[2]: "203.0.113.1" is not a CIDR: ignored`},
		},
		{
			name:   "no valid range of a family: its load-balancer IPs are not served",
			change: ranges("203.0.113.0/24", "2001:db8:1::/480"),
			want: func(m *lb.Service) {
				m.SourceRanges, m.LoadBalancerIPs = prefixes("203.0.113.0/24"), addrs("192.0.2.1")
			},
			warnings: []string{
				`spec.loadBalancerSourceRanges[1]: "2001:db8:1::/480" is not a CIDR: ignored`,
				`spec.loadBalancerSourceRanges: no valid IPv6 range is left: the IPv6 load-balancer IPs are not served, rather than open to everyone`,
			},
		},
		{
			name:   "no valid range at all",
			change: ranges(" "),
			want:   func(m *lb.Service) { m.SourceRanges, m.LoadBalancerIPs = nil, addrs() },
			warnings: []string{
				`spec.loadBalancerSourceRanges[0]: " " is not a CIDR: ignored`,
				`spec.loadBalancerSourceRanges: no valid IPv4 range is left: the IPv4 load-balancer IPs are not served, rather than open to everyone`,
				`spec.loadBalancerSourceRanges: no valid IPv6 range is left: the IPv6 load-balancer IPs are not served, rather than open to everyone`,
			},
		},
		{name: "ranges of one family only are no fault", change: ranges("203.0.113.0/24"), want: func(m *lb.Service) { m.SourceRanges = m.SourceRanges[:1] }},
		{name: "no ranges: open", change: ranges(), want: func(m *lb.Service) { m.SourceRanges = nil }},

		// Session affinity.
		{name: "no affinity", change: func(s *v1.Service) { s.Spec.SessionAffinity = v1.ServiceAffinityNone }, want: func(m *lb.Service) { m.AffinityTimeout = 0 }},
		{name: "default timeout", change: func(s *v1.Service) { s.Spec.SessionAffinityConfig = nil }, want: func(m *lb.Service) { m.AffinityTimeout = defaultTimeout }},
		{name: "longest timeout", change: timeout(86400), want: func(m *lb.Service) { m.AffinityTimeout = 24 * time.Hour }},
		{
			name: "timeout of 0", change: timeout(0), want: func(m *lb.Service) { m.AffinityTimeout = defaultTimeout },
			warnings: []string{"spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not within 1–86400: 10800 is used"},
		},
		{
			name: "timeout too long", change: timeout(86401), want: func(m *lb.Service) { m.AffinityTimeout = defaultTimeout },
			warnings: []string{"spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is not within 1–86400: 10800 is used"},
		},
		{
			name: "affinity that is none", change: func(s *v1.Service) { s.Spec.SessionAffinity = "Cookie" }, want: func(m *lb.Service) { m.AffinityTimeout = 0 },
			warnings: []string{`spec.sessionAffinity: "Cookie" is not None or ClientIP: taken as None`},
		},

		// Policies.
		{
			name: "internal Local", change: func(s *v1.Service) { s.Spec.InternalTrafficPolicy = ptr(v1.ServiceInternalTrafficPolicyLocal) },
			want: func(m *lb.Service) { m.InternalLocal = true },
		},
		{
			name: "external Cluster has no health check", change: func(s *v1.Service) { s.Spec.ExternalTrafficPolicy = v1.ServiceExternalTrafficPolicyCluster },
			want: func(m *lb.Service) { m.ExternalLocal, m.HealthCheckNodePort = false, 0 },
		},
		{
			name: "nor has a NodePort service", change: func(s *v1.Service) { s.Spec.Type = v1.ServiceTypeNodePort },
			want: func(m *lb.Service) { m.HealthCheckNodePort = 0 },
		},
		{
			name: "policies that are none", change: func(s *v1.Service) {
				s.Spec.InternalTrafficPolicy, s.Spec.ExternalTrafficPolicy = ptr(v1.ServiceInternalTrafficPolicy("Near")), "Far"
			},
			want: func(m *lb.Service) { m.ExternalLocal, m.HealthCheckNodePort = false, 0 },
			warnings: []string{
				`spec.internalTrafficPolicy: "Near" is not Cluster or Local: taken as Cluster`,
				`spec.externalTrafficPolicy: "Far" is not Cluster or Local: taken as Cluster`,
			},
		},
		{
			name: "health check port out of range", change: func(s *v1.Service) { s.Spec.HealthCheckNodePort = 70000 }, want: func(m *lb.Service) { m.HealthCheckNodePort = 0 },
			warnings: []string{"spec.healthCheckNodePort: 70000 is not a port number: no health check is served"},
		},

		// Ports.
		{
			name: "a single port needs no name, nor a protocol", change: ports(v1.ServicePort{Port: 80}),
			want: portModel(lb.ServicePort{Protocol: lb.TCP, Port: 80}),
		},
		{
			name:   "ports that can't be served",
			change: ports(v1.ServicePort{Name: "a", Port: 0}, v1.ServicePort{Name: "b", Port: 65536}, v1.ServicePort{Name: "c", Port: 80, Protocol: "SCTP"}, v1.ServicePort{Name: "d", Port: 80, Protocol: "QUIC"}, v1.ServicePort{Name: "e", Port: 65535}),
			want:   portModel(lb.ServicePort{Name: "e", Protocol: lb.TCP, Port: 65535}),
			warnings: []string{
				"spec.ports[0].port: 0 is not a port number: port ignored",
				"spec.ports[1].port: 65536 is not a port number: port ignored",
				"spec.ports[2].protocol: SCTP is not supported: port ignored",
				`spec.ports[3].protocol: "QUIC" is not TCP or UDP: port ignored`,
			},
		},
		{
			name:   "ports that are there twice",
			change: ports(v1.ServicePort{Name: "a", Port: 80}, v1.ServicePort{Name: "b", Port: 80}, v1.ServicePort{Name: "a", Port: 81}, v1.ServicePort{Name: "c", Port: 80, Protocol: "UDP"}),
			want:   portModel(lb.ServicePort{Name: "a", Protocol: lb.TCP, Port: 80}, lb.ServicePort{Name: "c", Protocol: lb.UDP, Port: 80}),
			warnings: []string{
				"spec.ports[1].port: 80/TCP is that of spec.ports[0]: port ignored",
				`spec.ports[2].name: "a" is that of spec.ports[0]: port 81 ignored`,
			},
		},
		{
			name: "two ports without a name", change: ports(v1.ServicePort{Port: 53, Protocol: "UDP"}, v1.ServicePort{Port: 53}),
			want:     portModel(lb.ServicePort{Protocol: lb.UDP, Port: 53}),
			warnings: []string{`spec.ports[1].name: "" is that of spec.ports[0]: port 53 ignored`},
		},
		{
			name: "a port name that no API server takes leaves the rest",
			change: ports(v1.ServicePort{Name: strings.Repeat("p", 64), Port: 53}, v1.ServicePort{Name: "Upper", Port: 54},
				v1.ServicePort{Name: strings.Repeat("p", 63), Port: 55}),
			want: portModel(lb.ServicePort{Name: strings.Repeat("p", 63), Protocol: lb.TCP, Port: 55}),
			warnings: []string{`spec.ports[0].name: "` + strings.Repeat("p", 64) + `": port 53 ignored: must be no more than 63 characters`,
				`spec.ports[1].name: "Upper": port 54 ignored: a lowercase RFC 1123 label must consist of lower case ` +
					`alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  ` +
					`or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')`},
		},
		{
			name: "one of several without a name", change: ports(v1.ServicePort{Port: 53}, v1.ServicePort{Name: "b", Port: 54}),
			want:     portModel(lb.ServicePort{Name: "b", Protocol: lb.TCP, Port: 54}),
			warnings: []string{"spec.ports[0].name: is missing, which only a single port may: port 53 ignored"},
		},
		{
			name:   "node ports",
			change: ports(v1.ServicePort{Name: "a", Port: 80, NodePort: 30080}, v1.ServicePort{Name: "b", Port: 81, NodePort: 30080}, v1.ServicePort{Name: "c", Port: 80, NodePort: 30080, Protocol: "UDP"}, v1.ServicePort{Name: "d", Port: 82, NodePort: -1}),
			want: portModel(lb.ServicePort{Name: "a", Protocol: lb.TCP, Port: 80, NodePort: 30080}, lb.ServicePort{Name: "b", Protocol: lb.TCP, Port: 81},
				lb.ServicePort{Name: "c", Protocol: lb.UDP, Port: 80, NodePort: 30080}, lb.ServicePort{Name: "d", Protocol: lb.TCP, Port: 82}),
			warnings: []string{
				"spec.ports[1].nodePort: 30080/TCP is that of port 80: node port ignored",
				"spec.ports[3].nodePort: -1 is not a port number: node port ignored",
			},
		},
		{
			name:   "a node port needs its type",
			change: func(s *v1.Service) { s.Spec.Type = v1.ServiceTypeClusterIP; s.Spec.Ports = s.Spec.Ports[:1] },
			want: func(m *lb.Service) {
				m.Ports, m.HealthCheckNodePort = []lb.ServicePort{{Name: "http", Protocol: lb.TCP, Port: 80}}, 0
			},
			warnings: []string{`spec.ports[0].nodePort: 30080 needs type NodePort or LoadBalancer, not "ClusterIP": node port ignored`},
		},
	}
}
