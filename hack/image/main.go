// SPDX-License-Identifier: Apache-2.0

// Command image makes shunt's images of binaries that are built already, without a Docker
// engine, and pushes them. It is a module of its own, so that what it needs is no dependency
// of the daemon. image.go makes an image, sbom.go its list of components, output.go the files;
// hack/image.sh builds the binaries and calls this.
//
//	image build -out DIR -version V -revision R -epoch SECONDS [-file SRC=DEST]... ARCH=BINARY...
//	image push DIR REFERENCE
package main

import (
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == "build" {
		return buildCommand(args[1:])
	}
	if len(args) == 3 && args[0] == "push" {
		digest, err := push(ctx, args[1], args[2])
		if err == nil {
			fmt.Println(digest)
		}
		return err
	}
	return errors.New("usage: image build FLAGS ARCH=BINARY... | image push DIR REFERENCE")
}

func buildCommand(args []string) error {
	src := source{level: gzip.BestCompression}
	f := flag.NewFlagSet("build", flag.ContinueOnError)
	out := f.String("out", "", "directory that is made anew")
	f.StringVar(&src.name, "name", "shunt", "name of the image in the archives for docker")
	f.StringVar(&src.version, "version", "devel", "version of the binaries, which is the image's tag, too")
	f.StringVar(&src.revision, "revision", "", "commit of the binaries")
	f.StringVar(&src.url, "url", "", "address of the source")
	epoch := f.Int64("epoch", 0, "time of everything in the image, in seconds since 1970")
	f.Func("file", "SRC=DEST: another file of the image", func(s string) error {
		from, to, found := strings.Cut(s, "=")
		if !found {
			return fmt.Errorf("%q is not SRC=DEST", s)
		}
		src.files = append(src.files, file{from: from, to: to, mode: 0o644})
		return nil
	})
	if err := f.Parse(args); err != nil {
		return err
	}
	src.time = time.Unix(*epoch, 0).UTC()
	for _, arg := range f.Args() {
		arch, path, found := strings.Cut(arg, "=")
		if !found {
			return fmt.Errorf("%q is not ARCH=BINARY", arg)
		}
		src.binaries = append(src.binaries, binary{arch: arch, path: path})
	}
	if *out == "" || len(src.binaries) == 0 {
		return errors.New("build: -out and one ARCH=BINARY at least are needed")
	}
	return src.write(*out)
}
