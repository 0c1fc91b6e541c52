// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"
)

// reportFormat changes when a field changes its meaning.
const reportFormat = 2

// Report is the result of a run: --json writes it and --compare reads it.
type Report struct {
	Format  int       `json:"format"`
	Started time.Time `json:"started"`
	// Seconds is the duration of the run.
	Seconds float64 `json:"seconds"`
	Machine Machine `json:"machine"`
	Setup   Setup   `json:"setup"`
	// Contenders are the contenders of the run's options, including those that could not run.
	Contenders  []ContenderInfo `json:"contenders"`
	NotMeasured []NotMeasured   `json:"notMeasured"`
	// Notes explain the meaning of the numbers and its limits.
	Notes          []string  `json:"notes"`
	QuantilePoints []float64 `json:"quantilePoints"`
	Series         []*Series `json:"series"`
}

// Setup is the configuration of a run.
type Setup struct {
	// API means that the contenders that watch an API server read the services from one.
	API       bool  `json:"api"`
	Services  []int `json:"services"`
	Endpoints []int `json:"endpoints"`
	Rounds    int   `json:"rounds"`
	Warmup    int   `json:"warmupRounds"`
	// Exchanges is the number of exchanges of each kind, contender and destination in a round.
	Exchanges int     `json:"exchangesPerRound"`
	Burst     float64 `json:"burstSeconds"`
	Updates   int     `json:"updates"`
	Loads     int     `json:"loads"`
}

// ContenderInfo describes a contender.
type ContenderInfo struct {
	Name string `json:"name"`
	// What describes the contender in a sentence. Version lists the versions of its parts.
	What    string `json:"what"`
	Version string `json:"version,omitempty"`
	// Missing is the reason why the contender did not take part, empty if it did.
	Missing string `json:"missing,omitempty"`
}

// NotMeasured names a measurement that a reader may expect, and why it was not made.
type NotMeasured struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// Measure is a kind of number. Series.Unit is its unit.
type Measure string

// The measures of a run.
const (
	ConnectTCP     Measure = "connect-tcp"     // µs of connect(2)
	ExchangeTCP    Measure = "exchange-tcp"    // µs of connect, request and reply
	ExchangeUDP    Measure = "exchange-udp"    // the same with a datagram in each direction
	EstablishedTCP Measure = "established-tcp" // µs of request and reply on an open connection
	RateTCP        Measure = "rate-tcp"        // connections with an exchange, a second
	Throughput     Measure = "throughput"      // Gbit/s of one connection
	CPUTCP         Measure = "cpu-tcp"         // µs of CPU per connection, whole machine
	CPUPacket      Measure = "cpu-packet"      // µs of CPU per packet of established connections, whole machine
	Update         Measure = "update"          // ms from an endpoint's change to the first connection to the new one
	Load           Measure = "load"            // ms from an empty node until all services answer
	KernelMem      Measure = "memory-kernel"
	ProcessMem     Measure = "memory-process"
)

var measureUnits = map[Measure]string{ConnectTCP: "µs", ExchangeTCP: "µs", ExchangeUDP: "µs", EstablishedTCP: "µs",
	RateTCP: "1/s", Throughput: "Gbit/s", CPUTCP: "µs", CPUPacket: "µs", Update: "ms", Load: "ms", KernelMem: "MiB",
	ProcessMem: "MiB"}

// Path is the path of connections.
type Path string

// The paths of a run. First and last are the services that were loaded first
// and last.
const (
	// From a pod to a pod of its node: to the pod's own address, or to a cluster IP.
	PathPod   Path = "pod"
	PathFirst Path = "first"
	PathLast  Path = "last"
	// From an outside client through a node to a pod of that node (near) or of another one
	// (far): routed to the pod's own address, or to a node port.
	PathNear      Path = "near-pod"
	PathNearFirst Path = "near-first"
	PathNearLast  Path = "near-last"
	PathFar       Path = "far-pod"
	PathFarFirst  Path = "far-first"
	PathFarLast   Path = "far-last"
	PathNone      Path = "" // a measure without connections
)

// limit returns the path of `direct` that a path is compared with.
func (p Path) limit() Path {
	switch p {
	case PathNear, PathNearFirst, PathNearLast:
		return PathNear
	case PathFar, PathFarFirst, PathFarLast:
		return PathFar
	}
	return PathPod
}

// Size is a number of services, and of endpoints per service.
type Size struct {
	Services  int `json:"services"`
	Endpoints int `json:"endpoints"`
}

// Sizes returns all sizes of a run.
func (s Setup) Sizes() []Size {
	var all []Size
	for _, services := range s.Services {
		for _, endpoints := range s.Endpoints {
			all = append(all, Size{services, endpoints})
		}
	}
	return all
}

// largest returns the largest number of services with the largest number of endpoints.
func (s Setup) largest() Size { return Size{slices.Max(s.Services), slices.Max(s.Endpoints)} }

// String returns for instance "1,000 services of 10 endpoints".
func (s Size) String() string {
	return fmt.Sprintf("%s services of %d endpoints", tick(float64(s.Services)), s.Endpoints)
}

// Key identifies a series.
type Key struct {
	Size
	Contender string  `json:"contender"`
	Path      Path    `json:"path,omitempty"`
	Measure   Measure `json:"measure"`
}

// Series holds one measure by round. Rounds with the same number were measured one after
// the other.
type Series struct {
	Key
	Unit   string  `json:"unit"`
	Result Result  `json:"result"`
	Rounds []Round `json:"rounds"`

	values [][]float64 // by round
}

func (s *Series) add(values []float64, errors int) {
	s.values = append(s.values, values)
	s.Rounds = append(s.Rounds, sumUp(values, errors))
}

// series returns the series of a key, and adds it if it is missing.
func (r *Report) series(k Key) *Series {
	if s := r.Find(k); s != nil {
		return s
	}
	s := &Series{Key: k, Unit: measureUnits[k.Measure]}
	r.Series = append(r.Series, s)
	return s
}

// Find returns the series of a key, nil if there is none.
func (r *Report) Find(k Key) *Series {
	if i := slices.IndexFunc(r.Series, func(s *Series) bool { return s.Key == k }); i >= 0 {
		return r.Series[i]
	}
	return nil
}

// Values returns the values of a series by round, nil for a report that was read from a
// file.
func (s *Series) Values() [][]float64 { return s.values }

// conclude computes all results.
func (r *Report) conclude() {
	for _, s := range r.Series {
		base := s.Key
		base.Contender, base.Path = nameDirect, s.Path.limit()
		s.Result = conclude(s, r.Find(base))
	}
}

// took returns the contenders that took part, in the order of the report.
func (r *Report) took() []string {
	var names []string
	for _, c := range r.Contenders {
		if c.Missing == "" {
			names = append(names, c.Name)
		}
	}
	return names
}

// Write writes the report as JSON.
func (r *Report) Write(path string) error {
	data, err := r.encode()
	if err == nil {
		err = os.WriteFile(path, data, 0o644)
	}
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// encode indents the head, and writes every series on one line: hundreds of rounds with a
// line each are unreadable.
func (r *Report) encode() ([]byte, error) {
	head := *r
	head.Series = []*Series{}
	data, err := json.MarshalIndent(head, "", "  ")
	if err != nil {
		return nil, err
	}
	data = append(data[:len(data)-len("[]\n}")], "[\n"...)
	for i, s := range r.Series {
		line, err := json.Marshal(s)
		if err != nil {
			return nil, err
		}
		data = append(append(data, "    "...), line...)
		if i < len(r.Series)-1 {
			data = append(data, ',')
		}
		data = append(data, '\n')
	}
	return append(data, "  ]\n}\n"...), nil
}

// Read reads a report that Write wrote.
func Read(path string) (*Report, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read a report: %w", err)
	}
	r := &Report{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("read the report %s: %w", path, err)
	}
	if r.Format != reportFormat {
		return nil, fmt.Errorf("the report %s has format %d, this program reads %d: run the benchmark again", path, r.Format, reportFormat)
	}
	return r, nil
}
