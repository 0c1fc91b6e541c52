// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"go.uber.org/zap"
)

// endOnHangup returns a context that ends on SIGHUP too (the terminal is gone), unless the
// command was started to ignore it (nohup). It is for commands that have something to
// clean up, and not for the daemon.
func endOnHangup(ctx context.Context) (context.Context, context.CancelFunc) {
	if signal.Ignored(syscall.SIGHUP) {
		return context.WithCancel(ctx)
	}
	return signal.NotifyContext(ctx, syscall.SIGHUP)
}

// surviveBrokenPipe keeps SIGPIPE from ending the process when the reader of its output is
// gone: the write fails with EPIPE instead. The caller must call stop at the end.
func surviveBrokenPipe() (stop func()) {
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	return func() { signal.Stop(broken) }
}

// surviveHangup keeps SIGHUP from ending the daemon, and logs that the signal has no
// effect: many daemons reload their configuration on it. The caller must call stop at the
// end.
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
		signal.Stop(hangup) // no signal is sent to the channel after this
		close(hangup)
		<-ended
	}
}
