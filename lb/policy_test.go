// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// outcome returns the endpoints of port "p" over IPv4/TCP with the sets that they are in, as
// "address:port cluster local", sorted.
func outcome(all []*EndpointSlice, at place) []string {
	ports := newPortIndex(all, 1)
	eps := candidates(&ports, "p", TCP, IPv4, at)
	choose(eps, at)
	var out []string
	for _, c := range eps {
		s := c.addr.String()
		if c.inCluster {
			s += " cluster"
		}
		if c.inLocal {
			s += " local"
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

// here is this node in all tests of the policy.
var here = place{node: "me", zone: "z1"}

// policyTests has cases for each rule in policy.go, and for the conditions and hints of
// EndpointSlices.
var policyTests = []struct {
	what   string
	slices []*EndpointSlice
	want   []string
}{
	{"no slices", nil, nil},
	{"a port of another name is another port",
		[]*EndpointSlice{slice("s", "a", "q:80/TCP", "10.0.0.1")}, nil},
	{"so is one of another protocol",
		[]*EndpointSlice{slice("s", "a", "p:80/UDP", "10.0.0.1")}, nil},
	{"endpoints of the other family are another port's",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "fd00::1")}, nil},
	{"a port's number may differ from slice to slice",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1"), slice("t", "a", "p:81/TCP", "10.0.0.2")},
		[]string{"10.0.0.1:80 cluster", "10.0.0.2:81 cluster"}},
	{"one address with two numbers is two endpoints",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1"), slice("t", "a", "p:81/TCP", "10.0.0.1")},
		[]string{"10.0.0.1:80 cluster", "10.0.0.1:81 cluster"}},

	{"twice the same: ready wins over not ready",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 serving terminating"), slice("t", "a", "p:80/TCP", "10.0.0.1 ready")},
		[]string{"10.0.0.1:80 cluster"}},
	{"twice the same: serving wins over not serving",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 terminating"), slice("t", "a", "p:80/TCP", "10.0.0.1 serving terminating")},
		[]string{"10.0.0.1:80 cluster"}},
	{"twice the same: terminating wins over not, where both serve",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 serving"), slice("t", "a", "p:80/TCP", "10.0.0.1 serving terminating")},
		[]string{"10.0.0.1:80 cluster"}},
	{"conditions are taken from one of them, never mixed",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 terminating"), slice("t", "a", "p:80/TCP", "10.0.0.1 serving")},
		[]string{"10.0.0.1:80"}},
	{"local if either says so",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1@me -"), slice("t", "a", "p:80/TCP", "10.0.0.1 ready")},
		[]string{"10.0.0.1:80 cluster local"}},
	{"twice the same with equal conditions: hints of both",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 zone=z1", "10.0.0.2 zone=z2"), slice("t", "a", "p:80/TCP", "10.0.0.1 zone=z2")},
		[]string{"10.0.0.1:80 cluster", "10.0.0.2:80"}},
	{"twice the same, one without hints: it has none",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 zone=z1", "10.0.0.2 zone=z2"), slice("t", "a", "p:80/TCP", "10.0.0.1")},
		[]string{"10.0.0.1:80 cluster", "10.0.0.2:80 cluster"}},

	{"ready ones only",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1@me", "10.0.0.2 -", "10.0.0.3 serving terminating", "10.0.0.4 serving")},
		[]string{"10.0.0.1:80 cluster local", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"}},
	{"ready counts even if it does not serve (publishNotReadyAddresses)",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 ready", "10.0.0.2 ready terminating")},
		[]string{"10.0.0.1:80 cluster", "10.0.0.2:80 cluster"}},
	{"none ready: all that serve and terminate",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1@me serving terminating", "10.0.0.2@you serving terminating", "10.0.0.3 serving", "10.0.0.4 terminating", "10.0.0.5 -")},
		[]string{"10.0.0.1:80 cluster local", "10.0.0.2:80 cluster", "10.0.0.3:80", "10.0.0.4:80", "10.0.0.5:80"}},
	{"none ready: topology no longer counts",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 serving terminating zone=z1 for=me", "10.0.0.2 serving terminating zone=z2 for=you")},
		[]string{"10.0.0.1:80 cluster", "10.0.0.2:80 cluster"}},

	{"local set: those of this node",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1@me", "10.0.0.2@you", "10.0.0.3")},
		[]string{"10.0.0.1:80 cluster local", "10.0.0.2:80 cluster", "10.0.0.3:80 cluster"}},
	{"local set: none ready here, those here that serve and terminate, whatever is elsewhere",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1@me serving terminating", "10.0.0.2@you", "10.0.0.3@you serving terminating", "10.0.0.4@me terminating")},
		[]string{"10.0.0.1:80 local", "10.0.0.2:80 cluster", "10.0.0.3:80", "10.0.0.4:80"}},
	{"local set: hints are ignored",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1@me zone=z2 for=you", "10.0.0.2@you zone=z1 for=me")},
		[]string{"10.0.0.1:80 local", "10.0.0.2:80 cluster"}},

	{"node hints: all have them, one is for this node",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 for=me", "10.0.0.2 for=you,me", "10.0.0.3 for=you")},
		[]string{"10.0.0.1:80 cluster", "10.0.0.2:80 cluster", "10.0.0.3:80"}},
	{"node hints win over zone hints",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 for=me zone=z2", "10.0.0.2 for=you zone=z1")},
		[]string{"10.0.0.1:80 cluster", "10.0.0.2:80"}},
	{"node hints: one has none, then zones decide",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 for=me zone=z2", "10.0.0.2 zone=z1")},
		[]string{"10.0.0.1:80", "10.0.0.2:80 cluster"}},
	{"node hints: none is for this node, then zones decide",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 for=you zone=z2", "10.0.0.2 for=you zone=z1")},
		[]string{"10.0.0.1:80", "10.0.0.2:80 cluster"}},
	{"zone hints: all have them, one is for this zone",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 zone=z1", "10.0.0.2 zone=z2,z1", "10.0.0.3 zone=z2")},
		[]string{"10.0.0.1:80 cluster", "10.0.0.2:80 cluster", "10.0.0.3:80"}},
	{"zone hints: one ready endpoint has none, then all",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 zone=z1", "10.0.0.2 zone=z2", "10.0.0.3")},
		[]string{"10.0.0.1:80 cluster", "10.0.0.2:80 cluster", "10.0.0.3:80 cluster"}},
	{"hints that name nothing are none",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 zone=z1", "10.0.0.2 nohints")},
		[]string{"10.0.0.1:80 cluster", "10.0.0.2:80 cluster"}},
	{"zone hints: one that is not ready has none, which does not matter",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 zone=z1", "10.0.0.2 zone=z2", "10.0.0.3 serving")},
		[]string{"10.0.0.1:80 cluster", "10.0.0.2:80", "10.0.0.3:80"}},
	{"zone hints: none is for this zone, then all",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 zone=z2", "10.0.0.2 zone=z3")},
		[]string{"10.0.0.1:80 cluster", "10.0.0.2:80 cluster"}},
	{"zone hints: the only one for this zone is not ready, then all",
		[]*EndpointSlice{slice("s", "a", "p:80/TCP", "10.0.0.1 serving terminating zone=z1", "10.0.0.2 zone=z2")},
		[]string{"10.0.0.1:80", "10.0.0.2:80 cluster"}},
}

func TestPolicy(t *testing.T) {
	for _, c := range policyTests {
		t.Run(c.what, func(t *testing.T) {
			if got := outcome(c.slices, here); !slices.Equal(got, c.want) {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			turned := slices.Clone(c.slices)
			slices.Reverse(turned)
			if got := outcome(turned, here); !slices.Equal(got, c.want) {
				t.Errorf("with the slices in the other order: %q", got)
			}
		})
	}
}

// TestPolicyUnknownPlace checks that no hint matches a node whose name or zone is unknown.
func TestPolicyUnknownPlace(t *testing.T) {
	eps := []*EndpointSlice{{Ports: []EndpointPort{{"p", TCP, 80}}, Endpoints: []Endpoint{
		{Addr: addrs("10.0.0.1")[0], Ready: true, Hints: &Hints{Nodes: []string{""}, Zones: []string{""}}},
		{Addr: addrs("10.0.0.2")[0], Ready: true, Hints: &Hints{Nodes: []string{"me"}, Zones: []string{"z1"}}},
	}}}
	want := []string{"10.0.0.1:80 cluster", "10.0.0.2:80 cluster"}
	if got := outcome(eps, place{}); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestLocalReady checks that health checks count ready endpoints on this node by address.
func TestLocalReady(t *testing.T) {
	all := []*EndpointSlice{
		slice("s", "a", "p:80/TCP q:81/TCP", "10.0.0.1@me", "10.0.0.2@me serving terminating", "10.0.0.3@you"),
		slice("t", "a", "p:80/TCP", "10.0.0.1@me", "10.0.0.4@me", "fd00::1@me"),
		slice("u", "a", "", "10.0.0.5@me"),
	}
	ports := newPortIndex(all, 1)
	both := service("a", "10.96.0.1", "p:80/TCP", "q:81/TCP")
	for _, c := range []struct {
		what   string
		svc    *Service
		family Family
		at     place
		want   int
	}{
		{"10.0.0.1 and 10.0.0.4", both, IPv4, here, 2},
		{"fd00::1", both, IPv6, here, 1},
		{"10.0.0.1", service("a", "10.96.0.1", "q:81/TCP"), IPv4, here, 1},
		{"a port that no slice has", service("a", "10.96.0.1", "r:82/TCP"), IPv4, here, 0},
		{"the port of another protocol", service("a", "10.96.0.1", "p:80/UDP"), IPv4, here, 0},
		{"a node without a name", both, IPv4, place{}, 0},
	} {
		if got := localReady(c.svc, &ports, c.family, c.at); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
}

// TestPolicyAgainstModel compares the policy with the slow model, for random slices in any order.
func TestPolicyAgainstModel(t *testing.T) {
	rounds := 30000
	if testing.Short() {
		rounds = 3000
	}
	r := rand.New(rand.NewPCG(1, 2))
	var sizes [4]int // how often a set had that many: the cases must not be trivial
	for i := range rounds {
		all, at := randomSlices(r.IntN), randomPlace(r.IntN)
		got := checkPolicy(t, all, at, r.IntN)
		if t.Failed() {
			t.Fatalf("round %d", i)
		}
		n := 0
		for _, s := range got {
			if strings.Contains(s, "cluster") {
				n++
			}
		}
		sizes[min(n, 3)]++
	}
	for n, times := range sizes {
		if times < rounds/100 {
			t.Errorf("a cluster set of %d endpoints came only %d times in %d", n, times, rounds)
		}
	}
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x03\x02\x01\x00\x05\x04\x03\x02\x01\x07\x06\x05\x04\x03\x02\x01\x09\x08"))
	r := rand.New(rand.NewPCG(3, 4))
	for range 8 {
		seed := make([]byte, 200)
		for i := range seed {
			seed[i] = byte(r.Uint32())
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		choose := fromBytes(data)
		checkPolicy(t, randomSlices(choose), randomPlace(choose), choose)
	})
}

// checkPolicy compares the policy with the model, and with itself for the same slices in another
// order.
func checkPolicy(t *testing.T, all []*EndpointSlice, at place, c chooser) []string {
	t.Helper()
	got, want := outcome(all, at), modelOutcome(all, at)
	if !slices.Equal(got, want) {
		t.Errorf("on %+v\ngot  %q\nmodel %q\nof %s", at, got, want, slicesText(all))
	}
	if other := outcome(shuffled(all, c), at); !slices.Equal(other, got) {
		t.Errorf("on %+v\ngot  %q\nin another order %q\nof %s", at, got, other, slicesText(all))
	}
	return got
}
