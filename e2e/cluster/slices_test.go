// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"shunt/lab"
)

// TestSlices has several slices for a service: endpoints move between them, are in two of
// them, and are added and removed with whole slices.
func TestSlices(t *testing.T) {
	w := setUp(t).in(t, "slices")
	p := w.pods
	ip := w.create("web", []v1.ServicePort{tcp("http", 80), udp("dns", 53)}).Spec.ClusterIP
	ports := []discoveryv1.EndpointPort{target("http", v1.ProtocolTCP, 8000), target("dns", v1.ProtocolUDP, 8001)}
	expect := func(pods ...*lab.Pod) {
		t.Helper()
		var http, dns, names []string
		for _, p := range pods {
			http, dns = append(http, p.Name()+":8000"), append(dns, p.Name()+":8001")
			names = append(names, p.Name())
		}
		w.expect(t, w.namespace, strings.TrimSpace(fmt.Sprintf("web:http ClusterIP %s:80/TCP Cluster %s", ip, strings.Join(http, " "))),
			strings.TrimSpace(fmt.Sprintf("web:dns ClusterIP %s:53/UDP Cluster %s", ip, strings.Join(dns, " "))))
		if len(names) == 0 {
			w.refused(w.client, "tcp", addr(ip, 80))
			w.refused(w.client, "udp", addr(ip, 53))
			return
		}
		w.reach(w.client, "tcp", addr(ip, 80), names...)
		w.reach(w.client, "udp", addr(ip, 53), names...)
	}
	w.createSlice("web", "web-1", ports, v4(p[0], p[1]))
	w.createSlice("web", "web-2", ports, v4(p[5]))
	expect(p[0], p[1], p[5])
	set := func(slice string, pods ...*lab.Pod) {
		w.updateSlice(slice, func(s *discoveryv1.EndpointSlice) { s.Endpoints = v4(pods...) })
	}
	// From one slice to another, which the API reports as two changes.
	set("web-2", p[5], p[1])
	expect(p[0], p[1], p[5]) // in both
	set("web-1", p[0])
	expect(p[0], p[1], p[5])
	set("web-2", p[1])
	expect(p[0], p[1])
	set("web-1")
	expect(p[1])
	w.removeSlice("web-2")
	expect()
	set("web-1", p[2], p[3], p[4], p[6], p[7], p[8], p[9])
	expect(p[2], p[3], p[4], p[6], p[7], p[8], p[9])
	w.expectFresh(t)

	// If two slices have the same endpoint, the better conditions count, in either order.
	w.createSlice("web", "web-3", ports, v4(p[2]), func(s *discoveryv1.EndpointSlice) {
		s.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(false)}
	})
	set("web-1", p[2])
	expect(p[2])
	w.updateSlice("web-1", func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Conditions.Ready = ptr(false) })
	expect()
	w.updateSlice("web-3", func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Conditions = discoveryv1.EndpointConditions{} })
	expect(p[2]) // no conditions mean ready
	w.expectFresh(t)
}

// TestConditions drains a service: terminating endpoints are used if there are no others,
// unready ones never.
func TestConditions(t *testing.T) {
	w := setUp(t).in(t, "conditions")
	p := w.pods
	ip := w.create("web", []v1.ServicePort{tcp("", 80)}).Spec.ClusterIP
	w.createSlice("web", "web-1", onePort, v4(p[0], p[1], p[2]))
	set := func(endpoint int, ready, serving, terminating bool) {
		w.updateSlice("web-1", func(s *discoveryv1.EndpointSlice) {
			s.Endpoints[endpoint].Conditions = discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}
		})
	}
	expect := func(text string, pods ...string) {
		t.Helper()
		w.expect(t, w.namespace, strings.TrimSpace(fmt.Sprintf("web ClusterIP %s:80/TCP Cluster %s", ip, text)))
		if len(pods) == 0 {
			w.refused(w.client, "tcp", addr(ip, 80))
			return
		}
		w.reach(w.client, "tcp", addr(ip, 80), pods...)
	}
	expect("p0:8000 p1:8000 p2:8000", "p0", "p1", "p2")
	set(0, false, true, true)
	expect("p1:8000 p2:8000", "p1", "p2")
	set(1, false, false, false)
	expect("p2:8000", "p2")
	set(2, false, true, true)
	expect("p0:8000(terminating) p2:8000(terminating)", "p0", "p2")
	w.expectFresh(t)
	set(0, false, false, true)
	expect("p2:8000(terminating)", "p2")
	set(2, false, false, true)
	expect("")
	set(1, true, true, false)
	expect("p1:8000", "p1")
	w.expectFresh(t)
}

// TestLabels sets and removes labels that exclude an object from shunt, and moves a slice
// to another service.
func TestLabels(t *testing.T) {
	w := setUp(t).in(t, "labels")
	const proxyName, headless = "service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"
	p := w.pods
	web := w.create("web", []v1.ServicePort{tcp("", 80)}).Spec.ClusterIP
	api := w.create("api", []v1.ServicePort{tcp("", 80)}).Spec.ClusterIP
	w.createSlice("web", "web-1", onePort, v4(p[0]))
	w.createSlice("web", "web-2", onePort, v4(p[1]))
	expect := func(webPods, apiPods string) {
		t.Helper()
		lines := []string{strings.TrimSpace(fmt.Sprintf("api ClusterIP %s:80/TCP Cluster %s", api, apiPods))}
		if webPods != "gone" {
			lines = append(lines, strings.TrimSpace(fmt.Sprintf("web ClusterIP %s:80/TCP Cluster %s", web, webPods)))
		}
		w.expect(t, w.namespace, lines...)
	}
	both := "p0:8000 p1:8000"
	expect(both, "")
	// The value names the proxy. Only the label's presence counts.
	w.update("web", func(s *v1.Service) { s.Labels = map[string]string{proxyName: "other"} })
	expect("gone", "")
	w.silent(w.client, "tcp", addr(web, 80))                                            // its address is left to the other proxy
	w.update("web", func(s *v1.Service) { s.Labels = map[string]string{headless: ""} }) // has no meaning on a Service
	expect(both, "")
	w.reach(w.client, "tcp", addr(web, 80), "p0", "p1")

	for _, label := range []string{proxyName, headless} {
		w.updateSlice("web-2", func(s *discoveryv1.EndpointSlice) { s.Labels[label] = "" })
		expect("p0:8000", "")
		w.reach(w.client, "tcp", addr(web, 80), "p0")
		w.updateSlice("web-2", func(s *discoveryv1.EndpointSlice) { delete(s.Labels, label) })
		expect(both, "")
		w.reach(w.client, "tcp", addr(web, 80), "p0", "p1")
	}
	w.expectFresh(t)

	w.updateSlice("web-2", func(s *discoveryv1.EndpointSlice) { s.Labels[discoveryv1.LabelServiceName] = "api" })
	expect("p0:8000", "p1:8000")
	w.reach(w.client, "tcp", addr(web, 80), "p0")
	w.reach(w.client, "tcp", addr(api, 80), "p1")
	w.updateSlice("web-2", func(s *discoveryv1.EndpointSlice) { s.Labels[discoveryv1.LabelServiceName] = "nobody" })
	expect("p0:8000", "")
	w.refused(w.client, "tcp", addr(api, 80))
	w.updateSlice("web-2", func(s *discoveryv1.EndpointSlice) { delete(s.Labels, discoveryv1.LabelServiceName) })
	w.updateSlice("web-1", func(s *discoveryv1.EndpointSlice) { delete(s.Labels, discoveryv1.LabelServiceName) })
	expect("", "")
	w.updateSlice("web-2", func(s *discoveryv1.EndpointSlice) {
		s.Labels = map[string]string{discoveryv1.LabelServiceName: "web"}
	})
	expect("p1:8000", "")
	w.reach(w.client, "tcp", addr(web, 80), "p1")
	w.expectFresh(t)
}

// TestScaledToZero removes a UDP service's endpoints and adds others, with clients that
// keep their sockets: none may still reach the old endpoint.
func TestScaledToZero(t *testing.T) {
	w := setUp(t).in(t, "zero")
	ip := w.create("dns", []v1.ServicePort{udp("", 53)}).Spec.ClusterIP
	ports := []discoveryv1.EndpointPort{target("", v1.ProtocolUDP, 8000)}
	w.createSlice("dns", "dns-1", ports, v4(w.pods[0]))
	line := fmt.Sprintf("dns ClusterIP %s:53/UDP Cluster", ip)
	w.expect(t, w.namespace, line+" p0:8000")
	connected, loose := w.client.Socket("udp4"), w.client.Socket("udp4")
	ask := func(s *lab.Socket, send func() error) (server string, err error) {
		if err := send(); err != nil {
			return "", err
		}
		answer, from, err := s.Recv(5 * time.Second)
		if err == nil && from != addr(ip, 53) {
			t.Errorf("the answer came from %v", from)
		}
		words := strings.Fields(string(answer))
		return strings.Join(words[min(1, len(words)):min(2, len(words))], ""), err
	}
	sendTo := func() error { return loose.SendTo(addr(ip, 53), []byte("x\n")) }
	check(t, connected.Connect(addr(ip, 53)))
	for _, s := range []*lab.Socket{connected, loose} {
		send := sendTo
		if s == connected {
			send = func() error { return s.Send([]byte("x\n")) }
		}
		if server, err := ask(s, send); err != nil || server != "p0" {
			t.Fatalf("answered by %q, %v", server, err)
		}
	}
	w.updateSlice("dns-1", func(s *discoveryv1.EndpointSlice) { s.Endpoints = nil })
	w.expect(t, w.namespace, line)
	events, err := connected.Poll(lab.PollIn, within)
	if err != nil || events&lab.PollErr == 0 {
		t.Errorf("the connected socket was not woken: %x, %v", events, err)
	}
	if err := sendTo(); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("sendto a service without endpoints: %v, want ECONNREFUSED", err)
	}
	w.updateSlice("dns-1", func(s *discoveryv1.EndpointSlice) { s.Endpoints = v4(w.pods[6]) })
	w.expect(t, w.namespace, line+" p6:8000")
	if server, err := ask(loose, sendTo); err != nil || server != "p6" {
		t.Errorf("after the service has endpoints again: answered by %q, %v", server, err)
	}
	check(t, errors.Join(connected.Close(), loose.Close()))
	w.expectFresh(t)
}
