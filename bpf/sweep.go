package bpf

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"shunt/maps"
)

// Sweeper destroys sockets that speak to nobody: a connected socket is never
// translated again, so when its backend stops serving only an error can tell its
// owner to connect anew. It looks at every socket of every network namespace that
// it can find and asks the maps as they are now, so that a sweep that was missed
// is made good by the next.
type Sweeper struct {
	o     SweeperOptions
	poked chan Sweep
}

// Sweep says which sockets to look at.
type Sweep struct{ TCP, UDP bool }

// SweeperOptions is what a Sweeper needs.
type SweeperOptions struct {
	Maps *maps.Kernel
	// Cgroup is the root below which processes are clients of this node.
	Cgroup string
	// Destroyed hears of each destroyed socket's IP protocol; it must not block.
	Destroyed func(protocol uint8)
	Log       *zap.Logger
}

// sweepPause is the least time between two sweeps: the first is at once, a burst
// of changes together.
const sweepPause = 20 * time.Millisecond

// NewSweeper makes a sweeper; Run it.
func NewSweeper(o SweeperOptions) *Sweeper {
	return &Sweeper{o: o, poked: make(chan Sweep, 1)}
}

// Poke asks for a sweep. Never blocks; safe from any goroutine.
func (s *Sweeper) Poke(what Sweep) {
	for {
		select {
		case s.poked <- what:
			return
		case waiting := <-s.poked:
			what.TCP, what.UDP = what.TCP || waiting.TCP, what.UDP || waiting.UDP
		}
	}
}

// Run sweeps when asked until the context ends. It returns nil then.
func (s *Sweeper) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case what := <-s.poked:
			if err := s.sweep(ctx, what); err != nil {
				s.o.Log.Warn("not every socket without a backend could be destroyed", zap.Error(err))
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(sweepPause):
		}
	}
}

// sweep goes through all network namespaces once.
func (s *Sweeper) sweep(ctx context.Context, what Sweep) error {
	var protocols []uint8
	if what.UDP {
		protocols = append(protocols, unix.IPPROTO_UDP)
	}
	if what.TCP {
		protocols = append(protocols, unix.IPPROTO_TCP)
	}
	// Which cgroups are ours is asked only if a socket turns up that needs it.
	pass := &sweepPass{s: s, protocols: protocols}
	var errs []error
	err := eachNetns(ctx, func(path string) {
		if err := pass.netns(); err != nil {
			errs = append(errs, fmt.Errorf("network namespace %s: %w", path, err))
		}
	})
	return errors.Join(append(errs, err)...)
}

// sweepPass is one sweep.
type sweepPass struct {
	s         *Sweeper
	protocols []uint8
	ours      map[uint64]bool // cgroup ids, nil: not read yet
}

// netns sweeps the network namespace of the calling thread.
func (p *sweepPass) netns() error {
	var errs []error
	for _, proto := range p.protocols {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			sockets, err := dumpSockets(family, proto, p.s.o.Maps.SockPeerFD())
			errs = append(errs, err)
			for _, sock := range sockets {
				if p.isStale(sock, proto) {
					errs = append(errs, p.destroy(sock, proto))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// isStale says whether a socket speaks to a backend that serves no more, or
// untranslated to an address that is a frontend by now.
func (p *sweepPass) isStale(sock diagSocket, proto uint8) bool {
	m := p.s.o.Maps
	if flow := sock.flow; flow != nil && flow.Used != 0 && flow.Backend() == sock.peer {
		return !m.IsBackend(flow.BackendId, flow.ServiceId, sock.peer)
	}
	return proto == unix.IPPROTO_UDP && m.IsFrontend(sock.peer, proto) && p.isOurs(sock.cgroup)
}

// isOurs says whether a cgroup is the root that we are attached to or below it.
func (p *sweepPass) isOurs(id uint64) bool {
	if p.ours == nil {
		p.ours = cgroupsBelow(p.s.o.Cgroup)
	}
	return p.ours[id]
}

func (p *sweepPass) destroy(sock diagSocket, proto uint8) error {
	err := destroySocket(sock, proto)
	if errors.Is(err, unix.ENOENT) {
		return nil // closed meanwhile
	}
	if err != nil {
		return fmt.Errorf("destroy a %s socket to %s: %w", maps.ProtocolName(proto), sock.peer, err)
	}
	if p.s.o.Destroyed != nil {
		p.s.o.Destroyed(proto)
	}
	return nil
}

// SOCK_DESTROY and the attributes of sock_diag (linux/sock_diag.h,
// linux/inet_diag.h) that the unix package does not have.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21

	reqSkBPFStorages  = 2 // INET_DIAG_REQ_SK_BPF_STORAGES, Linux 5.7
	reqStorageMapFD   = 1 // SK_DIAG_BPF_STORAGE_REQ_MAP_FD
	repSkBPFStorages  = 20
	repCgroupID       = 21 // Linux 5.8
	repStorage        = 1
	repStorageMapVal  = 3
	stateEstablished  = 1
	stateSynSent      = 2
	stateCloseWait    = 8
	inetDiagMsgLength = 72
)

// dumpSockets asks for all connected sockets of a family and protocol in the
// calling thread's network namespace, with what sock_peer says of them.
func dumpSockets(family uint8, proto uint8, storageFD int) ([]diagSocket, error) {
	states := uint32(1 << stateEstablished)
	if proto == unix.IPPROTO_TCP {
		states |= 1<<stateSynSent | 1<<stateCloseWait
	}
	req := nl.NewNetlinkRequest(sockDiagByFamily, unix.NLM_F_DUMP)
	req.AddData(&diagRequest{family: family, protocol: proto, states: states})
	storages := nl.NewRtAttr(reqSkBPFStorages|unix.NLA_F_NESTED, nil)
	storages.AddRtAttr(reqStorageMapFD, nl.Uint32Attr(uint32(storageFD)))
	req.AddData(storages)
	var sockets []diagSocket
	err := req.ExecuteIter(unix.NETLINK_SOCK_DIAG, sockDiagByFamily, func(msg []byte) bool {
		if sock, ok := parseDiag(msg); ok {
			sockets = append(sockets, sock)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list %s sockets by sock_diag: %w", maps.ProtocolName(proto), err)
	}
	return sockets, nil
}

func destroySocket(sock diagSocket, proto uint8) error {
	req := nl.NewNetlinkRequest(sockDestroy, unix.NLM_F_ACK)
	req.AddData(&diagRequest{family: sock.family, protocol: proto, states: ^uint32(0), id: sock.id})
	_, err := req.Execute(unix.NETLINK_SOCK_DIAG, 0)
	return err
}
