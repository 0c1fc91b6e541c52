// SPDX-License-Identifier: Apache-2.0

package soak_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shunt/e2e/rig"
	"shunt/lab"
	"shunt/maps"
)

// fault is an event on a node, and the failures that it may cause.
type fault struct {
	name string
	// do causes the fault and removes it.
	do func(s *soak)
	// costs reports whether new connections of a flow may fail during the fault, and until
	// heals after it. Nil means that none may.
	costs func(*flow) bool
	heals time.Duration
	// ends reports whether the fault may end long connections of a flow. Nil means that
	// none may end.
	ends func(*flow) bool
}

const (
	// repairs bounds the time in which the daemon repairs its hooks: it checks them every
	// five seconds.
	repairs = 15 * time.Second
	// timeDown bounds how long something stays away before it may come back.
	timeDown = 2 * time.Second
	// stopped keeps the daemon from repairing anything.
	stopped = syscall.SIGSTOP
)

func faults() []fault {
	socket := func(f *flow) bool { return !f.packet }
	packet := func(f *flow) bool { return f.packet }
	udp := func(f *flow) bool { return f.udp() }
	return []fault{
		{name: "kill", do: func(s *soak) { s.down(s.d.Kill); s.up() }},
		{name: "stop", do: func(s *soak) { s.down(s.d.Stop); s.up() }},
		{name: "API away", do: func(s *soak) { s.way.Refuse(); s.changeMeanwhile(nil) }},
		{name: "kill while the API is away", do: func(s *soak) {
			s.way.Refuse()
			s.down(s.d.Kill)
			s.changeMeanwhile(func() { s.d.Launch() })
			s.up()
		}},
		// The daemon holds every link and map, so that a removed pin takes nothing out of
		// effect.
		{name: "pin of a socket hook removed", do: func(s *soak) { s.unpin(false) }},
		{name: "pin of a packet hook removed", do: func(s *soak) { s.unpin(true) }},
		{name: "pins of maps removed", do: (*soak).mapPins},
		{name: "pin directory renamed", do: (*soak).directoryRenamed},
		{name: "pin directory removed", do: (*soak).directoryRemoved},
		{name: "socket hook detached", do: func(s *soak) { s.detach(false) }, costs: socket, heals: repairs},
		{name: "packet hook detached", do: func(s *soak) { s.detach(true) }, costs: packet, heals: repairs},
		// With the maps, the flows of connections from outside are lost.
		{name: "pin directory removed and daemon killed", do: (*soak).nothingKept,
			costs: func(*flow) bool { return true }, heals: repairs, ends: packet},
		{name: "all hooks removed while the daemon is down", do: (*soak).bare,
			costs: func(*flow) bool { return true }, heals: repairs},
		{name: "device comes and goes", do: (*soak).device},
		{name: "device renamed", do: (*soak).rename},
		{name: "flood Service", do: (*soak).flood},
		{name: "port names", do: (*soak).portNames},
		// A UDP socket whose endpoint is removed is woken with an error.
		{name: "endpoints", do: (*soak).churn, costs: udp, heals: 2 * time.Second, ends: udp},
	}
}

// pause waits for a random time with the fault, under traffic.
func (s *soak) pause(most time.Duration) { time.Sleep(time.Duration(s.rnd.Int64N(int64(most)))) }

// down ends the daemon, which must have leaked nothing.
func (s *soak) down(end func()) {
	if s.rnd.IntN(3) == 0 { // sometimes for a while
		s.probes.end()
		s.unleaked()
		s.probes.begin()
	}
	s.probes.down()
	end()
	s.pause(time.Second)
}

// up starts the daemon unless it runs.
func (s *soak) up() {
	if !s.d.Alive() {
		s.d.Launch()
	}
	s.d.WaitHealthy()
	s.probes.up()
}

// changeMeanwhile creates a Service, whose event the daemon gets when the API server is
// back, and deletes it.
func (s *soak) changeMeanwhile(more func()) {
	svc := newService("meanwhile", 5)
	s.create(svc)
	if more != nil {
		more()
	}
	s.pause(3 * time.Second)
	s.check(s.way.Accept())
	s.there(svc, true)
	s.remove(svc)
}

func (s *soak) create(svc *v1.Service) {
	s.t.Helper()
	_, err := s.api.CoreV1().Services(svc.Namespace).Create(s.t.Context(), svc, metav1.CreateOptions{})
	s.check(err)
}

func (s *soak) remove(svc *v1.Service) {
	s.t.Helper()
	s.check(s.api.CoreV1().Services(svc.Namespace).Delete(s.t.Context(), svc.Name, metav1.DeleteOptions{}))
	s.there(svc, false)
}

// dump returns the content of the maps. They change during the read, and a read that was
// interrupted too often by changes is repeated.
func (s *soak) dump() (text string) {
	s.t.Helper()
	rig.Eventually(s.t, "the maps can be read", func() bool {
		var dump *maps.Dump
		var dumpErr error
		err := errors.Join(s.d.Kernel(func(k *maps.Kernel) { dump, dumpErr = k.Dump() }), dumpErr)
		if err == nil {
			text = dump.Text()
		}
		return err == nil
	})
	return text
}

// there waits until a Service is, or is not, in the maps.
func (s *soak) there(svc *v1.Service, there bool) {
	s.t.Helper()
	rig.Eventually(s.t, fmt.Sprintf("Service %s is in the maps: %t", svc.Name, there), func() bool {
		return strings.Contains(s.dump(), svc.Namespace+"/"+svc.Name+":") == there
	})
}

// bare removes every hook for a moment, while no daemon holds them.
func (s *soak) bare() {
	s.down(s.d.Kill)
	dir := filepath.Join(s.d.Root, "links")
	entries, err := os.ReadDir(dir)
	s.check(err)
	for _, e := range entries {
		s.check(os.Remove(filepath.Join(dir, e.Name())))
	}
	s.pause(2 * time.Second)
	s.up()
}

// ip runs a command in the node's network namespace.
func (s *soak) ip(args ...string) {
	s.t.Helper()
	args = append([]string{"-n", filepath.Base(s.n1.NetnsPath())}, args...)
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		s.t.Fatalf("ip %v: %v\n%s", args, err, out)
	}
}

// device adds a device to which programs are attached, and removes it.
func (s *soak) device() {
	s.ip("link", "add", "soak0", "type", "veth", "peer", "name", "soak1")
	s.ip("addr", "add", "192.0.2.1/24", "dev", "soak0")
	s.ip("link", "set", "soak0", "up")
	s.ip("link", "set", "soak1", "up")
	s.pause(2 * time.Second)
	s.ip("link", "del", "soak0")
}

// rename renames the uplink for a moment.
func (s *soak) rename() {
	s.ip("link", "set", "eth0", "name", "soak9")
	s.pause(2 * time.Second)
	s.ip("link", "set", "soak9", "name", "eth0")
}

// flood creates more frontends than the maps have room for.
func (s *soak) flood() {
	svc := newService("flood", 3)
	svc.Spec.Ports = nil
	for i := range 60 {
		svc.Spec.Ports = append(svc.Spec.Ports, v1.ServicePort{Name: fmt.Sprint("p", i), Protocol: v1.ProtocolTCP, Port: int32(1000 + i)})
	}
	for i := range 40 {
		svc.Spec.ExternalIPs = append(svc.Spec.ExternalIPs, fmt.Sprintf("203.0.113.%d", i+1))
	}
	s.create(svc)
	s.there(svc, true)
	s.pause(2 * time.Second)
	s.remove(svc)
}

// names are the names of the TCP port and the UDP port.
type names struct{ tcp, udp string }

// putSlices sets the endpoints of the service, with these names of its ports.
func (s *soak) putSlices(called names, pods ...*lab.Pod) {
	s.putSlicesOf([]names{called}, pods...)
}

func (s *soak) putSlicesOf(called []names, pods ...*lab.Pod) {
	s.t.Helper()
	api := s.api.DiscoveryV1().EndpointSlices(v1.NamespaceDefault)
	for _, o := range rig.SlicesOf(web, rig.Up(pods...)...) {
		sl := o.(*discoveryv1.EndpointSlice)
		port := sl.Ports[0].Port
		sl.Ports = nil
		for _, n := range called {
			for protocol, name := range map[v1.Protocol]string{v1.ProtocolTCP: n.tcp, v1.ProtocolUDP: n.udp} {
				sl.Ports = append(sl.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: port})
			}
		}
		if _, err := api.Update(s.t.Context(), sl, metav1.UpdateOptions{}); err != nil {
			_, err = api.Create(s.t.Context(), sl, metav1.CreateOptions{})
			s.check(err)
		}
	}
}

// portNames renames the ports, and back. In between, the slices have both names, since two objects
// do not change at once.
func (s *soak) portNames() {
	old, other := names{"t", "u"}, names{"x", "y"}
	rename := func(from, to names) {
		s.putSlicesOf([]names{from, to}, s.near, s.far)
		s.settled(from)
		services := s.api.CoreV1().Services(v1.NamespaceDefault)
		svc, err := services.Get(s.t.Context(), web, metav1.GetOptions{})
		s.check(err)
		svc.Spec.Ports[0].Name, svc.Spec.Ports[1].Name = to.tcp, to.udp
		_, err = services.Update(s.t.Context(), svc, metav1.UpdateOptions{})
		s.check(err)
		s.settled(to)
		s.putSlicesOf([]names{to}, s.near, s.far)
	}
	rename(old, other)
	s.pause(time.Second)
	rename(other, old)
}

// settled waits until the daemon has processed all earlier changes to the service: until a
// Service and slices that are created later are in the maps.
func (s *soak) settled(called names) {
	s.t.Helper()
	rig.Eventually(s.t, "the service has the ports "+called.tcp+" and "+called.udp, func() bool {
		text := s.dump()
		return strings.Contains(text, web+":"+called.tcp+"/TCP") && strings.Contains(text, web+":"+called.udp+"/UDP")
	})
	last := newService("last", 4)
	s.create(last)
	slices := s.api.DiscoveryV1().EndpointSlices(v1.NamespaceDefault)
	for _, o := range rig.SlicesOf("last", rig.Up(s.near)...) {
		_, err := slices.Create(s.t.Context(), o.(*discoveryv1.EndpointSlice), metav1.CreateOptions{})
		s.check(err)
	}
	for i := range s.near.Addrs() {
		line := fmt.Sprintf("backend %s of default/last:t/TCP", rig.At(s.near.Addrs()[i], rig.ServerPort))
		rig.Eventually(s.t, line, func() bool { return strings.Contains(s.dump(), line) })
	}
	s.remove(last)
	s.check(slices.DeleteCollection(s.t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=last"}))
}

// churn changes the endpoints several times.
func (s *soak) churn() {
	ports := names{"t", "u"}
	for _, pods := range [][]*lab.Pod{{s.near, s.far, s.spare}, {s.spare}, {s.far, s.spare}, {s.near, s.far}} {
		s.putSlices(ports, pods...)
		s.pause(time.Second)
	}
}

// newService returns Service number n as the API server accepts it.
func newService(name string, n int, options ...func(*v1.Service)) *v1.Service {
	svc := rig.Service(name, n, options...)
	policy := v1.IPFamilyPolicyRequireDualStack
	svc.Spec.IPFamilyPolicy = &policy
	return svc
}

func nodeObject(n *lab.Node) *v1.Node {
	return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name()}}
}
