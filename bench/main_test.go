// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"os"
	"testing"

	"shunt/bpf"
	"shunt/lab"
)

func TestMain(m *testing.M) {
	bpf.MaybeProbe()
	lab.MaybeAgent()
	os.Exit(m.Run())
}
