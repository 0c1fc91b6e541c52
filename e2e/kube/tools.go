// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

const buildScript = "e2e/tools/build.sh"

// tools are the paths of the programs.
type tools struct{ etcd, apiServer string }

func findTools(ctx context.Context) (tools, error) {
	paths, err := Tools(ctx, "etcd", "kube-apiserver")
	if err != nil {
		return tools{}, err
	}
	return tools{etcd: paths[0], apiServer: paths[1]}, nil
}

// Tools returns the paths of tools by name, in order (see e2e/tools/build.sh for the
// names), and builds missing ones, which can take minutes. It works in any directory below
// the module's root.
func Tools(ctx context.Context, names ...string) ([]string, error) {
	script, err := findAbove(buildScript)
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, script, names...)
	cmd.Stdout, cmd.Stderr = &stdout, io.MultiWriter(&stderr, os.Stderr)
	// The script's children (the compiler) must end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("build %s with %s: %w\n%s", strings.Join(names, ", "), script, err, stderr.String())
	}
	paths := strings.Fields(stdout.String())
	if len(paths) != len(names) {
		return nil, fmt.Errorf("%s printed %d paths for %d tools: %q", script, len(paths), len(names), stdout.String())
	}
	return paths, nil
}

// findAbove looks for a path in the working directory and its parents.
func findAbove(path string) (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("look for %s: %w", path, err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		found := filepath.Join(dir, path)
		if _, err := os.Stat(found); err == nil {
			return found, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("found no %s in %s or above it: run this inside shunt's source tree", path, start)
		}
	}
}
