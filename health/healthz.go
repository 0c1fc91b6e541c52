package health

import (
	"encoding/json"
	"net/http"
	"time"
)

// answer is the body of healthz and livez. The names of the first three fields
// are those that kube-proxy's users read.
type answer struct {
	// LastUpdated is null until the maps first held everything.
	LastUpdated *time.Time `json:"lastUpdated"`
	CurrentTime time.Time  `json:"currentTime"`
	// NodeEligible is healthz's alone.
	NodeEligible *bool    `json:"nodeEligible,omitempty"`
	Reasons      []string `json:"reasons,omitempty"`
	Warnings     []string `json:"warnings,omitempty"`
}

// answerHealthz is for load balancers: may this node be sent traffic?
func answerHealthz(v Verdict) (int, answer) {
	a := newAnswer(v)
	a.NodeEligible = &v.NodeEligible
	a.Reasons = append(a.Reasons, v.NodeReasons...)
	return code(v.Healthy && v.NodeEligible), a
}

// answerLivez is for the kubelet: is the proxy in order? A node that is going
// away is no reason to restart it.
func answerLivez(v Verdict) (int, answer) {
	return code(v.Healthy), newAnswer(v)
}

func newAnswer(v Verdict) answer {
	a := answer{CurrentTime: v.Time.UTC(), Reasons: v.ProxyReasons, Warnings: v.Warnings}
	if !v.LastUpdated.IsZero() {
		last := v.LastUpdated.UTC()
		a.LastUpdated = &last
	}
	return a
}

func code(ok bool) int {
	if ok {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

// probe makes a handler of one of the two answers. counted hears the code of
// every answer and may be nil.
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
	mux.Handle("/healthz", probe(c, answerHealthz, counts.healthzAnswered))
	mux.Handle("/livez", probe(c, answerLivez, counts.livezAnswered))
	return mux
}
