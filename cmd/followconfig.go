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

// configInterval is how often the file of --config is read again. A ConfigMap's volume
// is swapped as a whole by links, a file on the node may be on any file system: reading
// it works for all.
const configInterval = 5 * time.Second

// followedFile is the file of --config as it was when it took effect.
type followedFile struct {
	path  string
	flags *pflag.FlagSet
	sum   [sha256.Size]byte
}

// readFollowedFile notes the content that is about to take effect.
func readFollowedFile(path string, flags *pflag.FlagSet) followedFile {
	text, err := os.ReadFile(path)
	if err != nil {
		return followedFile{} // none, or refused in a moment
	}
	return followedFile{path, flags, sha256.Sum256(text)}
}

// follow returns an error when the file's content has changed, as kube-proxy ends then:
// whatever started the daemon starts it with the new content, and what is programmed
// stays in effect meanwhile. Content that would be refused is logged, once, and the
// daemon goes on. It returns nil when ctx is done.
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
			continue // it may be in the midst of a replacement; a start would say so
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

// canStart says why a daemon with the same flags would be refused now; nil: it would not. It
// works on a configuration of its own, since a check completes what it checks.
func canStart(flags *pflag.FlagSet) error {
	var c Config
	again := pflag.NewFlagSet(flags.Name(), pflag.ContinueOnError)
	c.addFlags(again)
	var errs []error
	flags.Visit(func(f *pflag.Flag) {
		to := again.Lookup(f.Name)
		if to == nil {
			return // it is no flag of the configuration
		}
		if list, ok := f.Value.(pflag.SliceValue); ok { // its text is not what it reads
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
