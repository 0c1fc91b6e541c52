// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	stdmaps "maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"shunt/maps"
)

// Clients maintains map client_addrs, by which programs check loadBalancerSourceRanges for
// clients on this node: when a socket connects, the kernel has not chosen its source address yet.
// An entry has the source address that sockets of one network namespace will have for one
// destination address. The destinations are the addresses of frontends with source ranges (the
// bound addresses). Clients is the map's only writer. While there are no bound addresses the map
// is empty, no namespace is scanned, and no netlink socket is open.
//
// Every scan reads the namespaces from the kernel. The programs refuse a client without an entry,
// such as one in a namespace that was not scanned yet.
type Clients struct {
	o     ClientsOptions
	asked chan clientsRequest
	ended chan struct{}

	// The following fields belong to Run's goroutine.
	bound  []netip.Addr
	spaces map[uint64]*clientSpace // by the inode number of the namespace's file
	held   map[maps.ClientKey]netip.Addr
	// said is the text of the problem that was logged last, so that a repeated problem is logged
	// once.
	said string
	// full is the start of the last scan of all namespaces, fullTook its duration.
	full     time.Time
	fullTook time.Duration
}

// ClientsOptions are the options of NewClients. All are needed.
type ClientsOptions struct {
	Maps *maps.Kernel
	Log  *zap.Logger
}

type clientsRequest struct {
	bound []netip.Addr
	done  chan struct{}
}

// When to scan.
const (
	// clientsWait is the longest time that Want waits for the map.
	clientsWait = time.Second
	// clientsPoll is the interval at which new network namespaces are looked for without a
	// notification, clientsResync the interval at which all namespaces are read.
	clientsPoll   = 5 * time.Second
	clientsResync = time.Minute
	// After a scan Clients pauses for clientsShare times the scan's duration, but at least
	// clientsPause and at most clientsLongestPause. A change causes a scan of all namespaces only
	// after clientsShare times the duration of the last such scan. So scans of all namespaces,
	// and other scans of up to 10 ms, use a tenth of a CPU at most, however often something
	// changes.
	clientsShare        = 10
	clientsPause        = 5 * time.Millisecond
	clientsLongestPause = 100 * time.Millisecond
	// clientYoung is the age up to which a network namespace is read in every scan: a new pod
	// gets its devices and addresses one after another.
	clientYoung = 30 * time.Second
)

// clientsAgain are the delays of further scans after a notification: a container runtime may
// create the path of a network namespace (netnsGlobs) only after all devices are there.
var clientsAgain = []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond, time.Second, 3 * time.Second}

// NewClients returns a Clients that does nothing until Run.
func NewClients(o ClientsOptions) *Clients {
	return &Clients{o: o, asked: make(chan clientsRequest, 1), ended: make(chan struct{})}
}

// Want sets the bound addresses: those of frontends with source ranges. The caller must not
// modify the slice afterwards. Want returns when the map covers these addresses, or after
// clientsWait (one second). So the caller can program a frontend after the entries of its
// clients. Only one goroutine may call Want.
func (c *Clients) Want(bound []netip.Addr) {
	r := clientsRequest{bound: bound, done: make(chan struct{})}
	select {
	case <-c.asked: // an unanswered request, whose Want has timed out
	default:
	}
	c.asked <- r
	late := time.NewTimer(clientsWait)
	defer late.Stop()
	select {
	case <-r.done:
	case <-c.ended:
	case <-late.C:
		c.o.Log.Warn("source addresses of this node's clients are still being read: " +
			"load-balancer IPs with source ranges refuse those that are not known yet")
	}
}

// Run keeps the map up to date with the network namespaces of this machine while there are bound
// addresses. It returns nil when the context ends.
func (c *Clients) Run(ctx context.Context) error {
	defer close(c.ended)
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-c.asked:
			c.answer(ctx, r)
		}
		for len(c.bound) > 0 && ctx.Err() == nil {
			if err := c.follow(ctx); err != nil {
				c.o.Log.Warn("addresses of this node's clients can't be followed, trying again",
					zap.Error(err), zap.Duration("in", addrRetry))
				pause(ctx, addrRetry)
			}
		}
	}
}

// answer updates the map for the requested bound addresses, and then lets Want return.
func (c *Clients) answer(ctx context.Context, r clientsRequest) {
	c.bound = r.bound
	c.scan(ctx, func(s *clientSpace) bool { return s.several() })
	close(r.done)
}

// follow subscribes to changes and scans. It returns nil when the context ends or no address is
// bound any more, and an error when the subscription fails.
func (c *Clients) follow(ctx context.Context) error {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NSID)
	if err != nil {
		return fmt.Errorf("subscribe to changes of devices, addresses and routes: %w", err)
	}
	// A network namespace that contains the peer of one of this namespace's devices has an id
	// here (nsid). With this option the socket also receives the notifications of such
	// namespaces.
	if err := unix.SetsockoptInt(socket.GetFd(), unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 1); err != nil {
		c.o.Log.Debug("changes in other network namespaces are not heard of", zap.Error(err))
	}
	heard := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() {
		defer close(ended)
		ended <- listenAll(socket, heard)
	}()
	defer func() {
		socket.Close()
		for range ended { // until the goroutine has ended
		}
	}()
	return c.keep(ctx, heard, ended)
}

// listenAll sends to heard after every message, until the socket is closed.
func listenAll(socket *nl.NetlinkSocket, heard chan<- struct{}) error {
	for {
		if _, _, err := socket.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) { // messages were lost
			return err
		}
		select {
		case heard <- struct{}{}:
		default:
		}
	}
}

// keep scans at once, after every notification, after each delay of clientsAgain that follows it,
// and every clientsPoll.
func (c *Clients) keep(ctx context.Context, heard <-chan struct{}, ended <-chan error) error {
	again, since, changed := 0, time.Now(), true
	for len(c.bound) > 0 {
		started := time.Now()
		all := changed && started.Sub(c.full) > clientsShare*c.fullTook || started.Sub(c.full) > clientsResync
		if started.Sub(c.full) > clientsResync {
			c.held = nil // write reads the map again
		}
		c.scan(ctx, func(s *clientSpace) bool { return all || s.own || started.Sub(s.since) < clientYoung })
		if all {
			c.full, c.fullTook, changed = started, time.Since(started), false
		}
		pause(ctx, min(max(clientsPause, clientsShare*time.Since(started)), clientsLongestPause))
		next := clientsPoll
		if again < len(clientsAgain) {
			next = time.Until(since.Add(clientsAgain[again]))
			again++
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return fmt.Errorf("listen to changes of devices, addresses and routes: %w", err)
		case <-heard:
			again, since, changed = 0, time.Now(), true
		case r := <-c.asked:
			c.answer(ctx, r)
		case <-time.After(next):
		}
	}
	return nil
}

// scan reads the network namespaces that are new and those for which again returns true, and
// writes the differences to the map.
func (c *Clients) scan(ctx context.Context, again func(*clientSpace) bool) {
	err := c.read(ctx, again)
	if ctx.Err() != nil {
		return // the scan was interrupted and is incomplete
	}
	err = errors.Join(err, c.write())
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != c.said && text != "" {
		c.o.Log.Warn("load-balancer IPs with source ranges refuse clients of this node whose source addresses are not known",
			zap.Error(err))
	}
	c.said = text
}

// read updates spaces. It leaves out a network namespace that can't be read.
func (c *Clients) read(ctx context.Context, again func(*clientSpace) bool) error {
	if len(c.bound) == 0 {
		c.spaces = nil
		return nil
	}
	own, err := NetnsCookie()
	if err != nil {
		c.spaces = nil // the namespaces can't be told apart
		return err
	}
	found := map[uint64]*clientSpace{}
	wanted := func(inode uint64) bool {
		s := c.spaces[inode]
		if s != nil && !again(s) {
			found[inode] = s
			return false
		}
		return true
	}
	var errs []error
	err = eachNetns(ctx, netnsGlobs, wanted, func(inode uint64, path string) {
		s, err := readClientSpace(c.bound)
		if err != nil {
			errs = append(errs, fmt.Errorf("network namespace %s: %w", path, err))
			return
		}
		s.own, s.since = s.cookie == own, time.Now()
		if before := c.spaces[inode]; before != nil && before.cookie == s.cookie {
			s.since = before.since
		}
		found[inode] = s
	})
	links := sync.OnceValues(netlink.LinkList) // read once for all namespaces of this scan
	for _, s := range found {
		s.settle(c.bound, links)
	}
	if err == nil && ctx.Err() == nil {
		c.spaces = found
	}
	return maps.FirstErrors(append(errs, err), 0)
}

// write adds and deletes entries so that the map has those of spaces. It adds before it deletes,
// so that a client with an entry is never without one. If the map was full, write adds again
// after the deletions.
func (c *Clients) write() error {
	if c.held == nil {
		held, err := c.o.Maps.ClientAddrs()
		if err != nil {
			return err
		}
		c.held = held
	}
	wants, left := clientEntries(c.spaces, int(c.o.Maps.ClientAddrsSize()))
	err := c.add(wants)
	errs := []error{left}
	for key := range c.held {
		if _, wanted := wants[key]; wanted {
			continue
		}
		if err := c.o.Maps.DeleteClientAddr(key); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(c.held, key)
	}
	var full *maps.FullError
	if errors.As(err, &full) {
		err = c.add(wants)
	}
	return errors.Join(append(errs, err)...)
}

func (c *Clients) add(wants map[maps.ClientKey]netip.Addr) error {
	for key, source := range wants {
		if held, there := c.held[key]; there && held == source {
			continue
		}
		if err := c.o.Maps.SetClientAddr(key, source); err != nil {
			return err
		}
		c.held[key] = source
	}
	return nil
}

// clientEntries returns the map entries of the network namespaces. If there are more than room,
// it adds the namespaces in the order of compare, leaves out each one whose entries do not fit,
// and returns an error.
func clientEntries(spaces map[uint64]*clientSpace, room int) (map[maps.ClientKey]netip.Addr, error) {
	wants, left := map[maps.ClientKey]netip.Addr{}, 0
	for _, s := range slices.SortedFunc(stdmaps.Values(spaces), (*clientSpace).compare) {
		if len(wants)+len(s.sources) > room {
			left++
			continue
		}
		for to, source := range s.sources {
			wants[maps.ClientKey{Netns: s.cookie, Addr: to}] = source
		}
	}
	if left > 0 {
		return wants, fmt.Errorf("map %s has room for %d entries, which is not enough for %d of %d network namespaces",
			maps.NameClientAddrs, room, left, len(spaces))
	}
	return wants, nil
}
