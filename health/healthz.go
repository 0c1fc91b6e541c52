// SPDX-License-Identifier: Apache-2.0

package health

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"shunt/lb"
)

// answer is the body of healthz and livez. The names of the first three fields
// are those that kube-proxy's users read.
type answer struct {
	// LastUpdated is null until the maps first held everything.
	LastUpdated *time.Time `json:"lastUpdated"`
	CurrentTime time.Time  `json:"currentTime"`
	// Healthy is of the proxy alone, as kube-proxy has it: true on a node that leaves.
	Healthy bool `json:"healthy"`
	// NodeEligible is healthz's alone.
	NodeEligible *bool `json:"nodeEligible,omitempty"`
	// Status is the same by family. One loop programs both, so it is one for both.
	Status   map[string]familyAnswer `json:"status"`
	Reasons  []string                `json:"reasons,omitempty"`
	Warnings []string                `json:"warnings,omitempty"`
	// Details name objects of the cluster, and are left out where anybody may ask.
	Details []string `json:"details,omitempty"`
}

// familyAnswer is what kube-proxy says of one family.
type familyAnswer struct {
	LastUpdated *time.Time `json:"lastUpdated"`
	Healthy     bool       `json:"healthy"`
}

// answerHealthz is for load balancers: may this node be sent traffic?
func answerHealthz(v Verdict) (int, answer) {
	a := newAnswer(v)
	a.NodeEligible = &v.NodeEligible
	a.Reasons = slices.Concat(v.ProxyReasons, v.StartReasons, v.NodeReasons)
	a.Healthy = v.Healthy && v.Serving
	return code(a.Healthy && v.NodeEligible), a
}

// answerReadyz is for the kubelet too: does what is programmed work? The node's part
// is left out, since a pod that is not ready mends no node.
func answerReadyz(v Verdict) (int, answer) {
	a := newAnswer(v)
	a.Reasons = slices.Concat(v.ProxyReasons, v.StartReasons)
	a.Healthy = v.Healthy && v.Serving
	return code(a.Healthy), a
}

// answerLivez is for the kubelet: would a restart mend anything? A node that is going
// away is no reason for one, nor is an API server that does not answer.
func answerLivez(v Verdict) (int, answer) {
	a := newAnswer(v)
	a.Warnings = slices.Concat(v.StartReasons, v.Warnings)
	return code(v.Healthy), a
}

func newAnswer(v Verdict) answer {
	a := answer{CurrentTime: v.Time.UTC(), Healthy: v.Healthy, Reasons: v.ProxyReasons, Warnings: v.Warnings, Details: v.Details}
	if !v.LastUpdated.IsZero() {
		last := v.LastUpdated.UTC()
		a.LastUpdated = &last
	}
	one := familyAnswer{a.LastUpdated, v.Healthy}
	a.Status = map[string]familyAnswer{lb.IPv4.String(): one, lb.IPv6.String(): one}
	return a
}

func code(ok bool) int {
	if ok {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

// public is an answer for anybody who reaches the node: it names nothing that a tenant
// of the cluster owns.
func public(what func(Verdict) (int, answer)) func(Verdict) (int, answer) {
	return func(v Verdict) (int, answer) {
		v.Details = nil
		return what(v)
	}
}

// probe makes a handler of one of the answers. counted hears the code of every answer
// and may be nil.
func probe(c *checker, what func(Verdict) (int, answer), counted func(code int)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		code, body := what(c.verdict())
		if counted != nil {
			counted(code)
		}
		writeJSON(w, code, body)
	}
}

// writeJSON answers with a value that always encodes. A client that has gone
// away is not our failure.
func writeJSON(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

// healthzMux is what :10256 serves.
func healthzMux(c *checker, counts *collector) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/healthz", probe(c, public(answerHealthz), counts.healthzAnswered))
	mux.Handle("/livez", probe(c, public(answerLivez), counts.livezAnswered))
	return mux
}

// probesMux is what the kubelet's probes of our own pod ask, at an address that no
// kube-proxy has.
func probesMux(c *checker) http.Handler {
	mux := http.NewServeMux()
	addDetailed(mux, c)
	return mux
}

// addDetailed serves the answers with all that is known.
func addDetailed(mux *http.ServeMux, c *checker) {
	mux.Handle("/livez", probe(c, answerLivez, nil))
	mux.Handle("/readyz", probe(c, answerReadyz, nil))
}

// plainHealthz is kube-proxy's answer beside its metrics: the word ok. Where something
// is wrong it says what.
func plainHealthz(c *checker) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		code, a := answerHealthz(c.verdict())
		w.WriteHeader(code)
		if code == http.StatusOK {
			_, _ = io.WriteString(w, "ok")
			return
		}
		_, _ = io.WriteString(w, strings.Join(a.Reasons, "\n")+"\n")
	}
}
