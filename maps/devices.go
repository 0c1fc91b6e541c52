// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// DeviceResets is the device flag that makes programs reset TCP connections without a flow (enum
// device_flag).
const DeviceResets = uint32(abiDeviceFlagDEVICE_FLAG_RESETS)

// NewDevice returns a value of map devices with the SNAT addresses of packets that leave by the
// device. An invalid address stands for none of that family.
func NewDevice(addr4, addr6 netip.Addr) Device {
	var d Device
	if addr4.IsValid() {
		d.Addr4 = newAddr(addr4)
	}
	if addr6.IsValid() {
		d.Addr6 = newAddr(addr6)
	}
	return d
}

// Addrs returns the SNAT addresses of packets that leave by the device. An invalid address stands
// for none of that family.
func (d Device) Addrs() (addr4, addr6 netip.Addr) {
	if d.Addr4 != (abiAddr{}) {
		addr4 = d.Addr4.addr()
	}
	if d.Addr6 != (abiAddr{}) {
		addr6 = d.Addr6.addr()
	}
	return addr4, addr6
}

// SetDevice writes the entry of a device. With DeviceResets, the caller must compare
// NewFrontends before and after, and call ClearResets if it differs.
func (k *Kernel) SetDevice(ifindex uint32, d Device) error {
	if d.Flags&DeviceResets != 0 {
		k.resets.Store(true)
	}
	return k.wrap(k.set.maps[mapDevices].Put(ifindex, d), mapDevices, func() string { return fmt.Sprintf("set device %d", ifindex) })
}

// NewFrontends returns how many TCP frontends were added so far. It is safe from any goroutine.
func (k *Kernel) NewFrontends() uint64 { return k.newFrontends.Load() }

// expectOthers is called before a frontend is added. Conntrack may still translate connections to
// it for another proxy, and the programs would reset these as unknown. So expectOthers clears
// DeviceResets of all devices. A later check that finds no such connections sets the flag again
// (SetDevice).
func (k *Kernel) expectOthers(key FrontendKey) error {
	if key.Protocol != unix.IPPROTO_TCP {
		return nil
	}
	k.newFrontends.Add(1)
	if !k.resets.Swap(false) {
		return nil
	}
	err := k.ClearResets()
	if err != nil {
		k.resets.Store(true)
	}
	return err
}

// ClearResets clears DeviceResets of all devices. It is safe from any goroutine.
func (k *Kernel) ClearResets() error {
	all, err := k.Devices()
	if err != nil {
		return err
	}
	var errs []error
	for ifindex, d := range all {
		if d.Flags&DeviceResets == 0 {
			continue
		}
		d.Flags &^= DeviceResets
		if err := k.set.maps[mapDevices].Update(ifindex, d, ebpf.UpdateExist); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, k.wrap(err, mapDevices, func() string { return fmt.Sprintf("set device %d", ifindex) }))
		}
	}
	return errors.Join(errs...)
}

// DeleteDevice removes a device's entry; it need not exist.
func (k *Kernel) DeleteDevice(ifindex uint32) error {
	err := ignoreMissing(k.set.maps[mapDevices].Delete(ifindex))
	return k.wrap(err, mapDevices, func() string { return fmt.Sprintf("delete device %d", ifindex) })
}

// Devices returns the entries of map devices, by interface index.
func (k *Kernel) Devices() (map[uint32]Device, error) {
	all := map[uint32]Device{}
	var ifindex uint32
	var d Device
	it := k.set.maps[mapDevices].Iterate()
	for it.Next(&ifindex, &d) {
		all[ifindex] = d
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read map %s: %w", mapDevices, err)
	}
	return all, nil
}
