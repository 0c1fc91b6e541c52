// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
)

// Addrs returns the addresses of this network namespace's interfaces, sorted and without
// duplicates. It leaves out link-local IPv6 addresses: they mean nothing without a device.
func Addrs() ([]netip.Addr, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the node's addresses: %w", err)
	}
	addrs := []netip.Addr{}
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		if !ok || ip.Is6() && ip.IsLinkLocalUnicast() {
			continue
		}
		addrs = append(addrs, ip)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs), nil
}

// addrResync is how often the addresses are read again without a notice of a change, addrRetry
// how long to wait before subscribing again after a failure.
const (
	addrResync = time.Minute
	addrRetry  = time.Second
)

// WatchAddrs calls set with the addresses of Addrs: once at the start, at every change, and
// every addrResync. It returns nil when the context ends.
func WatchAddrs(ctx context.Context, set func([]netip.Addr), log *zap.Logger) error {
	for ctx.Err() == nil {
		if err := watchAddrs(ctx, set, log); err != nil {
			log.Warn("node addresses can't be followed, trying again", zap.Error(err), zap.Duration("in", addrRetry))
		}
		select {
		case <-ctx.Done():
		case <-time.After(addrRetry):
		}
	}
	return nil
}

func watchAddrs(ctx context.Context, set func([]netip.Addr), log *zap.Logger) error {
	updates := make(chan netlink.AddrUpdate, 64)
	done := make(chan struct{})
	err := netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{
		ErrorCallback: func(err error) { log.Debug("netlink", zap.Error(err)) },
	})
	if err != nil {
		return fmt.Errorf("subscribe to address changes: %w", err)
	}
	defer func() {
		close(done)
		for range updates { // until the library's goroutine has ended
		}
	}()
	resync := time.NewTicker(addrResync)
	defer resync.Stop()
	for {
		addrs, err := Addrs()
		if err != nil {
			return err
		}
		set(addrs)
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-updates:
			if !open {
				return errors.New("the kernel's address notices stopped")
			}
		case <-resync.C:
		}
	}
}
