// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	stdmaps "maps"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf/btf"
)

// reasonNames returns the names of enum reason by number, lower-cased and without prefix. It
// reads them from the type information of the embedded object, so that they can't differ from
// the C source.
var reasonNames = sync.OnceValues(func() (map[uint32]string, error) {
	spec, err := loadAbi()
	if err != nil {
		return nil, fmt.Errorf("read the embedded map declarations: %w", err)
	}
	var enum *btf.Enum
	if err := spec.Types.TypeByName("reason", &enum); err != nil {
		return nil, fmt.Errorf("find enum reason in the embedded object: %w", err)
	}
	names := map[uint32]string{}
	for _, v := range enum.Values {
		if v.Value == uint64(abiReasonREASON_UNSPEC) || v.Value == uint64(abiReasonREASON_MAX) {
			continue
		}
		names[uint32(v.Value)] = strings.ToLower(strings.TrimPrefix(v.Name, "REASON_"))
	}
	return names, nil
})

// ReasonNames returns the names of enum reason (lower-cased, without prefix), in its order.
func ReasonNames() ([]string, error) {
	names, err := reasonNames()
	if err != nil {
		return nil, err
	}
	all := make([]string, 0, len(names))
	for _, r := range slices.Sorted(stdmaps.Keys(names)) {
		all = append(all, names[r])
	}
	return all, nil
}
