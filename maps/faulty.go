// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"
)

// Faulty is Tables whose writes fail if Fail returns an error. Such a write leaves the maps as
// they were, as a failed system call does.
type Faulty struct {
	Tables
	// Fail is called before every write, with the method's name. The write is executed if Fail is
	// nil or returns nil.
	Fail func(method string) error
}

var _ Tables = (*Faulty)(nil)

func (f *Faulty) try(method string, write func() error) error {
	if f.Fail != nil {
		if err := f.Fail(method); err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
	}
	return write()
}

// SetFrontend returns the error of Fail("SetFrontend") if there is one. The other methods do
// likewise.
func (f *Faulty) SetFrontend(k FrontendKey, v Frontend) error {
	return f.try("SetFrontend", func() error { return f.Tables.SetFrontend(k, v) })
}

// DeleteFrontend is a write.
func (f *Faulty) DeleteFrontend(k FrontendKey) error {
	return f.try("DeleteFrontend", func() error { return f.Tables.DeleteFrontend(k) })
}

// WriteSlots is a write.
func (f *Faulty) WriteSlots(base uint32, ids []uint32) error {
	return f.try("WriteSlots", func() error { return f.Tables.WriteSlots(base, ids) })
}

// SetBackend is a write.
func (f *Faulty) SetBackend(id uint32, b Backend) error {
	return f.try("SetBackend", func() error { return f.Tables.SetBackend(id, b) })
}

// FreeBackend is a write.
func (f *Faulty) FreeBackend(id uint32) error {
	return f.try("FreeBackend", func() error { return f.Tables.FreeBackend(id) })
}

// SetName is a write.
func (f *Faulty) SetName(id uint32, n Name) error {
	return f.try("SetName", func() error { return f.Tables.SetName(id, n) })
}

// DeleteName is a write.
func (f *Faulty) DeleteName(id uint32) error {
	return f.try("DeleteName", func() error { return f.Tables.DeleteName(id) })
}

// SetNodeAddr is a write.
func (f *Faulty) SetNodeAddr(a netip.Addr, flags uint32) error {
	return f.try("SetNodeAddr", func() error { return f.Tables.SetNodeAddr(a, flags) })
}

// SetServiceCIDR is a write.
func (f *Faulty) SetServiceCIDR(p netip.Prefix) error {
	return f.try("SetServiceCIDR", func() error { return f.Tables.SetServiceCIDR(p) })
}

// SetAllocated is a write.
func (f *Faulty) SetAllocated(a netip.Addr) error {
	return f.try("SetAllocated", func() error { return f.Tables.SetAllocated(a) })
}

// DeleteAllocated is a write.
func (f *Faulty) DeleteAllocated(a netip.Addr) error {
	return f.try("DeleteAllocated", func() error { return f.Tables.DeleteAllocated(a) })
}

// DeleteServiceCIDR is a write.
func (f *Faulty) DeleteServiceCIDR(p netip.Prefix) error {
	return f.try("DeleteServiceCIDR", func() error { return f.Tables.DeleteServiceCIDR(p) })
}

// DeleteNodeAddr is a write.
func (f *Faulty) DeleteNodeAddr(a netip.Addr) error {
	return f.try("DeleteNodeAddr", func() error { return f.Tables.DeleteNodeAddr(a) })
}

// SetSourceRange is a write.
func (f *Faulty) SetSourceRange(k SourceRangeKey) error {
	return f.try("SetSourceRange", func() error { return f.Tables.SetSourceRange(k) })
}

// DeleteSourceRange is a write.
func (f *Faulty) DeleteSourceRange(k SourceRangeKey) error {
	return f.try("DeleteSourceRange", func() error { return f.Tables.DeleteSourceRange(k) })
}
