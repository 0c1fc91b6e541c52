// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"shunt/maps"
)

// sockIters are the iterators in the kernel (sweep.c) over connected sockets: stale finds the
// sockets whose backend no longer serves, translated finds all translated UDP sockets.
type sockIters struct {
	objects           sweepPrograms
	stale, translated []*link.Iter
}

// staleSocket is a socket whose backend no longer serves, with the fields that sock_diag needs to
// destroy it.
type staleSocket struct {
	diagSocket
	protocol uint8
	// netns is the inode number of its network namespace.
	netns uint64
	// frontend is the address that the process connected to, service the id of the service port
	// that had this address then.
	frontend netip.AddrPort
	service  uint32
}

// openIters loads and attaches the iterators. The caller closes them.
func openIters(set *maps.Set) (*sockIters, error) {
	spec, err := loadSweep()
	if err != nil {
		return nil, err
	}
	s := &sockIters{}
	if err := spec.LoadAndAssign(&s.objects, &ebpf.CollectionOptions{MapReplacements: replacements(spec, set)}); err != nil {
		return nil, fmt.Errorf("load the iterators over socket storage: %w", err)
	}
	for _, name := range []string{sweepMapSockPeer, sweepMapSockBefore} {
		err := s.attach(set.Map(name))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("attach an iterator over socket storage %s: %w", name, err), s.Close())
		}
	}
	return s, nil
}

func (s *sockIters) attach(storage *ebpf.Map) error {
	stale, err := link.AttachIter(link.IterOptions{Program: s.objects.ShuntStale, Map: storage})
	if err != nil {
		return err
	}
	s.stale = append(s.stale, stale)
	translated, err := link.AttachIter(link.IterOptions{Program: s.objects.ShuntTranslated, Map: storage})
	if err != nil {
		return err
	}
	s.translated = append(s.translated, translated)
	return nil
}

// Close closes the iterators and their programs.
func (s *sockIters) Close() error {
	errs := []error{s.objects.Close()}
	for _, it := range slices.Concat(s.stale, s.translated) {
		errs = append(errs, it.Close())
	}
	return errors.Join(errs...)
}

// readStale returns the sockets whose backend no longer serves according to the ids in their
// storage (see judge).
func (s *sockIters) readStale() ([]staleSocket, error) {
	data, err := readIters(s.stale)
	return parseStale(data), err
}

// readTranslated returns the cookies of all translated UDP sockets.
func (s *sockIters) readTranslated() (map[uint64]bool, error) {
	data, err := readIters(s.translated)
	cookies := map[uint64]bool{}
	for ; len(data) >= 8; data = data[8:] {
		cookies[binary.NativeEndian.Uint64(data)] = true
	}
	return cookies, err
}

// readIters reads the output of several iterators. Each iterates over all sockets that have the
// storage of its map.
func readIters(all []*link.Iter) (data []byte, err error) {
	for _, it := range all {
		more, failed := readIter(it)
		data, err = append(data, more...), errors.Join(err, failed)
	}
	return data, err
}

// readIter reads the output of one iterator over all sockets.
func readIter(it *link.Iter) ([]byte, error) {
	r, err := it.Open()
	if err != nil {
		return nil, fmt.Errorf("open an iterator over socket storage: %w", err)
	}
	data, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("read an iterator over socket storage: %w", err)
	}
	return data, nil
}

// parseStale parses an array of struct stale_socket.
func parseStale(data []byte) []staleSocket {
	var all []staleSocket
	var raw sweepStaleSocket
	size := int(unsafe.Sizeof(raw))
	for ; len(data) >= size; data = data[size:] {
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&raw)), size), data)
		all = append(all, newStaleSocket(&raw))
	}
	return all
}

func newStaleSocket(raw *sweepStaleSocket) staleSocket {
	s := staleSocket{protocol: raw.Protocol, netns: uint64(raw.Netns), service: raw.ServiceId}
	var port [2]byte
	binary.NativeEndian.PutUint16(port[:], raw.FrontendPort) // the field's bytes are in network order
	s.frontend = netip.AddrPortFrom(netip.AddrFrom16(raw.Frontend.B).Unmap(), binary.BigEndian.Uint16(port[:]))
	s.family = uint8(raw.Family)
	from := 0
	if s.family == unix.AF_INET {
		from = 12 // sock_diag has an IPv4 address in the first word
	}
	binary.NativeEndian.PutUint16(s.id[0:], raw.LocalPort) // the fields' bytes are in network order
	binary.NativeEndian.PutUint16(s.id[2:], raw.PeerPort)
	copy(s.id[4:20], raw.Local.B[from:])
	copy(s.id[20:36], raw.Peer.B[from:])
	cookie := raw.Cookie
	if cookie == 0 {
		cookie = ^uint64(0) // INET_DIAG_NOCOOKIE: any socket with these addresses
	}
	binary.NativeEndian.PutUint32(s.id[36:], raw.Device)
	binary.NativeEndian.PutUint32(s.id[40:], uint32(cookie))
	binary.NativeEndian.PutUint32(s.id[44:], uint32(cookie>>32))
	s.peer = peerOf(s.family, s.id)
	return s
}
