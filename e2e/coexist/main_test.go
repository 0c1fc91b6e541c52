// SPDX-License-Identifier: Apache-2.0

package coexist

import (
	"testing"

	"shunt/e2e/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }
