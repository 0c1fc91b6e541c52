// SPDX-License-Identifier: Apache-2.0

// Command withapi runs a command beside a real API server that is there for it
// alone: etcd and kube-apiserver, built where they are missing, ended with the
// command. `{kubeconfig}` in the arguments is a file that leads to it, with an
// administrator's rights; `{TOOL}` is the path of kube-proxy and others that
// e2e/tools/build.sh builds.
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

// serviceCIDRs have room for as many services as a benchmark makes.
const serviceCIDRs = "10.96.0.0/12"

func main() {
	err := run(os.Args[1:])
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		os.Exit(exit.ExitCode()) // it has said why
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
	// The command gets Ctrl-C too, and the API server stays until it has ended.
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
	// The command hears of our end when the thread that started it ends.
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
			if sig == syscall.SIGTERM { // a terminal tells the command of Ctrl-C itself
				_ = cmd.Process.Signal(sig)
			}
		}
	}
}

// fillIn replaces what is in braces.
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
