// SPDX-License-Identifier: Apache-2.0

package health

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
)

// scrapesAtOnce bounds the cost of a misconfigured scraper.
const scrapesAtOnce = 4

// metricsMux serves MetricsAddress, by default 127.0.0.1:10249. Requests of its /healthz are
// not counted in kubeproxy_proxy_healthz_total, which counts those at HealthzAddress.
func metricsMux(c *checker, metrics *collector, opts Options) (http.Handler, error) {
	config, err := json.Marshal(opts.Config)
	if err != nil {
		return nil, fmt.Errorf("health: encode the configuration for /configz as JSON: %w", err)
	}
	registry := prometheus.NewRegistry()
	for _, col := range []prometheus.Collector{
		metrics,
		opts.Requests,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := registry.Register(col); err != nil {
			return nil, fmt.Errorf("health: register metrics: %w", err)
		}
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		// If one source cannot be read, the metrics of the others are still served.
		ErrorHandling:       promhttp.ContinueOnError,
		ErrorLog:            scrapeLog{opts.Log},
		Registry:            registry,
		MaxRequestsInFlight: scrapesAtOnce,
	}))
	mux.Handle("/healthz", plainHealthz(c))
	addDetailed(mux, c)
	mux.HandleFunc("/proxyMode", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = io.WriteString(w, ProxyMode)
	})
	mux.HandleFunc("/configz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, json.RawMessage(config))
	})
	if opts.Profiling {
		addProfiling(mux)
	}
	return mux, nil
}

// addProfiling serves /debug/pprof.
func addProfiling(mux *http.ServeMux) {
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
}

// scrapeLog logs the errors of a scrape.
type scrapeLog struct{ log *zap.Logger }

// Println implements promhttp.Logger.
func (l scrapeLog) Println(v ...any) {
	l.log.Warn("metrics are incomplete", zap.String("cause", fmt.Sprint(v...)))
}
