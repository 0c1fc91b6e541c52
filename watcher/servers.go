// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"encoding/json"
	stdmaps "maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// mostRemembered bounds the endpoints that Servers remembers for one address.
	mostRemembered = 8
	// mostTimes bounds the addresses for which Servers records a failure or an answer: the
	// endpoints of a Service may change for as long as the daemon runs.
	mostTimes = 128
	// learnInterval is how often the endpoints of a Service's address are read.
	learnInterval = time.Second
	// dialTimeout bounds the attempt to connect to one endpoint.
	dialTimeout = 10 * time.Second
)

// Endpoints maps an address of the API server, HOST:PORT as it was configured, to the
// endpoints that were found for it, the newest first.
type Endpoints map[string][]netip.AddrPort

// ServersOptions are what NewServers needs; every field may be nil.
type ServersOptions struct {
	// Leads returns the endpoints to which this node translates connections to an address;
	// none if the address is not a frontend. It may be called at any time.
	Leads func(netip.AddrPort) []netip.AddrPort
	// Save stores Endpoints for the next daemon, which passes them to Recall.
	Save func(Endpoints) error
	// Room is how many bytes of JSON Save can store; 0: no limit.
	Room int
	// Uses is called with each configured address of an API server, and with any other
	// address at which an API server has answered.
	Uses func(netip.AddrPort)
	// Control is called for each socket before it connects.
	Control func(fd uintptr) error
	Log     *zap.Logger
}

// Servers contains the addresses of the API server, and further addresses to dial for each.
//
// A configured address may be a frontend of a Service that shunt itself serves. A connection
// to the frontend is translated to an endpoint of the Service's EndpointSlices, and shunt
// reads these EndpointSlices over the same connection: with wrong EndpointSlices shunt could
// not connect, and would never read the corrected ones. So Servers dials the endpoints
// directly. It remembers endpoints, also over restarts, and tries earlier endpoints after the
// current ones.
type Servers struct {
	o    ServersOptions
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	// answer has the limits of requests, without a transport.
	answer answerLimit

	mu   sync.Mutex
	urls []*url.URL
	// service is set when the only address is that of the kubernetes Service.
	service bool
	// current is the server of the next request.
	current    int
	answered   bool
	remembered Endpoints
	// unsaved is set when remembered differs from what was saved last.
	unsaved bool
	// failed and proven are the times of the last failure and the last proof, by the
	// address that was dialled.
	failed, proven map[string]time.Time
}

// NewServers returns Servers for one client. NewClient sets their addresses.
func NewServers(o ServersOptions) *Servers {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	s := &Servers{o: o, remembered: Endpoints{}, failed: map[string]time.Time{}, proven: map[string]time.Time{},
		answer: answerLimit{watch: watchAnswerIn, request: requestAnswerIn}}
	s.dial = s.dialer().DialContext
	return s
}

// Recall sets the endpoints that an earlier daemon found. It must be called before
// anything is dialled.
func (s *Servers) Recall(found Endpoints) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for host, addrs := range found {
		s.remembered[host] = addrs[:min(len(addrs), mostRemembered)]
	}
	if len(s.urls) > 0 {
		s.prune()
	}
}

// prune forgets the endpoints of addresses that are not configured.
func (s *Servers) prune() {
	n := len(s.remembered)
	stdmaps.DeleteFunc(s.remembered, func(at string, _ []netip.AddrPort) bool {
		return !slices.ContainsFunc(s.urls, func(u *url.URL) bool { return strings.EqualFold(hostPort(u), at) })
	})
	s.unsaved = s.unsaved || len(s.remembered) < n
}

// setURLs replaces the servers, in the order of preference.
func (s *Servers) setURLs(urls []*url.URL, service bool) {
	s.mu.Lock()
	s.urls, s.service, s.current = urls, service, 0
	s.prune()
	s.mu.Unlock()
	for _, u := range urls {
		s.uses(hostPort(u))
	}
}

// uses reports an address of an API server to ServersOptions.Uses. It ignores a host name,
// since its addresses are not resolved yet.
func (s *Servers) uses(address string) {
	if ap, err := netip.ParseAddrPort(address); err == nil && s.o.Uses != nil {
		s.o.Uses(netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	}
}

// hostPort returns the HOST:PORT that a transport dials for a URL.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// Run remembers the endpoints of the servers' addresses until ctx is done.
func (s *Servers) Run(ctx context.Context) error {
	tick := time.NewTicker(learnInterval)
	defer tick.Stop()
	for {
		s.mu.Lock()
		urls := s.urls
		s.mu.Unlock()
		for _, u := range urls {
			host := hostPort(u)
			if ap, err := netip.ParseAddrPort(host); err == nil {
				s.remember(host, s.leads(ap))
			}
		}
		s.save()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Hint returns advice for the log as long as no server has answered: that the only address is
// the cluster IP of the kubernetes Service. It returns "" in every other case.
func (s *Servers) Hint() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answered || len(s.urls) == 0 || !s.service {
		return ""
	}
	return hostPort(s.urls[0]) + " is the address of the kubernetes Service, which needs a proxy that serves it, and shunt can't " +
		"before it has read the Services: give the address of a control plane node or of a load balancer before them, by --apiserver or $" +
		EnvAPIServer
}

func (s *Servers) leads(ap netip.AddrPort) []netip.AddrPort {
	if s.o.Leads == nil {
		return nil
	}
	return s.o.Leads(ap)
}

// remember adds endpoints of a server's address, which save then stores.
func (s *Servers) remember(host string, endpoints []netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	endpoints = endpoints[:min(len(endpoints), mostRemembered)]
	old := s.remembered[host]
	if !slices.ContainsFunc(endpoints, func(a netip.AddrPort) bool { return !slices.Contains(old, a) }) {
		return // a new order alone is not saved
	}
	now := slices.Clone(endpoints)
	for _, a := range old {
		if !slices.Contains(now, a) {
			now = append(now, a)
		}
	}
	s.remembered[host] = now[:min(len(now), mostRemembered)]
	s.unsaved = true
}

// save stores the remembered endpoints if they have changed.
func (s *Servers) save() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.unsaved || s.o.Save == nil {
		return
	}
	s.unsaved = false // also on failure: an error would be logged every second
	if err := s.o.Save(s.fitting()); err != nil {
		s.o.Log.Warn("cannot remember the endpoints of the API server: a restart may not find it", zap.Error(err))
	}
}

// fitting returns the remembered endpoints that fit in Room. While there are too many, it
// drops the oldest endpoint of the address that has the most endpoints; among equals, of the
// address that was configured last.
func (s *Servers) fitting() Endpoints {
	kept := stdmaps.Clone(s.remembered)
	for s.o.Room > 0 {
		text, err := json.Marshal(kept)
		if err != nil || len(text) <= s.o.Room {
			break
		}
		most := ""
		for _, u := range s.urls {
			if host := hostPort(u); len(kept[host]) >= max(len(kept[most]), 1) {
				most = host
			}
		}
		if n := len(kept[most]); n > 1 {
			kept[most] = kept[most][:n-1]
		} else if delete(kept, most); n == 0 {
			break
		}
	}
	return kept
}

// ways returns the addresses to dial for a server's HOST:PORT: the endpoints to which this
// node translates it, the address itself, and remembered endpoints. Addresses that failed are
// sorted to the end, by the time of the failure.
func (s *Servers) ways(ctx context.Context, host string) []string {
	var ways []string
	add := func(address string) {
		if !slices.Contains(ways, address) {
			ways = append(ways, address)
		}
	}
	for _, ap := range resolve(ctx, host) {
		endpoints := slices.Clone(s.leads(ap))
		rand.Shuffle(len(endpoints), func(i, j int) { endpoints[i], endpoints[j] = endpoints[j], endpoints[i] })
		for _, e := range endpoints {
			add(e.String())
		}
		add(ap.String())
	}
	if len(ways) == 0 {
		add(host) // dialling it returns an error that says why it can't be resolved
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.remembered[host] {
		add(a.String())
	}
	slices.SortStableFunc(ways, func(a, b string) int { return s.failed[a].Compare(s.failed[b]) })
	return ways
}

// resolve returns the addresses of HOST:PORT; none if the name can't be resolved.
func resolve(ctx context.Context, host string) []netip.AddrPort {
	if ap, err := netip.ParseAddrPort(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}
	}
	name, service, err := net.SplitHostPort(host)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout/2)
	defer cancel()
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil {
		return nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return nil
	}
	addrs := make([]netip.AddrPort, 0, len(ips))
	for _, ip := range ips {
		addrs = append(addrs, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
	}
	return addrs
}

// server returns the server of the next request.
func (s *Servers) server() *url.URL {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.urls[s.current]
}

// first returns the first configured server: client-go's requests have its URL.
func (s *Servers) first() *url.URL {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.urls[0]
}

// count returns the number of servers.
func (s *Servers) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.urls)
}

// serverFailed makes the next server the current one, if u is the current one.
func (s *Servers) serverFailed(u *url.URL) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.urls[s.current] == u {
		s.current = (s.current + 1) % len(s.urls)
	}
}

// wayFailed records a failure of an address, unless an API server has answered there
// since dialled: clients also close connections that they do not use.
func (s *Servers) wayFailed(address string, dialled time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.proven[address].After(dialled) {
		note(s.failed, address)
	}
}

// wayProven records that an API server answered at an address.
func (s *Servers) wayProven(host, address string) {
	s.mu.Lock()
	s.answered = true
	note(s.proven, address)
	delete(s.failed, address)
	s.mu.Unlock()
	s.uses(address)
	ap, err := netip.ParseAddrPort(address)
	if err == nil && !strings.EqualFold(address, host) && len(s.leads(ap)) == 0 {
		s.remember(host, []netip.AddrPort{ap})
		s.save()
	}
}

// note records the present time for an address. It removes the earliest entry if there are
// more than mostTimes.
func note(times map[string]time.Time, address string) {
	times[address] = time.Now()
	if len(times) <= mostTimes {
		return
	}
	earliest := address
	for a, at := range times {
		if at.Before(times[earliest]) {
			earliest = a
		}
	}
	delete(times, earliest)
}
