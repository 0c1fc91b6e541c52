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

// Addrs gives the addresses of this network namespace's interfaces, sorted.
// Link-local IPv6 addresses are left out: they mean nothing without a device.
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

// How often addresses are read again though nothing was heard, and how long to
// wait before listening again after a failure.
const (
	addrResync = time.Minute
	addrRetry  = time.Second
)

// WatchAddrs gives the addresses now and whenever they change, until the context
// ends. It returns nil then.
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
		for range updates { // until the library's goroutine is done with it
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
