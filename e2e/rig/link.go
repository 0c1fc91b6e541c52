// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DetachLink is `bpftool link detach pinned PATH`.
func DetachLink(t *testing.T, pin string) {
	t.Helper()
	path, err := unix.BytePtrFromString(pin)
	if err != nil {
		t.Fatal(err)
	}
	get := struct {
		path     uint64
		fd, mode uint32
	}{path: uint64(uintptr(unsafe.Pointer(path)))}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET, uintptr(unsafe.Pointer(&get)), unsafe.Sizeof(get))
	if errno != 0 {
		t.Fatalf("open the pinned link %s: %v", pin, errno)
	}
	defer unix.Close(int(fd))
	link := uint32(fd)
	if _, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_LINK_DETACH, uintptr(unsafe.Pointer(&link)), unsafe.Sizeof(link)); errno != 0 {
		t.Fatalf("detach the pinned link %s: %v", pin, errno)
	}
}
