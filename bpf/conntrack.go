// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// conntrackPeriod is the least time between two dumps of conntrack's table.
const conntrackPeriod = 10 * time.Second

// strangers tracks whether conntrack translates connections to frontends. When shunt replaces
// kube-proxy, the connections that kube-proxy has translated remain in conntrack (also those of
// IPVS, which records them there), and must not be reset. shunt's programs translate packets
// before conntrack sees them, so that no such connections are added while the programs are
// attached. So strangers does not check a frontend without such connections again. It checks
// frontends that are added later, which may have some.
type strangers struct {
	gone bool
	// frontends is the value of maps.Kernel.NewFrontends at the last check.
	frontends uint64
	last      time.Time
	// count is the number of connections at the last check.
	count int
}

// look reports whether conntrack translates no connection to a frontend. It reads conntrack at
// most once in conntrackPeriod. frontends is the value of maps.Kernel.NewFrontends, isFrontend
// is maps.Kernel.IsFrontend.
func (s *strangers) look(frontends uint64, isFrontend func(netip.AddrPort, uint8) bool, log *zap.Logger) bool {
	s.gone = s.gone && s.frontends == frontends
	if s.gone || time.Since(s.last) < conntrackPeriod {
		return s.gone
	}
	s.last, s.frontends = time.Now(), frontends
	n, err := countTranslated(isFrontend)
	switch {
	case err != nil:
		log.Warn("conntrack can't be asked whether others translate connections to services: TCP of unknown connections is not reset",
			zap.Error(err))
	case n == 0:
		s.gone = true
		if s.count > 0 {
			log.Info("no connection to a service is translated by others any more: TCP of unknown connections is reset")
		}
	case n != s.count:
		log.Info("connections to services that others have set up are left to conntrack: TCP of unknown connections is not reset meanwhile",
			zap.Int("connections", n))
	}
	s.count = n
	return s.gone
}

// countTranslated returns how many TCP connections to frontends conntrack translates in the
// network namespace of the calling thread.
func countTranslated(isFrontend func(netip.AddrPort, uint8) bool) (n int, err error) {
	// A namespace without connections has nothing to list. And the kernel would load conntrack
	// for the request, which this check must not cause.
	known, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	if errors.Is(err, os.ErrNotExist) || err == nil && strings.TrimSpace(string(known)) == "0" {
		return 0, nil
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := listConntrack(family)
		if err != nil {
			return 0, err
		}
		for _, f := range flows {
			to, ok := translatedFrom(f)
			if ok && isFrontend(to, unix.IPPROTO_TCP) {
				n++
			}
		}
	}
	return n, nil
}

// conntrackTries is the number of attempts to read a list that changes during the read.
const conntrackTries = 5

func listConntrack(family netlink.InetFamily) (flows []*netlink.ConntrackFlow, err error) {
	err = netlink.ErrDumpInterrupted
	for try := 0; errors.Is(err, netlink.ErrDumpInterrupted) && try < conntrackTries; try++ {
		flows, err = netlink.ConntrackTableList(netlink.ConntrackTable, family)
	}
	if err != nil {
		return nil, fmt.Errorf("list conntrack's entries: %w", err)
	}
	return flows, nil
}

// translatedFrom returns the original destination of a TCP connection. ok is false unless the
// connection is translated: its replies come from another address or port than this destination.
func translatedFrom(f *netlink.ConntrackFlow) (to netip.AddrPort, ok bool) {
	if f.Forward.Protocol != unix.IPPROTO_TCP ||
		f.Forward.DstIP.Equal(f.Reverse.SrcIP) && f.Forward.DstPort == f.Reverse.SrcPort {
		return to, false
	}
	addr, ok := netip.AddrFromSlice(slices.Clone(net.IP(f.Forward.DstIP)))
	return netip.AddrPortFrom(addr.Unmap(), f.Forward.DstPort), ok
}
