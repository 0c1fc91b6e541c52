// SPDX-License-Identifier: Apache-2.0

//go:build !node

package cmd

import (
	"github.com/spf13/cobra"

	"shunt/bench"
	"shunt/lab"
)

// labCommands returns the commands that create nodes from network namespaces and generate
// load. A build with the tag node does not contain them: see lab_node.go.
func labCommands() []*cobra.Command {
	return []*cobra.Command{newDemoCommand(), newBenchCommand()}
}

// maybeLab runs the helper, and does not return, if one of labCommands started this process
// as its helper.
func maybeLab() {
	lab.MaybeAgent()
	bench.MaybeProxy()
}
