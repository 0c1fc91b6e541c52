// SPDX-License-Identifier: Apache-2.0

package health

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"shunt/lb"
	"shunt/maps"
)

// TestProbes requests the health endpoints over HTTP, in every state of the proxy.
func TestProbes(t *testing.T) {
	const ok, not = http.StatusOK, http.StatusServiceUnavailable
	hourAgo := "2026-03-01T11:00:00Z"
	now := "2026-03-01T12:00:00Z"
	notYet, adopted := func(s *lb.Status) { s.Synced, s.LastSync = false, time.Time{} }, "what an earlier daemon programmed is in effect"
	away := func() []Watch {
		return []Watch{{Resource: "services", FailingSince: noon.Add(-time.Hour), Error: "shop/secret"}, {Resource: "nodes", Up: true}}
	}
	tests := []struct {
		name string
		// change changes the status of a healthy proxy; nil: there is no source yet.
		change         func(*lb.Status)
		noNodeRequired bool
		adopted        bool
		watches        func() []Watch
		healthz, livez int
		lastUpdated    any
		eligible       bool
		// reason is that of healthz, warning that of both. livez has the reason of a
		// start as livezWarning.
		reason, warning, livezWarning string
	}{
		{name: "no source yet", healthz: not, livez: ok, reason: "starting", livezWarning: "starting"},
		{name: "no source and no API server", noNodeRequired: true, healthz: not, livez: ok,
			eligible: true, reason: "starting", livezWarning: "starting"},
		{name: "before the first sync", change: notYet,
			healthz: not, livez: ok, eligible: true, reason: "starting", livezWarning: "starting"},
		{name: "before the first sync, with maps in effect", adopted: true, change: notYet,
			healthz: ok, livez: ok, eligible: true, warning: adopted},
		{name: "the API server is away at the start, with maps in effect", adopted: true, watches: away,
			change:  func(s *lb.Status) { notYet(s); s.Node = nil },
			healthz: ok, livez: ok, eligible: true, warning: adopted},
		{name: "the API server is away at the start", watches: away,
			change:  func(s *lb.Status) { notYet(s); s.Node = nil },
			healthz: not, livez: ok, reason: "starting", warning: "has not answered for services", livezWarning: "starting"},
		{name: "the API server is away", watches: away, change: func(*lb.Status) {},
			healthz: ok, livez: ok, lastUpdated: now, eligible: true,
			warning: "the API server has not answered for services since " + hourAgo + "; what is programmed stays in effect"},
		{name: "a first reconcile that does not end", adopted: true,
			change:  func(s *lb.Status) { notYet(s); s.QueuedSince = noon.Add(-time.Hour) },
			healthz: not, livez: not, eligible: true, reason: "waiting for 1h0m0s", warning: adopted},
		{name: "synced, and no Node, with maps that were adopted", adopted: true, change: func(s *lb.Status) { s.Node = nil },
			healthz: not, livez: ok, lastUpdated: now, reason: "not seen yet"},
		{name: "in order", change: func(*lb.Status) {}, healthz: ok, livez: ok, lastUpdated: now, eligible: true},
		{name: "a change is queued", change: func(s *lb.Status) { s.QueuedSince = noon.Add(-DefaultTimeout) },
			healthz: ok, livez: ok, lastUpdated: hourAgo, eligible: true},
		{name: "a change is queued for too long",
			change:  func(s *lb.Status) { s.QueuedSince = noon.Add(-DefaultTimeout - time.Nanosecond) },
			healthz: not, livez: not, lastUpdated: hourAgo, eligible: true, reason: "waiting for 2m0s"},
		{name: "a reconcile failed", change: func(s *lb.Status) { s.Err, s.QueuedSince = errDisk, noon.Add(-time.Second) },
			healthz: ok, livez: ok, lastUpdated: hourAgo, eligible: true, warning: "the last reconcile failed in part"},
		{name: "services fail for hours, and the loop is at work", change: func(s *lb.Status) {
			s.Failing = 12
			s.Problems = lb.Problems{Total: 1, List: []lb.Problem{{Service: lb.ServiceName{Namespace: "tenant", Name: "web"},
				Kind: maps.Failed, Since: noon.Add(-time.Hour)}}}
		}, healthz: ok, livez: ok, lastUpdated: now, eligible: true, warning: "12 Services could not be brought into the maps"},
		{name: "no Node seen", change: func(s *lb.Status) { s.Node = nil },
			healthz: not, livez: ok, lastUpdated: now, reason: "not seen yet"},
		{name: "no Node, and none needed", change: func(s *lb.Status) { s.Node = nil }, noNodeRequired: true,
			healthz: ok, livez: ok, lastUpdated: now, eligible: true},
		{name: "the Node is being deleted", change: func(s *lb.Status) { s.Node.Deleting = true },
			healthz: not, livez: ok, lastUpdated: now, reason: "n1 is being deleted"},
		{name: "the Node is tainted", change: func(s *lb.Status) { s.Node.Tainted = true },
			healthz: not, livez: ok, lastUpdated: now, reason: "ToBeDeletedByClusterAutoscaler"},
		{name: "a map is nearly full", change: func(s *lb.Status) {
			s.Fill = []maps.Fill{{Map: "slots", Flag: "max-slots", Used: 79, Size: 100},
				{Map: "services", Flag: "max-services", Used: 80, Size: 100}}
		}, healthz: ok, livez: ok, lastUpdated: now, eligible: true,
			warning: "map services is 80% full, 80 of 100: start shunt with a larger --max-services"},
		{name: "a map of no size", change: func(s *lb.Status) { s.Fill = []maps.Fill{{Map: "slots"}} },
			healthz: ok, livez: ok, lastUpdated: now, eligible: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var source StatusSource
			if tt.change != nil {
				st := inOrder()
				st.set(tt.change)
				source = st
			}
			s, _ := start(t, Options{HealthzAddress: anyPort, MetricsAddress: anyPort, ProbeAddress: anyPort,
				RequireNode: !tt.noNodeRequired, Watches: tt.watches}, source)
			s.SetAdoptedInEffect(tt.adopted)

			healthz := get(t, s.HealthzAddr(), "/healthz")
			if healthz.code != tt.healthz {
				t.Errorf("healthz: %d, want %d: %s", healthz.code, tt.healthz, healthz.body)
			}
			body := decode(t, healthz.body)
			if body["currentTime"] != now || body["lastUpdated"] != tt.lastUpdated || body["nodeEligible"] != tt.eligible {
				t.Errorf("healthz: %s, want currentTime %s, lastUpdated %v, nodeEligible %v",
					healthz.body, now, tt.lastUpdated, tt.eligible)
			}
			checkTexts(t, body, "reasons", tt.reason)
			checkTexts(t, body, "warnings", tt.warning)

			livez := get(t, s.HealthzAddr(), "/livez")
			if livez.code != tt.livez {
				t.Errorf("livez: %d, want %d: %s", livez.code, tt.livez, livez.body)
			}
			body = decode(t, livez.body)
			if _, has := body["nodeEligible"]; has {
				t.Errorf("livez speaks of the node: %s", livez.body)
			}
			if body["currentTime"] != now || body["lastUpdated"] != tt.lastUpdated {
				t.Errorf("livez: %s, want currentTime %s, lastUpdated %v", livez.body, now, tt.lastUpdated)
			}
			if _, has := body["reasons"]; has != (tt.livez == not) {
				t.Errorf("livez gives reasons: %v, and answers %d", has, livez.code)
			}
			if tt.livezWarning != "" {
				checkTexts(t, body, "warnings", tt.livezWarning)
			}
			if body["healthy"] != (tt.livez == ok) {
				t.Errorf("livez answers %d: %s", livez.code, livez.body)
			}
			readyz := ok
			if tt.livez == not || strings.HasPrefix(tt.reason, "starting") {
				readyz = not
			}
			for path, want := range map[string]int{"/livez": tt.livez, "/readyz": readyz} {
				for _, at := range []netip.AddrPort{s.MetricsAddr(), s.ProbeAddr()} {
					if r := get(t, at, path); r.code != want {
						t.Errorf("%s: %d, want %d: %s", path, r.code, want, r.body)
					}
				}
			}
			plain := get(t, s.MetricsAddr(), "/healthz")
			if plain.code != tt.healthz || (plain.body == "ok") != (tt.healthz == ok) || !strings.Contains(plain.body, tt.reason) {
				t.Errorf("healthz beside the metrics: %d %q", plain.code, plain.body)
			}
		})
	}
}

// TestWhoMayReadDetails: the names of a tenant's objects are in the answers at the
// addresses of metrics and probes, and not at the address that any client can reach.
func TestWhoMayReadDetails(t *testing.T) {
	st := inOrder()
	st.set(func(s *lb.Status) { s.Err = errors.New("service shop/secret has no room") })
	s, _ := start(t, Options{HealthzAddress: anyPort, MetricsAddress: anyPort, ProbeAddress: anyPort}, st)
	for _, path := range []string{"/healthz", "/livez"} {
		if r := get(t, s.HealthzAddr(), path); strings.Contains(r.body, "secret") {
			t.Errorf("%s tells everybody: %s", path, r.body)
		}
	}
	for _, at := range []netip.AddrPort{s.MetricsAddr(), s.ProbeAddr()} {
		checkTexts(t, decode(t, get(t, at, "/livez").body), "details", "shop/secret")
	}
}

// checkTexts checks that a list of the body contains the words, or that there is no such
// list if words is empty.
func checkTexts(t *testing.T, body map[string]any, field, words string) {
	t.Helper()
	texts, _ := body[field].([]any)
	if words == "" && texts != nil {
		t.Errorf("%s: %q, want none", field, texts)
	}
	if words != "" && !mentions(texts, words) {
		t.Errorf("%s: %q, want one with %q", field, texts, words)
	}
}

// TestTimeoutOption: the verdict uses Options.Timeout.
func TestTimeoutOption(t *testing.T) {
	st := inOrder()
	st.set(func(s *lb.Status) { s.QueuedSince = noon.Add(-11 * time.Second) })
	s, _ := start(t, Options{HealthzAddress: anyPort, Timeout: 10 * time.Second}, st)
	if r := get(t, s.HealthzAddr(), "/livez"); r.code != http.StatusServiceUnavailable {
		t.Errorf("%d: %s", r.code, r.body)
	}
}
