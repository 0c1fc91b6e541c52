// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	stdmaps "maps"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// deviceResync is the interval at which the devices are scanned without a notification of a
// change, deviceRetry the delay after a failure. devicePause is the delay after a scan, so that
// the next one covers several changes.
const (
	deviceResync = time.Minute
	deviceRetry  = 2 * time.Second
	devicePause  = 50 * time.Millisecond
)

// Run follows the devices, addresses, routes and filters of the network namespace of the calling
// thread. It begins after Start, and returns nil when the context ends. Only the notifications
// are read by another goroutine.
func (p *PacketPath) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-p.started:
	}
	for ctx.Err() == nil {
		if err := p.follow(ctx); err != nil {
			p.opts.Log.Warn("network devices can't be followed, trying again", zap.Error(err), zap.Duration("in", deviceRetry))
			pause(ctx, deviceRetry)
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// follow subscribes to changes and scans. It returns nil when the context ends, and an error
// when the subscription fails.
func (p *PacketPath) follow(ctx context.Context) error {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_TC)
	if err != nil {
		return fmt.Errorf("subscribe to changes of devices, addresses, routes and filters: %w", err)
	}
	ended := make(chan error, 1)
	go func() {
		defer close(ended)
		ended <- p.listen(socket)
	}()
	defer func() {
		socket.Close()
		for range ended { // until the goroutine has ended
		}
	}()
	for {
		// The first scan comes after the subscription, so that no change is missed.
		next := deviceResync
		if !p.sync() {
			next = deviceRetry
		} else if !p.settled() {
			next = conntrackPeriod
		}
		pause(ctx, devicePause)
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return fmt.Errorf("listen to changes of devices: %w", err)
		case <-p.poke:
		case <-time.After(next):
		}
	}
}

// look checks that every device which the last scan chose has its programs in the kernel. It
// returns one problem by direction, or "". It costs much less than a scan. If a program is
// missing, look asks for a scan: the kernel sends no notification when a TCX link is detached.
func (p *PacketPath) look() (problems [directions]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wanted == nil {
		return problems // tests only: NewPacketPath sets it
	}
	found, err := listAll(p.ways)
	for dir := range direction(directions) {
		if text := p.problems[everyDevice]; text != "" {
			problems[dir] = text
		}
		for _, index := range slices.Sorted(stdmaps.Keys(p.wanted)) {
			want, text := p.wanted[index], ""
			if err == nil {
				text = p.missing(found, point{index, dir})
			}
			switch {
			case err != nil:
				problems[dir] = err.Error()
			case text == "":
				continue
			case p.problems[want.name] != "":
				problems[dir] = fmt.Sprintf("device %s: %s", want.name, p.problems[want.name])
			default:
				problems[dir] = text
				p.wake()
			}
			break
		}
	}
	return problems
}

// missing returns the difference between the program at a point and the one that the last scan
// attached there. It returns "" if there is none, or the device no longer exists.
func (p *PacketPath) missing(found attachments, at point) string {
	a, want := found.at(p.ways[0], at), p.wanted[at.index]
	there := a != nil && a.inEffect
	replaced := there && want.programs[at.dir] != 0 && a.program != want.programs[at.dir]
	switch {
	case there && !replaced, deviceGone(at.index):
		return ""
	case replaced:
		return fmt.Sprintf("device %s has program %d instead of its own", want.name, a.program)
	}
	return fmt.Sprintf("device %s has lost its program, or the pin of its link", want.name)
}

// noteLost notes in p.lost the programs that found lacks and that the current scan is about to
// attach. A scan may begin before look has seen the loss, as the kernel sends a notification when
// a qdisc is removed.
func (p *PacketPath) noteLost(found attachments) {
	for index := range p.wanted {
		for dir := range direction(directions) {
			if text := p.missing(found, point{index, dir}); text != "" {
				p.lost[dir] = text
			}
		}
	}
}

// takeLost returns, by direction, the lost programs that scans have attached again since the last
// call, or "".
func (p *PacketPath) takeLost() (lost [directions]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	lost, p.lost = p.lost, lost
	return lost
}

// deviceGone reports whether the device no longer exists. A scan that removes it from p.wanted is
// due then.
func deviceGone(index int) bool {
	_, err := net.InterfaceByIndex(index)
	return err != nil
}

// listen wakes Run at changes that matter, until the socket is closed.
func (p *PacketPath) listen(socket *nl.NetlinkSocket) error {
	for {
		messages, _, err := socket.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS): // messages were lost
			p.wake()
		case err != nil:
			return err
		}
		for _, m := range messages {
			if matters(m) {
				p.wake()
				break
			}
		}
	}
}

// matters reports whether a message may change what is attached. It ignores routes without a
// gateway, of which every pod has one, except default routes.
func matters(m syscall.NetlinkMessage) bool {
	if m.Header.Type != unix.RTM_NEWROUTE && m.Header.Type != unix.RTM_DELROUTE {
		return true
	}
	if len(m.Data) < unix.SizeofRtMsg {
		return true
	}
	if m.Data[1] == 0 { // rtm_dst_len
		return true
	}
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofRtMsg:])
	if err != nil {
		return true
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_GATEWAY, unix.RTA_MULTIPATH, unix.RTA_VIA:
			return true
		}
	}
	return false
}
