// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRequireOwn: a directory of pins that another user could change, or such a parent, is
// refused by name. A directory that others may only read is closed to them.
func TestRequireOwn(t *testing.T) {
	const other = 65534
	for _, test := range []struct {
		name  string
		spoil func(mount string) error // root is mount/a/shunt
		says  string
	}{
		{"nothing there yet", func(string) error { return nil }, ""},
		{"another user's directory", func(m string) error {
			return errors.Join(os.MkdirAll(m+"/a/shunt", 0o700), os.Chown(m+"/a/shunt", other, other))
		}, "/a/shunt belongs to user 65534"},
		{"one on the way", func(m string) error {
			return errors.Join(os.MkdirAll(m+"/a/shunt", 0o700), os.Chown(m+"/a", other, other))
		}, "/a belongs to user 65534"},
		{"others may write", func(m string) error {
			return errors.Join(os.MkdirAll(m+"/a/shunt", 0o700), os.Chmod(m+"/a/shunt", 0o770))
		}, "/a/shunt has mode 0770"},
		{"others may write, and rename nothing", func(m string) error {
			return errors.Join(os.MkdirAll(m+"/a/shunt", 0o700), os.Chmod(m+"/a/shunt", 0o777|os.ModeSticky))
		}, "/a/shunt has mode 0777"},
		{"others may write on the way", func(m string) error {
			return errors.Join(os.Mkdir(m+"/a", 0o700), os.Chmod(m+"/a", 0o777))
		}, "/a has mode 0777"},
		{"others may write on the way, and rename nothing", func(m string) error {
			return errors.Join(os.Mkdir(m+"/a", 0o700), os.Chmod(m+"/a", 0o777|os.ModeSticky))
		}, ""},
		{"a link", func(m string) error {
			return errors.Join(os.MkdirAll(m+"/b", 0o700), os.Mkdir(m+"/a", 0o700), os.Symlink("../b", m+"/a/shunt"))
		}, "/a/shunt is no directory"},
		{"a link on the way", func(m string) error {
			return errors.Join(os.MkdirAll(m+"/b", 0o700), os.Symlink("b", m+"/a"))
		}, "/a is no directory"},
		{"another user's maps", func(m string) error {
			return errors.Join(os.MkdirAll(m+"/a/shunt/maps", 0o700), os.Chown(m+"/a/shunt/maps", other, other))
		}, "/a/shunt/maps belongs to user 65534"},
		{"others may read", func(m string) error {
			return errors.Join(os.MkdirAll(m+"/a/shunt", 0o700), os.Chmod(m+"/a/shunt", 0o755))
		}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			mount := bpffs(t)
			if err := test.spoil(mount); err != nil {
				t.Fatal(err)
			}
			root := filepath.Join(mount, "a", "shunt")
			err := RequireBPFFS(root, false)
			if (err == nil) != (test.says == "") || err != nil && (!strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), root)) {
				t.Fatalf("%v, want %q", err, test.says)
			}
			if err != nil {
				return
			}
			if info, err := os.Stat(root); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("%v, %v", info.Mode(), err)
			}
		})
	}
}
