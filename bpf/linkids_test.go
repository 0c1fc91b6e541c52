// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

type closedLink struct{ link.Link }

func (closedLink) Close() error { return nil }

// TestLinkIDs: links that are made and freed meanwhile don't end the iteration.
func TestLinkIDs(t *testing.T) {
	ids := []link.ID{3, 4, 9, 20, 21}
	tries, refused := map[link.ID]int{}, error(nil)
	k := linkIDs{
		next: func(id link.ID) (link.ID, error) {
			for _, next := range ids {
				if next > id {
					return next, nil
				}
			}
			return 0, unix.ENOENT
		},
		open: func(id link.ID) (link.Link, error) {
			tries[id]++
			switch {
			case id == 4: // freed
				return nil, fmt.Errorf("get link: %w", unix.ENOENT)
			case id == 9 && tries[id] < 3, id == 20: // being made, the second for longer than get waits
				return nil, fmt.Errorf("get link: %w", unix.EAGAIN)
			case id == 21 && refused != nil:
				return nil, refused
			}
			return closedLink{}, nil
		},
		wait: 200 * time.Millisecond,
	}
	var seen []link.ID
	see := func(id link.ID, _ link.Link) { seen = append(seen, id) }
	if err := k.each(see); err != nil || !slices.Equal(seen, []link.ID{3, 9, 21}) {
		t.Errorf("links %v, %v", seen, err)
	}
	if tries[4] != 1 || tries[9] != 3 || tries[20] < 3 {
		t.Errorf("tries: %v", tries)
	}
	if _, err := k.get(20); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link that is being made: %v", err)
	}
	refused = unix.EPERM
	if err := k.each(see); !errors.Is(err, unix.EPERM) {
		t.Errorf("a link that may not be opened: %v", err)
	}
}
