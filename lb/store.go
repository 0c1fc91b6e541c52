// SPDX-License-Identifier: Apache-2.0

package lb

import (
	stdmaps "maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"
)

// Store holds the objects of the watchers, and which services changed since the loop last took the
// changes. It is a Sink. All methods are safe for concurrent use.
type Store struct {
	now  func() time.Time
	poke chan struct{}

	mu       sync.Mutex
	services map[ServiceName]*Service
	// slices has one or few per service: a list takes a fraction of the memory of a map.
	slices map[ServiceName][]*EndpointSlice
	// owner is the service under which a slice is stored.
	owner map[SliceName]ServiceName
	node  *Node
	// known is the last Node that was seen. It stays when the Node is deleted, and keeps the
	// earlier addresses when the Node has none.
	known *Node
	addrs []netip.Addr
	// cidrs is nil until SetServiceCIDRs was called.
	cidrs  []netip.Prefix
	synced bool
	// reserved is replaced as a whole, never modified.
	reserved *Reserved

	dirty changes
	// Totals since start, for Status.
	serviceChanges, endpointChanges uint64
	lastQueued                      time.Time
}

var _ Sink = (*Store)(nil)

// changes is what the loop has to look at.
type changes struct {
	services map[ServiceName]*change
	// all: every service, since this node's zone changed.
	all bool
	// addrs: the addresses that take node ports.
	addrs bool
	// cidrs: the service CIDRs.
	cidrs bool
	// leftovers: contents of adopted maps that no service claims.
	leftovers bool
	// reserved: what no service may have.
	reserved bool
	// since is when the oldest of these changes came in; zero where there is none.
	since time.Time
}

// change counts the changes of one service since it was last looked at.
type change struct {
	service, endpoints int
	// triggers are LastChange of the slices that changed, at most maxTriggers.
	triggers []time.Time
}

// maxTriggers bounds the triggers of a service that keeps changing and cannot be programmed.
const maxTriggers = 32

func (c *change) trigger(t ...time.Time) {
	if room := maxTriggers - len(c.triggers); room > 0 {
		c.triggers = append(c.triggers, t[:min(len(t), room)]...)
	}
}

// add adds a later change.
func (c *change) add(o change) {
	c.service += o.service
	c.endpoints += o.endpoints
	c.trigger(o.triggers...)
}

func (c *change) counts() changeCount { return changeCount{c.service, c.endpoints} }

// changeCount counts changes of Services and of their EndpointSlices.
type changeCount struct{ service, endpoints int }

func (c *changeCount) add(o changeCount) {
	c.service += o.service
	c.endpoints += o.endpoints
}

func (c *changeCount) sub(o changeCount) {
	c.service -= o.service
	c.endpoints -= o.endpoints
}

// count returns how many changes these are.
func (c *changes) count() changeCount {
	var n changeCount
	for _, ch := range c.services {
		n.add(ch.counts())
	}
	return n
}

func (c *changes) service(name ServiceName) *change {
	if c.services == nil {
		c.services = map[ServiceName]*change{}
	}
	if c.services[name] == nil {
		c.services[name] = &change{}
	}
	return c.services[name]
}

// of returns the change of a service, zero where there is none.
func (c *changes) of(name ServiceName) change {
	if ch := c.services[name]; ch != nil {
		return *ch
	}
	return change{}
}

// object adds an object to what has to be looked at.
func (c *changes) object(o object) {
	switch o.what {
	case aService:
		c.service(o.service)
	case theNodeAddrs:
		c.addrs = true
	case theServiceCIDRs:
		c.cidrs = true
	case theLeftovers:
		c.leftovers = true
	}
}

// NewStore returns an empty Store that takes the time from now.
func NewStore(now func() time.Time) *Store {
	return &Store{
		now: now, poke: make(chan struct{}, 1),
		services: map[ServiceName]*Service{},
		slices:   map[ServiceName][]*EndpointSlice{},
		owner:    map[SliceName]ServiceName{},
	}
}

// SetService adds or replaces a service.
func (s *Store) SetService(svc *Service) {
	s.update(func() bool {
		if old := s.services[svc.Name]; old != nil && reflect.DeepEqual(old, svc) {
			return false
		}
		s.services[svc.Name] = svc
		s.serviceChanged(svc.Name)
		return true
	})
}

// DeleteService removes a service.
func (s *Store) DeleteService(name ServiceName) {
	s.update(func() bool {
		if s.services[name] == nil {
			return false
		}
		delete(s.services, name)
		s.serviceChanged(name)
		return true
	})
}

// SetSlice adds or replaces a slice, and files it under the service that it names now.
func (s *Store) SetSlice(sl *EndpointSlice) {
	s.update(func() bool {
		owner, known := s.owner[sl.Name]
		if known && owner == sl.Service {
			old := &s.slices[owner][s.sliceIndex(sl.Name, owner)]
			if reflect.DeepEqual(*old, sl) {
				return false
			}
			*old = sl
		} else {
			if known {
				s.dropSlice(sl.Name, owner)
			}
			s.slices[sl.Service] = append(s.slices[sl.Service], sl)
			s.owner[sl.Name] = sl.Service
		}
		s.endpointsChanged(sl.Service, sl.LastChange)
		return true
	})
}

// DeleteSlice removes a slice.
func (s *Store) DeleteSlice(name SliceName) {
	s.update(func() bool {
		owner, known := s.owner[name]
		if known {
			s.dropSlice(name, owner)
		}
		return known
	})
}

func (s *Store) dropSlice(name SliceName, owner ServiceName) {
	delete(s.owner, name)
	i := s.sliceIndex(name, owner)
	s.slices[owner] = slices.Delete(s.slices[owner], i, i+1)
	if len(s.slices[owner]) == 0 {
		delete(s.slices, owner)
	}
	s.endpointsChanged(owner, time.Time{})
}

// sliceIndex returns the index of a slice in the list of its owner.
func (s *Store) sliceIndex(name SliceName, owner ServiceName) int {
	return slices.IndexFunc(s.slices[owner], func(sl *EndpointSlice) bool { return sl.Name == name })
}

// SetNode replaces this node's Node; nil: there is none now. Services depend on its zone only, and
// node ports on its addresses.
func (s *Store) SetNode(n *Node) {
	s.update(func() bool {
		if reflect.DeepEqual(s.node, n) {
			return false
		}
		s.node = n
		if n == nil {
			return true // for health; everything else uses known
		}
		known := *n
		if s.known != nil && len(n.Addrs) == 0 {
			known.Addrs = s.known.Addrs
		}
		s.dirty.all = s.dirty.all || s.zone() != n.Zone
		s.dirty.addrs = true // --nodeport-addresses=primary follows the Node
		s.known = &known
		return true
	})
}

// zone returns the last known zone of this node, empty where none is known.
func (s *Store) zone() string {
	if s.known == nil {
		return ""
	}
	return s.known.Zone
}

// NodeIPs returns the last known addresses of the Node.
func (s *Store) NodeIPs() []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		return nil
	}
	return s.known.Addrs
}

// SetNodeAddrs replaces the addresses of this node's interfaces.
func (s *Store) SetNodeAddrs(addrs []netip.Addr) {
	s.update(func() bool {
		if s.addrs != nil && reflect.DeepEqual(s.addrs, addrs) {
			return false
		}
		s.addrs = slices.Clone(addrs)
		s.dirty.addrs = true
		return true
	})
}

// SetServiceCIDRs replaces the service CIDRs, in any order; duplicates are allowed.
func (s *Store) SetServiceCIDRs(cidrs []netip.Prefix) {
	sorted := make([]netip.Prefix, 0, len(cidrs)) // not nil, which means unknown
	for _, p := range cidrs {
		sorted = append(sorted, p.Masked())
	}
	slices.SortFunc(sorted, netip.Prefix.Compare)
	sorted = slices.Compact(sorted)
	s.update(func() bool {
		if s.cidrs != nil && slices.Equal(s.cidrs, sorted) {
			return false
		}
		s.cidrs = sorted
		s.dirty.cidrs = true
		return true
	})
}

// SetReserved replaces what no service may have.
func (s *Store) SetReserved(r Reserved) {
	s.update(func() bool {
		if s.reserved != nil && reflect.DeepEqual(*s.reserved, r) {
			return false
		}
		s.reserved = &r
		s.dirty.reserved = true
		return true
	})
}

// SetSynced lets the loop start.
func (s *Store) SetSynced() {
	s.update(func() bool {
		was := s.synced
		s.synced = true
		return !was
	})
}

// update runs change under the lock, and wakes the loop if change returns true.
func (s *Store) update(change func() bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !change() {
		return
	}
	s.lastQueued = s.now()
	if s.dirty.since.IsZero() {
		s.dirty.since = s.lastQueued
	}
	if s.synced {
		select {
		case s.poke <- struct{}{}:
		default: // a wake-up is pending
		}
	}
}

func (s *Store) serviceChanged(name ServiceName) {
	s.dirty.service(name).service++
	s.serviceChanges++
}

func (s *Store) endpointsChanged(name ServiceName, trigger time.Time) {
	c := s.dirty.service(name)
	c.endpoints++
	s.endpointChanges++
	if !trigger.IsZero() {
		c.trigger(trigger)
	}
}

// take returns the changes and clears them.
func (s *Store) take() changes {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.dirty
	s.dirty = changes{}
	return c
}

// get returns a service and its slices, nil where there is no service.
func (s *Store) get(name ServiceName) (*Service, []*EndpointSlice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	svc := s.services[name]
	if svc == nil {
		return nil, nil
	}
	return svc, slices.Clone(s.slices[name])
}

func (s *Store) serviceNames() map[ServiceName]*Service {
	s.mu.Lock()
	defer s.mu.Unlock()
	return stdmaps.Clone(s.services)
}

// surroundings is what is known beside services; nil means unknown. node is the last Node that was
// seen.
type surroundings struct {
	node  *Node
	addrs []netip.Addr
	cidrs []netip.Prefix
	// reserved is nil where nothing is reserved.
	reserved *Reserved
}

func (s *Store) surroundings() surroundings {
	s.mu.Lock()
	defer s.mu.Unlock()
	return surroundings{s.known, s.addrs, s.cidrs, s.reserved}
}
