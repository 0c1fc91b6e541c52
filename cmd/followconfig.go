// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
)

// configInterval is the interval at which the file of --config is read again. A ConfigMap
// volume is updated by replacing a link, and a file on the node may be on any file system:
// polling works in all cases.
const configInterval = 5 * time.Second

// followedFile is the file of --config with the content that is in effect.
type followedFile struct {
	path  string
	flags *pflag.FlagSet
	sum   [sha256.Size]byte
}

// readFollowedFile records the content that the daemon is about to use.
func readFollowedFile(path string, flags *pflag.FlagSet) followedFile {
	text, err := os.ReadFile(path)
	if err != nil {
		return followedFile{} // there is none, or loadSettings refuses it
	}
	return followedFile{path, flags, sha256.Sum256(text)}
}

// follow returns an error when the content of the file has changed. The error ends the daemon,
// as in kube-proxy, so that it is restarted with the new content; the programmed maps remain
// in effect meanwhile. If the new content would be refused, follow logs that once and the
// daemon continues. follow returns nil when ctx is done.
func (f followedFile) follow(ctx context.Context, every time.Duration, log *zap.Logger) error {
	if f.path == "" {
		return nil
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	refused := f.sum
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		text, err := os.ReadFile(f.path)
		if err != nil {
			continue // the file may be about to be replaced; if not, the next start fails
		}
		sum := sha256.Sum256(text)
		if sum == f.sum || sum == refused {
			continue
		}
		if err := canStart(f.flags); err != nil {
			log.Error("the configuration file has changed and can't be used: the old content stays in effect, and a restart would fail",
				zap.Error(err))
			refused = sum
			continue
		}
		return fmt.Errorf("the content of --config %s has changed: ended, so that the next start takes it", f.path)
	}
}

// canStart returns the error with which a daemon with the same flags would refuse to start
// now, nil if it would start. It checks a new Config, since validate changes its receiver.
func canStart(flags *pflag.FlagSet) error {
	var c Config
	again := pflag.NewFlagSet(flags.Name(), pflag.ContinueOnError)
	c.addFlags(again)
	var errs []error
	flags.Visit(func(f *pflag.Flag) {
		to := again.Lookup(f.Name)
		if to == nil {
			return // not a flag of the configuration
		}
		if list, ok := f.Value.(pflag.SliceValue); ok { // Set can't parse its String
			errs = append(errs, to.Value.(pflag.SliceValue).Replace(list.GetSlice()))
			to.Changed = true
			return
		}
		errs = append(errs, again.Set(f.Name, f.Value.String()))
	})
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return c.validate(again)
}
