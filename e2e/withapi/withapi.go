// SPDX-License-Identifier: Apache-2.0

// Command withapi runs a command with its own real API server: etcd and kube-apiserver,
// built if they are missing, and ended with the command. In the arguments, `{kubeconfig}`
// stands for a kubeconfig file with an administrator's rights; `{TOOL}` is the path of
// kube-proxy and others that e2e/tools/build.sh builds.
//
//	withapi bin/shunt bench --kubeconfig {kubeconfig} --kube-proxy {kube-proxy}
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"shunt/e2e/kube"
)

// serviceCIDRs have room for all services of a benchmark.
const serviceCIDRs = "10.96.0.0/12"

func main() {
	err := run(os.Args[1:])
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		os.Exit(exit.ExitCode()) // it has reported its error
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "withapi:", err)
		os.Exit(1)
	}
}

func run(args []string) (err error) {
	if len(args) == 0 {
		return errors.New("usage: withapi COMMAND [ARG...]")
	}
	// The command gets Ctrl-C too, and the API server runs until the command has ended.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	started := make(chan struct{})
	go func() {
		select {
		case <-signals:
			cancel()
		case <-started:
		}
	}()
	cluster, err := kube.Start(ctx, kube.Options{ServiceCIDRs: serviceCIDRs})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()
	if args, err = fillIn(ctx, cluster, args); err != nil {
		return err
	}
	// The command gets its parent-death signal when the thread that started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return err
	}
	close(started)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			return err
		case sig := <-signals:
			if sig == syscall.SIGTERM { // the terminal sends Ctrl-C to the command itself
				_ = cmd.Process.Signal(sig)
			}
		}
	}
}

// fillIn replaces the words in braces.
func fillIn(ctx context.Context, cluster *kube.Cluster, args []string) ([]string, error) {
	filled := make([]string, len(args))
	for i, arg := range args {
		name := strings.TrimSuffix(strings.TrimPrefix(arg, "{"), "}")
		switch {
		case len(name) != len(arg)-2:
			filled[i] = arg
		case name == "kubeconfig":
			filled[i] = filepath.Join(cluster.Dir(), "kubeconfig")
			if err := cluster.Kubeconfig(filled[i]); err != nil {
				return nil, err
			}
		default:
			paths, err := kube.Tools(ctx, name)
			if err != nil {
				return nil, err
			}
			filled[i] = paths[0]
		}
	}
	return filled, nil
}
