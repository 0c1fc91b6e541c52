// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"strings"
	"testing"

	"shunt/maps"
)

// TestFailedRemovalIsProblem checks that a failed removal from the maps is a problem of its
// service, even of a deleted one, until it succeeds.
func TestFailedRemovalIsProblem(t *testing.T) {
	for _, method := range []string{"DeleteFrontend", "FreeBackend", "DeleteName"} {
		t.Run(method, func(t *testing.T) {
			fail := false
			r := newRig(t, &maps.Faulty{Tables: maps.NewFake(roomy), Fail: func(m string) error {
				if fail && m == method {
					return errFault
				}
				return nil
			}}, newTestClock())
			name := svcName(numberedName(1))
			sl := numberedSlice(1, 0, 1)
			r.store.SetService(numberedService(1))
			r.store.SetSlice(sl)
			r.settle()
			fail = true
			r.store.DeleteService(name)
			r.store.DeleteSlice(sl.Name)
			r.step()
			st := r.loop.Status()
			if st.Failing != 1 || len(st.Problems.List) == 0 {
				t.Fatalf("%d services fail, problems %+v; want those of one", st.Failing, st.Problems.List)
			}
			for _, p := range st.Problems.List { // one for each port
				if p.Service != name || p.Kind != maps.Failed || !strings.Contains(p.Error, errFault.Error()) {
					t.Errorf("problem %+v", p)
				}
			}
			fail = false
			r.settle()
			if st := r.loop.Status(); st.Failing != 0 || st.Problems.Total != 0 {
				t.Errorf("removed: %d services fail, problems %+v", st.Failing, st.Problems.List)
			}
			r.sameAs(r.fresh(), "removed")
		})
	}
}
