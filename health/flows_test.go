// SPDX-License-Identifier: Apache-2.0

package health

import (
	"slices"
	"testing"

	"shunt/maps"
)

type fixedFlows maps.FlowStats

func (f fixedFlows) FlowStats() maps.FlowStats { return maps.FlowStats(f) }

// TestFlowMetrics: expired and evicted flows are counted, map flows is among the maps, and
// there is a warning when it is nearly full.
func TestFlowMetrics(t *testing.T) {
	flows := fixedFlows{Expired: 7, Evicted: 3, Fill: maps.Fill{Map: "flows", Flag: maps.FlagFlows, Used: 85, Size: 100}}
	s := newTestServer(t, Options{Flows: flows}, inOrder())
	exposes(t, s, `
# HELP shunt_flows_evicted_total Flows of the packet path that were forgotten before their time, the least recently used first, since map flows was nearly full.
# TYPE shunt_flows_evicted_total counter
shunt_flows_evicted_total 3
# HELP shunt_flows_expired_total Flows of the packet path that ended, or were not used for their time, and were forgotten.
# TYPE shunt_flows_expired_total counter
shunt_flows_expired_total 7
# HELP shunt_map_entries Entries in an eBPF map.
# TYPE shunt_map_entries gauge
shunt_map_entries{map="flows"} 85
# HELP shunt_map_max_entries Entries that an eBPF map has room for.
# TYPE shunt_map_max_entries gauge
shunt_map_max_entries{map="flows"} 100
`, "shunt_flows_evicted_total", "shunt_flows_expired_total", "shunt_map_entries", "shunt_map_max_entries")
	v := s.checker.verdict()
	const want = "map flows is 85% full, 85 of 100: start shunt with a larger --flows-map-size"
	if !v.Healthy || !slices.Equal(v.Warnings, []string{want}) {
		t.Errorf("healthy %t, warnings %q, want %q", v.Healthy, v.Warnings, want)
	}
	exposes(t, newTestServer(t, Options{}, inOrder()), "", "shunt_flows_evicted_total", "shunt_flows_expired_total")
}
