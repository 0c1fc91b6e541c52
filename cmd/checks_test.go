// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"shunt/lb"
	"shunt/maps"
	"shunt/maps/mapstest"
)

// TestChecksAreKept: the next daemon has the healthCheckNodePorts that were stored last, as
// many as there is room for.
func TestChecksAreKept(t *testing.T) {
	memory, err := maps.OpenMemory(mapstest.BPFFS(t))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	core, logs := observer.New(zap.WarnLevel)
	next := func() *keptChecks { return &keptChecks{memory: memory, log: zap.New(core)} }
	checks := func(services int, namespace string) (all []lb.HealthCheck) {
		for i := range services {
			for _, family := range []lb.Family{lb.IPv4, lb.IPv6} {
				all = append(all, lb.HealthCheck{Service: lb.ServiceName{Namespace: namespace, Name: fmt.Sprintf("web-%d", i)},
					Family: family, Port: uint16(30000 + i), LocalEndpoints: i})
			}
		}
		return all
	}
	if got := next().recall(); got != nil {
		t.Errorf("at first: %v", got)
	}
	k := next()
	for _, services := range []int{1, 150, 0, 40, 3} {
		all := checks(services, "shop")
		k.keep(all)
		k.keep(all)
		if got := next().recall(); !slices.Equal(got, all) {
			t.Errorf("%d services: %d checks of %d, %v", services, len(got), len(all), got)
		}
		if services == 40 { // the next daemon continues
			k = next()
			k.recall()
		}
	}
	if logs.Len() != 0 {
		t.Errorf("it says %v", logs.All())
	}
	all := checks(500, strings.Repeat("n", 63))
	for range 2 {
		k.keep(all)
	}
	got := next().recall()
	if len(got) < 100 || len(got) >= len(all) || !slices.Equal(got, all[:len(got)]) {
		t.Errorf("%d checks of %d", len(got), len(all))
	}
	if logs.FilterMessageSnippet("every healthCheckNodePort").Len() != 1 || logs.Len() != 1 {
		t.Errorf("it says %v", logs.All())
	}
}
