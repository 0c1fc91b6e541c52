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
// duplicates. It leaves out link-local IPv6 addresses, which are ambiguous without an interface.
func Addrs() ([]netip.Addr, error) { return addrsWithout(nil) }

// addrsWithout returns the addresses that Addrs returns, without those of the devices in left,
// which is by interface index.
func addrsWithout(left map[int]bool) ([]netip.Addr, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the node's addresses: %w", err)
	}
	addrs := []netip.Addr{}
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		if !ok || left[a.LinkIndex] || ip.Is6() && ip.IsLinkLocalUnicast() {
			continue
		}
		addrs = append(addrs, ip)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs), nil
}

// leftDevices are the dummy devices that kube-proxy and kube-router assign all cluster IPs to in
// IPVS mode. The devices remain when another proxy replaces that one. Their addresses are those
// of Services, not the node's.
var leftDevices = []string{"kube-ipvs0", "kube-dummy-if"}

// NodeAddrs returns the addresses that Addrs returns, without addresses that only leftDevices
// have.
func NodeAddrs() ([]netip.Addr, error) {
	left := map[int]bool{}
	for _, name := range leftDevices {
		if l, err := netlink.LinkByName(name); err == nil {
			left[l.Attrs().Index] = true
		} else if !errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil, fmt.Errorf("look for device %s: %w", name, err)
		}
	}
	return addrsWithout(left)
}

// addrResync is the interval at which the addresses are read again without a notification of a
// change, addrRetry the delay before a new subscription after a failure.
const (
	addrResync = time.Minute
	addrRetry  = time.Second
)

// WatchAddrs calls set with the addresses of NodeAddrs: once at the start, at every change, and
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
		addrs, err := NodeAddrs()
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
