// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// trimMemory gives back what only the start needed: memory of the heap, which the
// collector would keep in hand for as much garbage again, and pages of our own code.
func trimMemory() error {
	debug.FreeOSMemory()
	return dropCode()
}

// dropCode tells the kernel to take this process's code out of its memory. Whatever
// runs on comes back from the page cache at once; most of it is for a start, and
// would count as resident for as long as nothing else needs the room.
func dropCode() error {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("look for this process's code: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var from, to uintptr
		var rights string
		// 00400000-02452000 r-xp 00000000 08:02 173521 /usr/local/bin/shunt
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &rights); err != nil {
			return fmt.Errorf("read %q of /proc/self/maps: %w", lines.Text(), err)
		}
		// Of a file, and never written: a private page that was would be lost.
		if rights != "r-xp" || !strings.Contains(lines.Text(), " /") {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("take code at %#x out of memory: %w", from, errno)
		}
	}
	return lines.Err()
}
