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

// answer is the body of healthz, livez and readyz. The first three fields have the names
// of kube-proxy's answer.
type answer struct {
	// LastUpdated is null until the maps first contained every known object.
	LastUpdated *time.Time `json:"lastUpdated"`
	CurrentTime time.Time  `json:"currentTime"`
	// Healthy is the health of the proxy alone, as in kube-proxy: it can be true on a node
	// that is being deleted.
	Healthy bool `json:"healthy"`
	// NodeEligible is in the answer of healthz only.
	NodeEligible *bool `json:"nodeEligible,omitempty"`
	// Status is the health by family. One loop programs both families, so both have the
	// same health.
	Status   map[string]familyAnswer `json:"status"`
	Reasons  []string                `json:"reasons,omitempty"`
	Warnings []string                `json:"warnings,omitempty"`
	// Details name objects of the cluster. They are left out of public answers.
	Details []string `json:"details,omitempty"`
}

// familyAnswer is kube-proxy's answer for one family.
type familyAnswer struct {
	LastUpdated *time.Time `json:"lastUpdated"`
	Healthy     bool       `json:"healthy"`
}

// answerHealthz answers load balancers: 200 if this node may get traffic, else 503.
func answerHealthz(v Verdict) (int, answer) {
	a := newAnswer(v)
	a.NodeEligible = &v.NodeEligible
	a.Reasons = slices.Concat(v.ProxyReasons, v.StartReasons, v.NodeReasons)
	a.Healthy = v.Healthy && v.Serving
	return code(a.Healthy && v.NodeEligible), a
}

// answerReadyz answers the kubelet's readiness probe: 200 if the programmed maps are in effect,
// else 503. It ignores the state of the Node: shunt's pod is ready on a node that is being
// deleted.
func answerReadyz(v Verdict) (int, answer) {
	a := newAnswer(v)
	a.Reasons = slices.Concat(v.ProxyReasons, v.StartReasons)
	a.Healthy = v.Healthy && v.Serving
	return code(a.Healthy), a
}

// answerLivez answers the kubelet's liveness probe: 503 if a restart could repair the proxy,
// else 200. It ignores the state of the Node and an API server that does not answer, since a
// restart repairs neither.
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

// public removes Details, which name objects of the cluster's tenants, from an answer. It is
// for addresses that any client can reach.
func public(what func(Verdict) (int, answer)) func(Verdict) (int, answer) {
	return func(v Verdict) (int, answer) {
		v.Details = nil
		return what(v)
	}
}

// probe returns a handler for one of the answers. It calls counted with the status code
// of every answer; counted may be nil.
func probe(c *checker, what func(Verdict) (int, answer), counted func(code int)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		code, body := what(c.verdict())
		if counted != nil {
			counted(code)
		}
		writeJSON(w, code, body)
	}
}

// writeJSON writes body, which must be encodable, as the response. It ignores the error of a
// write: the client has closed the connection.
func writeJSON(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

// healthzMux serves HealthzAddress, by default port 10256.
func healthzMux(c *checker, counts *collector) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/healthz", probe(c, public(answerHealthz), counts.healthzAnswered))
	mux.Handle("/livez", probe(c, public(answerLivez), counts.livezAnswered))
	return mux
}

// probesMux serves ProbeAddress: the kubelet's probes of shunt's own pod, at an address
// that no kube-proxy uses.
func probesMux(c *checker) http.Handler {
	mux := http.NewServeMux()
	addDetailed(mux, c)
	return mux
}

// addDetailed adds livez and readyz with Details.
func addDetailed(mux *http.ServeMux, c *checker) {
	mux.Handle("/livez", probe(c, answerLivez, nil))
	mux.Handle("/readyz", probe(c, answerReadyz, nil))
}

// plainHealthz serves /healthz at kube-proxy's metrics address. The body is "ok" with status
// 200, and the reasons, one a line, with status 503.
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
