// SPDX-License-Identifier: Apache-2.0

//go:build node

package cmd

import "github.com/spf13/cobra"

// The image is built with the tag node. A node needs no load generator, and without the
// reports of bench the binary is a third smaller: html/template calls methods by name, so
// that the linker must retain every exported method of every type in use.

func labCommands() []*cobra.Command { return nil }

func maybeLab() {}
