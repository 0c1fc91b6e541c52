// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The generic netlink interface of IPVS (include/uapi/linux/ip_vs.h).
const (
	ipvsFamily     = "IPVS"
	ipvsVersion    = 1
	cmdDelService  = 3
	cmdGetService  = 4
	cmdAttrService = 1

	svcAttrAF       = 1 // u16
	svcAttrProtocol = 2 // u16
	svcAttrAddr     = 3 // 16 bytes, network byte order, IPv4 in the first four
	svcAttrPort     = 4 // u16, network byte order
	svcAttrMark     = 5 // u32
	genlHeader      = 4
)

// server is a virtual server of IPVS.
type server struct {
	addr     netip.Addr
	protocol uint16 // IPPROTO_
	port     uint16
	mark     uint32 // not 0: a firewall mark identifies the server, and addr and port are unset
}

func (s server) String() string {
	if s.mark != 0 {
		return fmt.Sprintf("mark %d", s.mark)
	}
	name := map[uint16]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP", unix.IPPROTO_SCTP: "SCTP"}[s.protocol]
	return name + " " + netip.AddrPortFrom(s.addr, s.port).String()
}

func ipvsRequest(command uint8, flags int) (*nl.NetlinkRequest, error) {
	family, err := netlink.GenlFamilyGet(ipvsFamily)
	if err != nil {
		return nil, fmt.Errorf("find the kernel's IPVS: %w", err)
	}
	request := nl.NewNetlinkRequest(int(family.ID), flags)
	request.AddData(&nl.Genlmsg{Command: command, Version: ipvsVersion})
	return request, nil
}

func listServers() ([]server, error) {
	request, err := ipvsRequest(cmdGetService, unix.NLM_F_DUMP)
	if err != nil {
		return nil, err
	}
	replies, err := request.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return nil, fmt.Errorf("list virtual servers: %w", err)
	}
	var all []server
	for _, reply := range replies {
		s, err := parseServer(reply)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// parseServer parses one answer to cmdGetService.
func parseServer(reply []byte) (server, error) {
	if len(reply) < genlHeader {
		return server{}, fmt.Errorf("list virtual servers: an answer of %d bytes", len(reply))
	}
	a := parseAttrs(parseAttrs(reply[genlHeader:])[cmdAttrService])
	if mark := a[svcAttrMark]; len(mark) == 4 {
		return server{mark: nl.NativeEndian().Uint32(mark)}, nil
	}
	if len(a[svcAttrAF]) != 2 || len(a[svcAttrProtocol]) != 2 || len(a[svcAttrAddr]) != 16 || len(a[svcAttrPort]) != 2 {
		return server{}, fmt.Errorf("list virtual servers: an answer without address, protocol or port: %x", reply)
	}
	s := server{
		protocol: nl.NativeEndian().Uint16(a[svcAttrProtocol]),
		port:     binary.BigEndian.Uint16(a[svcAttrPort]),
		addr:     netip.AddrFrom16([16]byte(a[svcAttrAddr])),
	}
	if nl.NativeEndian().Uint16(a[svcAttrAF]) == unix.AF_INET {
		s.addr = netip.AddrFrom4([4]byte(a[svcAttrAddr][:4]))
	}
	return s, nil
}

// attr returns the attribute by which the kernel identifies the server.
func (s server) attr() *nl.RtAttr {
	af := uint16(unix.AF_INET6)
	if s.addr.Is4() {
		af = unix.AF_INET
	}
	var addr [16]byte
	copy(addr[:], s.addr.AsSlice())
	service := nl.NewRtAttr(cmdAttrService|unix.NLA_F_NESTED, nil)
	service.AddRtAttr(svcAttrAF, nl.Uint16Attr(af))
	service.AddRtAttr(svcAttrProtocol, nl.Uint16Attr(s.protocol))
	service.AddRtAttr(svcAttrAddr, addr[:])
	service.AddRtAttr(svcAttrPort, binary.BigEndian.AppendUint16(nil, s.port))
	return service
}

func (s server) remove() error {
	request, err := ipvsRequest(cmdDelService, unix.NLM_F_ACK)
	if err != nil {
		return err
	}
	request.AddData(s.attr())
	if _, err := request.Execute(unix.NETLINK_GENERIC, 0); err != nil {
		return fmt.Errorf("remove the virtual server %s: %w", s, err)
	}
	return nil
}
