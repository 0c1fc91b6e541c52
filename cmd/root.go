// SPDX-License-Identifier: Apache-2.0

// Package cmd is the command line: a file for each command, a checked configuration made
// from flags, and the wiring of the other packages. It decides nothing about traffic.
// Start reading at Main, then run.go.
package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"shunt/bpf"
)

// Exit codes of every command. For status, exitFailure means that something required is not
// in effect, such as a hook.
const (
	exitOK      = 0
	exitFailure = 1
	// exitUsage means that the command line is wrong, and nothing was done.
	exitUsage = 2
	// exitDegraded (status) means that everything required is in effect, but something else
	// is missing, such as the daemon.
	exitDegraded = 3
)

// exitError makes a command that has completed end with an exit code and a line of text.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

// usageError marks an error of the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usageErrorf(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// Main runs the command line and returns the exit code.
func Main(args []string) int {
	bpf.MaybeProbe()
	maybeLab()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return execute(ctx, args, os.Stdout, os.Stderr)
}

func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "error: %v\n", err)
	var exit *exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailure
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "shunt",
		Short: "A kube-proxy replacement, and nothing else",
		Long: "shunt takes kube-proxy's place on a node, beside any CNI: Services become entries in eBPF maps,\n" +
			"and a connect() to one reaches a backend with nothing in between.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return c.Help()
		},
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageErrorf("%w (see '%s --help')", err, c.CommandPath())
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newRunCommand(), newStatusCommand(), newServicesCommand(),
		newCleanupCommand(), newVersionCommand())
	root.AddCommand(labCommands()...)
	for _, c := range append(root.Commands(), root) {
		args := c.Args
		c.Args = func(c *cobra.Command, a []string) error {
			if args == nil {
				args = cobra.NoArgs
			}
			if err := args(c, a); err != nil {
				return usageErrorf("%w (see '%s --help')", err, c.CommandPath())
			}
			return nil
		}
	}
	return root
}
