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

// trimMemory returns to the kernel the memory that only the start needed: free memory of
// the heap, which the Go runtime would otherwise retain for later allocations, and pages of
// this process's code.
func trimMemory() error {
	debug.FreeOSMemory()
	return dropCode()
}

// dropCode removes this process's code from its resident memory. Code that is still used is
// mapped again from the page cache at the next access. Most code is used at the start only,
// but would count as resident as long as the machine has free memory.
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
		// Only executable mappings of files that are not writable: on a private mapping
		// MADV_DONTNEED discards pages that were written to.
		if rights != "r-xp" || !strings.Contains(lines.Text(), " /") {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("take code at %#x out of memory: %w", from, errno)
		}
	}
	return lines.Err()
}
