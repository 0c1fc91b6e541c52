// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"go.uber.org/zap"
)

// endOnHangup ends the context also when the terminal of a command is gone, unless
// the command was started to outlive it (nohup). It is for commands that have
// something to put away, and not for the daemon.
func endOnHangup(ctx context.Context) (context.Context, context.CancelFunc) {
	if signal.Ignored(syscall.SIGHUP) {
		return context.WithCancel(ctx)
	}
	return signal.NotifyContext(ctx, syscall.SIGHUP)
}

// surviveBrokenPipe lets a process go on when the reader of its output has gone,
// which would end it: a write fails with EPIPE then. Call what it returns at the end.
func surviveBrokenPipe() (stop func()) {
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	return func() { signal.Stop(broken) }
}

// surviveHangup keeps SIGHUP from ending the daemon, and logs that it reads nothing
// anew: operators send that signal to many daemons for a reload. Call what it returns
// at the end.
func surviveHangup(log *zap.Logger) (stop func()) {
	hangup, ended := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(hangup, syscall.SIGHUP)
	go func() {
		defer close(ended)
		for range hangup {
			log.Info("SIGHUP has no effect: Services are followed as they change; the configuration's flags and files " +
				"are read at start only, so restart the daemon after changing those")
		}
	}()
	return func() {
		signal.Stop(hangup) // nothing is sent to it after this
		close(hangup)
		<-ended
	}
}
