// SPDX-License-Identifier: Apache-2.0

// Command shunt is a kube-proxy replacement and nothing else: see README.md.
package main

import (
	"os"

	"shunt/cmd"
)

func main() { os.Exit(cmd.Main(os.Args[1:])) }
