// SPDX-License-Identifier: Apache-2.0

//go:build !node

package cmd

import (
	"github.com/spf13/cobra"

	"shunt/bench"
	"shunt/lab"
)

// labCommands returns the commands that make nodes of network namespaces and load them. A
// build with the tag node lacks them: see lab_node.go.
func labCommands() []*cobra.Command {
	return []*cobra.Command{newDemoCommand(), newBenchCommand()}
}

// maybeLab does not return in a process that one of labCommands started as its helper.
func maybeLab() {
	lab.MaybeAgent()
	bench.MaybeProxy()
}
