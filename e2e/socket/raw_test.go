// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// connectRaw calls connect(2) with an address of any form.
func connectRaw(fd int, addr []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&addr[0])), uintptr(len(addr)))
	if errno != 0 {
		return errno
	}
	return nil
}
