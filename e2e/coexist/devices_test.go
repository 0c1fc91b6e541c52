// SPDX-License-Identifier: Apache-2.0

package coexist

import (
	"context"
	"fmt"
	"net"
	"time"

	"shunt/e2e/rig"
)

// bareUplink has clients behind a point-to-point link: the node's end has no address of a network,
// and the routes by it have no gateway.
func bareUplink(s *scene) {
	n := s.service(rig.Everywhere(s.number*3 + s.index))
	beside := s.lab.Client("ptp-" + s.name)
	device := "ptp0"
	s.node.Link(beside, device)
	s.undo("ip", "link", "del", device)
	for _, family := range families {
		flag := fmt.Sprintf("-%d", family)
		s.run("", "ip", flag, "addr", "flush", "dev", device, "scope", "global")
		s.run("", "ip", flag, "route", "add", of(beside.LinkAddrs(), family).String(), "dev", device)
		s.run("", "ip", flag, "route", "add", "default", "dev", device, "metric", "9999")
		vip := of(rig.BalancerIPs(n), family).String()
		for _, args := range [][]string{
			{flag, "route", "add", vip, "dev", device, "src", of(beside.LinkAddrs(), family).String()},
			{flag, "neigh", "add", vip, "lladdr", s.mac(device), "dev", device},
		} {
			must(s.T, beside.Command(context.Background(), "ip", args...).Run())
		}
	}
	for _, family := range families {
		for _, network := range []string{"tcp", "udp"} {
			at, what := rig.At(of(rig.BalancerIPs(n), family), rig.ServicePort), fmt.Sprintf("outside %s IPv%d", network, family)
			s.expect(what, s.becomes(beside, network, at, s.web.Name()), s.web.Name())
			// shunt saw the device with addresses first: it must stay attached without them.
			for end := time.Now().Add(300 * time.Millisecond); len(s.wrong) == 0 && time.Now().Before(end); {
				s.expect(what, s.ask(beside, network, at), s.web.Name())
			}
		}
	}
	if s.name == shunt {
		said := s.command("status")
		s.expect("status", fmt.Sprint(shows(said, device+" egress default-route")), "true")
		s.expect("status of a pod's device", fmt.Sprint(shows(said, "no-network "+s.web.Veth())), "true")
	}
}

// mac returns the link address of a device of the node.
func (s *scene) mac(device string) (mac string) {
	s.Helper()
	must(s.T, s.node.Do(func() error {
		i, err := net.InterfaceByName(device)
		if err == nil {
			mac = i.HardwareAddr.String()
		}
		return err
	}))
	return mac
}
