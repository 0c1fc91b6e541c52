// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"shunt/maps"
)

// TestCleanupOfAnothersDirectory: links of another user lead to the files of a daemon.
// Cleanup follows none of them and changes nothing.
func TestCleanupOfAnothersDirectory(t *testing.T) {
	const other = 65534
	if os.Geteuid() != 0 {
		t.Skip("pins need root")
	}
	mount := t.TempDir()
	if err := unix.Mount("bpf", mount, "bpf", 0, ""); err != nil {
		t.Fatalf("mount a bpf file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	ours, theirs := filepath.Join(mount, "shunt"), filepath.Join(mount, "theirs")
	if err := os.Mkdir(ours, 0o700); err != nil {
		t.Fatal(err)
	}
	set, _, err := maps.Open(ours, maps.DefaultSizes())
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	if err := errors.Join(os.Mkdir(theirs, 0o755), os.Symlink(filepath.Join(ours, "maps"), filepath.Join(theirs, "maps")),
		os.Lchown(filepath.Join(theirs, "maps"), other, other), os.Chown(theirs, other, other)); err != nil {
		t.Fatal(err)
	}
	for _, dryRun := range []bool{true, false} {
		if res, err := cleanup(theirs, dryRun); err == nil || !strings.Contains(err.Error(), "belongs to user 65534") || res.Removed || len(res.Pins) > 0 {
			t.Errorf("dry run %v: %+v, %v", dryRun, res, err)
		}
	}
	if err := os.Chown(theirs, 0, 0); err != nil { // then only the link in it is another user's
		t.Fatal(err)
	}
	if res, err := cleanup(theirs, false); err == nil || !strings.Contains(err.Error(), "theirs/maps belongs to user 65534") {
		t.Errorf("a link of another's: %+v, %v", res, err)
	}
	if info, err := os.Stat(theirs); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := maps.Load(ours); err != nil {
		t.Errorf("what the daemon works with: %v", err)
	}
}
