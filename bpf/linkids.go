// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// linkIDs iterates over the kernel's links.
type linkIDs struct {
	// next returns the next higher ID, or fs.ErrNotExist after the last one.
	next func(link.ID) (link.ID, error)
	open func(link.ID) (link.Link, error)
	// wait is the longest time to wait until an allocated ID belongs to a link.
	wait time.Duration
}

var kernelLinks = linkIDs{nextLinkID, link.NewFromID, 500 * time.Millisecond}

// each calls do for every link. It leaves out links that are made or freed during the iteration.
// (link.Iterator ends at the first link that is being made.)
func (k linkIDs) each(do func(link.ID, link.Link)) error {
	for id := link.ID(0); ; {
		next, err := k.next(id)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("get the ID after link %d: %w", id, err)
		}
		id = next
		l, err := k.get(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		do(id, l)
		l.Close()
	}
}

// get opens a link. EAGAIN means that the ID is allocated, but the link is not attached yet: get
// retries until wait has passed, and then returns fs.ErrNotExist. The kernel does not soon reuse
// the ID of a link that was freed.
func (k linkIDs) get(id link.ID) (link.Link, error) {
	for end := time.Now().Add(k.wait); ; time.Sleep(5 * time.Millisecond) {
		l, err := k.open(id)
		if !errors.Is(err, unix.EAGAIN) {
			return l, err
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("link %d is still being made: %w", id, fs.ErrNotExist)
		}
	}
}

func nextLinkID(id link.ID) (link.ID, error) {
	attr := struct{ start, next, flags uint32 }{start: uint32(id)}
	for {
		_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_LINK_GET_NEXT_ID, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
		if errno == 0 {
			return link.ID(attr.next), nil
		}
		if errno != unix.EINTR && errno != unix.EAGAIN {
			return 0, errno
		}
	}
}
