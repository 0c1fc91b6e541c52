// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"time"

	"golang.org/x/sys/unix"

	"shunt/maps"
)

// Timeouts are how long a flow is kept after its last packet. Zero: the default of config.h.
type Timeouts struct {
	TCPNew, TCPEstablished, TCPCloseWait, TCPClosed time.Duration
	UDPNew, UDPEstablished                          time.Duration
}

// MinTimeout is the least timeout of a flow: the programs update its time of last use about
// once a second (FLOW_TOUCH), not with every packet.
const MinTimeout = 2 * time.Second

// apply writes the timeouts that are not zero to to, in ns.
func (t Timeouts) apply(to *tcTimeouts) {
	for _, f := range []struct {
		to    *uint64
		value time.Duration
	}{{&to.TcpNew, t.TCPNew}, {&to.TcpEstablished, t.TCPEstablished}, {&to.TcpCloseWait, t.TCPCloseWait},
		{&to.TcpClosed, t.TCPClosed}, {&to.UdpNew, t.UDPNew}, {&to.UdpEstablished, t.UDPEstablished}} {
		if f.value > 0 {
			*f.to = uint64(f.value.Nanoseconds())
		}
	}
}

// flowTimeouts are config_timeouts of config.h, in ns.
type flowTimeouts = expireTimeouts

// effective returns the timeouts that programs are loaded with: the defaults of config.h,
// changed by t.
func (t Timeouts) effective() (flowTimeouts, error) {
	var all flowTimeouts
	spec, err := loadExpire()
	if err != nil {
		return all, err
	}
	if err := spec.Variables[expireVarConfigTimeouts].Get(&all); err != nil {
		return all, err
	}
	t.apply((*tcTimeouts)(&all))
	return all, nil
}

// of returns a flow's timeout in ns, by the rules of flow_timeout (timeout.h).
func (t *expireTimeouts) of(f *maps.Flow) uint64 {
	confirmed := f.Flags&maps.FlowConfirmed != 0
	switch {
	case f.Protocol != unix.IPPROTO_TCP && confirmed:
		return t.UdpEstablished
	case f.Protocol != unix.IPPROTO_TCP:
		return t.UdpNew
	case isClosed(f):
		return t.TcpClosed
	case (f.ClientSaid|f.BackendSaid)&maps.SaidFIN != 0:
		return t.TcpCloseWait
	case confirmed && f.ClientSaid&maps.SaidSYN == 0:
		return t.TcpEstablished
	}
	return t.TcpNew
}

// expired reports whether a flow was not used for its timeout, as flow_is_expired of timeout.h
// does. now is in ns of CLOCK_MONOTONIC.
func (t *expireTimeouts) expired(f *maps.Flow, now uint64) bool {
	return int64(now-f.Used) >= int64(t.of(f))
}

// isClosed reports whether a TCP connection has ended, as flow_is_closed of timeout.h does.
func isClosed(f *maps.Flow) bool {
	return (f.ClientSaid|f.BackendSaid)&maps.SaidRST != 0 || f.ClientSaid&f.BackendSaid&maps.SaidFIN != 0
}
