// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"encoding/json"
	"strings"

	"go.uber.org/zap"

	"shunt/lb"
	"shunt/maps"
)

// keptChecks stores the healthCheckNodePorts in map memory for the next daemon. The next
// daemon answers their probes before it has read anything from the API server: the adopted
// maps are in effect, so load balancers must not drain the node in the meantime.
type keptChecks struct {
	memory *maps.Memory
	log    *zap.Logger
	// parts is the number of entries that the last call of keep wrote.
	parts int
	said  bool
}

// keptCheck is the stored form of a check. Later versions of shunt read this format too.
type keptCheck struct {
	// Service is NAMESPACE/NAME, Family 4 or 6.
	Service string `json:"service"`
	Family  int    `json:"family"`
	Port    uint16 `json:"port"`
	Local   int    `json:"local"`
}

func keptOf(c lb.HealthCheck) keptCheck {
	family := 4
	if c.Family == lb.IPv6 {
		family = 6
	}
	return keptCheck{c.Service.String(), family, c.Port, c.LocalEndpoints}
}

func (c keptCheck) check() lb.HealthCheck {
	namespace, name, _ := strings.Cut(c.Service, "/")
	family := lb.IPv4
	if c.Family == 6 {
		family = lb.IPv6
	}
	return lb.HealthCheck{Service: lb.ServiceName{Namespace: namespace, Name: name}, Family: family,
		Port: c.Port, LocalEndpoints: c.Local}
}

// partsOf splits a list into at most most parts that each fit in an entry of map memory. left
// is the number of checks for which there is no room.
func partsOf(checks []lb.HealthCheck, most int) (parts [][]keptCheck, left int) {
	var part []keptCheck
	size := len("[]")
	for i, c := range checks {
		kept := keptOf(c)
		text, _ := json.Marshal(kept) // can't fail: there are only texts and numbers
		if size += len(text) + len(","); size > maps.MemoryText {
			if parts = append(parts, part); len(parts) == most {
				return parts, len(checks) - i
			}
			part, size = nil, len("[]")+len(text)+len(",")
		}
		part = append(part, kept)
	}
	return append(parts, part), 0
}

// keep replaces the stored checks. Only the reconcile goroutine calls it.
func (k *keptChecks) keep(checks []lb.HealthCheck) {
	parts, left := partsOf(checks, int(maps.MemoryChecksEnd-maps.MemoryChecks)+1)
	if left > 0 && !k.said {
		k.said = true
		k.log.Warn("the next daemon can't answer every healthCheckNodePort before it has read the Services",
			zap.Int("of", len(checks)), zap.Int("without_room", left))
	}
	written := len(parts)
	for len(parts) < k.parts { // empty the entries that are no longer used
		parts = append(parts, nil)
	}
	k.parts = written
	for i, part := range parts {
		if err := k.memory.Put(maps.MemoryChecks+maps.MemoryOf(i), part); err != nil {
			k.log.Warn("the next daemon can't answer healthCheckNodePorts before it has read the Services", zap.Error(err))
			return
		}
	}
}

// recall reads the checks that an earlier daemon stored.
func (k *keptChecks) recall() (checks []lb.HealthCheck) {
	for of := maps.MemoryChecks; of <= maps.MemoryChecksEnd; of++ {
		var part []keptCheck
		if err := k.memory.Get(of, &part); err != nil {
			k.log.Warn("the healthCheckNodePorts that an earlier daemon knew are not known", zap.Error(err))
			return nil
		}
		if len(part) > 0 {
			k.parts = int(of-maps.MemoryChecks) + 1
		}
		for _, c := range part {
			checks = append(checks, c.check())
		}
	}
	return checks
}
