// SPDX-License-Identifier: Apache-2.0

package health

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Requests contains the metrics of requests to the API server, with the names, labels and
// buckets of Kubernetes components. Its methods may be called from any goroutine. This
// package does not import client-go: the caller registers Requests with client-go.
type Requests struct {
	latency, rateLimiter      *prometheus.HistogramVec
	requestSize, responseSize *prometheus.HistogramVec
	results, retries          *prometheus.CounterVec
}

var (
	requestBuckets = []float64{0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60}
	sizeBuckets    = []float64{64, 256, 512, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216}
)

// NewRequests returns a Requests without observations.
func NewRequests() *Requests {
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, []string{"verb", "host"})
	}
	counter := func(name, help, verb string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"code", verb, "host"})
	}
	return &Requests{
		latency: histogram("rest_client_request_duration_seconds",
			"How long requests to the API server took, in seconds.", requestBuckets),
		rateLimiter: histogram("rest_client_rate_limiter_duration_seconds",
			"How long requests waited for the client's own rate limiter, in seconds.", requestBuckets),
		requestSize: histogram("rest_client_request_size_bytes",
			"Size of requests to the API server, in bytes.", sizeBuckets),
		responseSize: histogram("rest_client_response_size_bytes",
			"Size of answers of the API server, in bytes.", sizeBuckets),
		results: counter("rest_client_requests_total",
			"Requests to the API server by HTTP status code, or <error> where there was no answer.", "method"),
		retries: counter("rest_client_request_retries_total",
			"Requests that were made again, by the HTTP status code that led to it.", "verb"),
	}
}

// Took records the duration of a request.
func (r *Requests) Took(verb, host string, d time.Duration) {
	r.latency.WithLabelValues(verb, host).Observe(d.Seconds())
}

// Limited records how long a request waited for the client's rate limiter.
func (r *Requests) Limited(verb, host string, d time.Duration) {
	r.rateLimiter.WithLabelValues(verb, host).Observe(d.Seconds())
}

// Sent records the size of a request, in bytes.
func (r *Requests) Sent(verb, host string, bytes float64) {
	r.requestSize.WithLabelValues(verb, host).Observe(bytes)
}

// Received records the size of an answer, in bytes.
func (r *Requests) Received(verb, host string, bytes float64) {
	r.responseSize.WithLabelValues(verb, host).Observe(bytes)
}

// Ended counts a request by its HTTP status code, or <error>.
func (r *Requests) Ended(code, method, host string) {
	r.results.WithLabelValues(code, method, host).Inc()
}

// Retried counts a request that is sent again.
func (r *Requests) Retried(code, verb, host string) {
	r.retries.WithLabelValues(code, verb, host).Inc()
}

func (r *Requests) all() []prometheus.Collector {
	return []prometheus.Collector{r.latency, r.rateLimiter, r.requestSize, r.responseSize, r.results, r.retries}
}

// Describe implements prometheus.Collector.
func (r *Requests) Describe(out chan<- *prometheus.Desc) {
	for _, c := range r.all() {
		c.Describe(out)
	}
}

// Collect implements prometheus.Collector.
func (r *Requests) Collect(out chan<- prometheus.Metric) {
	for _, c := range r.all() {
		c.Collect(out)
	}
}
