package health

import (
	"net/http"
	"testing"
	"time"

	"shunt/lb"
	"shunt/maps"
)

// TestProbes asks both endpoints over HTTP in every state there is.
func TestProbes(t *testing.T) {
	const ok, not = http.StatusOK, http.StatusServiceUnavailable
	hourAgo := "2026-03-01T11:00:00Z"
	now := "2026-03-01T12:00:00Z"
	tests := []struct {
		name string
		// change is applied to a proxy in order; nil: there is no source yet.
		change         func(*lb.Status)
		noNodeRequired bool
		healthz, livez int
		lastUpdated    any
		eligible       bool
		reason         string
		warning        string
	}{
		{name: "no source yet", healthz: not, livez: not, reason: "starting"},
		{name: "no source and no API server", noNodeRequired: true, healthz: not, livez: not,
			eligible: true, reason: "starting"},
		{name: "before the first sync", change: func(s *lb.Status) { s.Synced, s.LastSync = false, time.Time{} },
			healthz: not, livez: not, eligible: true, reason: "starting"},
		{name: "in order", change: func(*lb.Status) {}, healthz: ok, livez: ok, lastUpdated: now, eligible: true},
		{name: "a change is queued", change: func(s *lb.Status) { s.QueuedSince = noon.Add(-DefaultTimeout) },
			healthz: ok, livez: ok, lastUpdated: hourAgo, eligible: true},
		{name: "a change is queued for too long",
			change:  func(s *lb.Status) { s.QueuedSince = noon.Add(-DefaultTimeout - time.Nanosecond) },
			healthz: not, livez: not, lastUpdated: hourAgo, eligible: true, reason: "waiting for 2m0s"},
		{name: "a reconcile failed", change: func(s *lb.Status) { s.Err, s.QueuedSince = errDisk, noon.Add(-time.Second) },
			healthz: ok, livez: ok, lastUpdated: hourAgo, eligible: true, warning: "tried again: no room"},
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
			s, _ := start(t, Options{HealthzAddress: anyPort, RequireNode: !tt.noNodeRequired}, source)

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
		})
	}
}

// checkTexts wants the words in a list of the body, or no such list for none.
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

// TestTimeoutOption: the timeout is the one that was given.
func TestTimeoutOption(t *testing.T) {
	st := inOrder()
	st.set(func(s *lb.Status) { s.QueuedSince = noon.Add(-11 * time.Second) })
	s, _ := start(t, Options{HealthzAddress: anyPort, Timeout: 10 * time.Second}, st)
	if r := get(t, s.HealthzAddr(), "/livez"); r.code != http.StatusServiceUnavailable {
		t.Errorf("%d: %s", r.code, r.body)
	}
}
