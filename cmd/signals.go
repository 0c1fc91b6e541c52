// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"go.uber.org/zap"
)

// endOnHangup returns a context that is also cancelled by SIGHUP (the terminal was closed),
// unless the process ignores SIGHUP (nohup). It is for commands that must clean up, and not
// for the daemon.
func endOnHangup(ctx context.Context) (context.Context, context.CancelFunc) {
	if signal.Ignored(syscall.SIGHUP) {
		return context.WithCancel(ctx)
	}
	return signal.NotifyContext(ctx, syscall.SIGHUP)
}

// surviveBrokenPipe prevents SIGPIPE from ending the process when the reader has closed the
// process's output: the write fails with EPIPE instead. The caller must call stop at the end.
func surviveBrokenPipe() (stop func()) {
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	return func() { signal.Stop(broken) }
}

// surviveHangup prevents SIGHUP from ending the daemon. It logs that the signal has no
// effect, since many daemons reload their configuration on SIGHUP. The caller must call stop
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
		signal.Stop(hangup) // no signal is sent to the channel after this
		close(hangup)
		<-ended
	}
}
