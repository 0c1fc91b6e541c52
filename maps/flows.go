// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
)

// The packet path's keys and values; see types.go.
type (
	// FlowKey is the key of maps flows and flows_new.
	FlowKey = abiFlowKey
	// Flow is the value of maps flows and flows_new. Used is in ns of
	// CLOCK_MONOTONIC.
	Flow = abiFlow
	// FragmentKey is the key of map fragments.
	FragmentKey = abiFragmentKey
	// LocalPortKey is the key of map local_ports.
	LocalPortKey = abiLocalPortKey
	// Fragment is the value of map fragments.
	Fragment = abiFragment
)

// Kinds of FlowKey (enum flow_key_kind).
const (
	FlowKeyIn  = uint8(abiFlowKeyKindFLOW_KEY_IN)
	FlowKeyOut = uint8(abiFlowKeyKindFLOW_KEY_OUT)
)

// Flags of Flow.Flags (enum flow_flag).
const (
	FlowSNAT      = uint8(abiFlowFlagFLOW_FLAG_SNAT)
	FlowConfirmed = uint8(abiFlowFlagFLOW_FLAG_CONFIRMED)
	FlowLocal     = uint8(abiFlowFlagFLOW_FLAG_LOCAL)
	FlowRemapped  = uint8(abiFlowFlagFLOW_FLAG_REMAPPED)
	FlowDirect    = uint8(abiFlowFlagFLOW_FLAG_DIRECT)
)

// Flags of Flow.ClientSaid and BackendSaid (enum flow_said).
const (
	SaidFIN        = uint8(abiFlowSaidFLOW_SAID_FIN)
	SaidFINLater   = uint8(abiFlowSaidFLOW_SAID_FIN_LATER)
	SaidRST        = uint8(abiFlowSaidFLOW_SAID_RST)
	SaidAnything   = uint8(abiFlowSaidFLOW_SAID_ANYTHING)
	SaidAsked      = uint8(abiFlowSaidFLOW_SAID_ASKED)
	SaidAskedAgain = uint8(abiFlowSaidFLOW_SAID_ASKED_AGAIN)
	SaidSYN        = uint8(abiFlowSaidFLOW_SAID_SYN)
)

// Ages at which programs ignore a note that has no configured timeout (enum note_age).
const (
	FragmentAge  = time.Duration(abiNoteAgeNOTE_AGE_FRAGMENT) * time.Second
	LocalPortAge = time.Duration(abiNoteAgeNOTE_AGE_LOCAL_PORT) * time.Second
)

// Source returns the key's src and sport, the port in host byte order.
func (k FlowKey) Source() netip.AddrPort { return addrPort(k.Src, k.Sport) }

// Destination returns the key's dst and dport, the port in host byte order.
func (k FlowKey) Destination() netip.AddrPort { return addrPort(k.Dst, k.Dport) }

// String returns "in SOURCE → DESTINATION/PROTOCOL", with the key's kind for "in".
func (k FlowKey) String() string {
	kind := fmt.Sprintf("kind %d", k.Kind)
	switch k.Kind {
	case FlowKeyIn:
		kind = "in"
	case FlowKeyOut:
		kind = "out"
	}
	return fmt.Sprintf("%s %s → %s/%s", kind, k.Source(), k.Destination(), ProtocolName(k.Protocol))
}

// Ends are the addresses of a flow: IPv4-mapped addresses as IPv4, ports in host byte order.
type Ends struct {
	Client, Frontend, Backend netip.AddrPort
	// Inner is the client's address and port between the ingress and the egress program: the port
	// is inner_port.
	Inner netip.AddrPort
	// SNAT is the SNAT address and port of packets to a backend of another node; the port is 0
	// until it is chosen.
	SNAT netip.AddrPort
}

// Ends returns the flow's addresses.
func (f *Flow) Ends() Ends {
	return Ends{
		Client:   addrPort(f.Client, f.ClientPort),
		Frontend: addrPort(f.Frontend, f.FrontendPort),
		Backend:  addrPort(f.Backend, f.BackendPort),
		Inner:    addrPort(f.Client, f.InnerPort),
		SNAT:     addrPort(f.Snat, f.SnatPort),
	}
}

// NewFlow returns the value of a flow with these addresses. used is in ns of CLOCK_MONOTONIC.
func NewFlow(e Ends, protocol, flags uint8, used uint64) Flow {
	return Flow{
		Client: newAddr(e.Client.Addr()), ClientPort: HostPort(e.Client.Port()),
		Frontend: newAddr(e.Frontend.Addr()), FrontendPort: HostPort(e.Frontend.Port()),
		Backend: newAddr(e.Backend.Addr()), BackendPort: HostPort(e.Backend.Port()),
		InnerPort: HostPort(e.Inner.Port()),
		Snat:      newAddr(e.SNAT.Addr()), SnatPort: HostPort(e.SNAT.Port()),
		Protocol: protocol, Flags: flags, Used: used,
	}
}

// IsSame reports whether two entries belong to one flow: all fields that do not change while a
// flow exists are equal. flow_same of flow.h compares the same fields but Protocol and SNAT.
func (f *Flow) IsSame(o *Flow) bool {
	a, b := *f, *o
	for _, x := range []*Flow{&a, &b} { // clear the fields that change while a flow exists
		x.ClientAt, x.BackendAt = abiFlow{}.ClientAt, abiFlow{}.BackendAt
		x.Flags, x.ClientSaid, x.BackendSaid, x.ServiceId, x.BackendId, x.Pad, x.Used = 0, 0, 0, 0, 0, 0, 0
	}
	return a == b
}

// Keys returns the keys of a flow's entries (enum flow_key_kind): one for a flow with FlowLocal,
// three for a flow with a SNAT port, two for others.
func (f *Flow) Keys() []FlowKey {
	in := FlowKey{Src: f.Client, Sport: f.ClientPort, Dst: f.Frontend, Dport: f.FrontendPort,
		Protocol: f.Protocol, Kind: FlowKeyIn}
	if f.Flags&FlowLocal != 0 {
		return []FlowKey{in}
	}
	out := FlowKey{Src: f.Client, Sport: f.InnerPort, Dst: f.Backend, Dport: f.BackendPort,
		Protocol: f.Protocol, Kind: FlowKeyOut}
	c := bytes.Compare(out.Src.B[:], out.Dst.B[:])
	if cmp.Or(c, cmp.Compare(HostPort(out.Sport), HostPort(out.Dport))) > 0 {
		out.Src, out.Sport, out.Dst, out.Dport = out.Dst, out.Dport, out.Src, out.Sport
	}
	keys := []FlowKey{in, out}
	if f.SnatPort != 0 {
		keys = append(keys, FlowKey{Src: f.Backend, Sport: f.BackendPort, Dst: f.Snat, Dport: f.SnatPort,
			Protocol: f.Protocol, Kind: FlowKeyIn})
	}
	return keys
}

// flowBatch is how many entries one system call reads. It must be larger than the largest
// bucket of the hash; buckets have a few entries.
const flowBatch = 1024

// EachEntry calls visit for the entries of a hash, while programs change it. K and V have the
// layout of its keys and values. An entry that exists during the whole call is visited once. If
// visit returns an error, EachEntry ends and returns that error.
func EachEntry[K, V any](m *ebpf.Map, visit func(*K, *V) error) error {
	keys, values := make([]K, flowBatch), make([]V, flowBatch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		last := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !last {
			return fmt.Errorf("read map %s: %w", m.String(), err)
		}
		for i := range n {
			if err := visit(&keys[i], &values[i]); err != nil {
				return err
			}
		}
		if last {
			return nil
		}
	}
}

// FlowsUsed returns the number of entries in map flows. It reads the whole map.
func (k *Kernel) FlowsUsed() (uint32, error) {
	var n uint32
	err := EachEntry(k.set.maps[mapFlows], func(*FlowKey, *Flow) error { n++; return nil })
	return n, err
}
