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

// Report is what a run found: what --json writes and --compare reads.
type Report struct {
	Format  int       `json:"format"`
	Started time.Time `json:"started"`
	// Seconds that the run took.
	Seconds float64 `json:"seconds"`
	Machine Machine `json:"machine"`
	Setup   Setup   `json:"setup"`
	// Contenders holds all that were asked for, also those that could not run.
	Contenders  []ContenderInfo `json:"contenders"`
	NotMeasured []NotMeasured   `json:"notMeasured"`
	// Notes say what numbers mean and what they don't.
	Notes          []string  `json:"notes"`
	QuantilePoints []float64 `json:"quantilePoints"`
	Series         []*Series `json:"series"`
}

// Setup is what the run was asked for.
type Setup struct {
	// API: services came from an API server, for the contenders that watch one.
	API       bool  `json:"api"`
	Services  []int `json:"services"`
	Endpoints []int `json:"endpoints"`
	Rounds    int   `json:"rounds"`
	Warmup    int   `json:"warmupRounds"`
	// Exchanges of each kind, contender and destination in a round.
	Exchanges int     `json:"exchangesPerRound"`
	Burst     float64 `json:"burstSeconds"`
	Updates   int     `json:"updates"`
	Loads     int     `json:"loads"`
}

// ContenderInfo says who took part.
type ContenderInfo struct {
	Name string `json:"name"`
	// What it is here, in a sentence; Version of its parts.
	What    string `json:"what"`
	Version string `json:"version,omitempty"`
	// Missing is why it did not take part; empty: it did.
	Missing string `json:"missing,omitempty"`
}

// NotMeasured names what a reader may look for.
type NotMeasured struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// Measure is a kind of number; see its Unit.
type Measure string

// The measures of a run.
const (
	ConnectTCP     Measure = "connect-tcp"     // µs of connect(2)
	ExchangeTCP    Measure = "exchange-tcp"    // µs of connect, request and reply
	ExchangeUDP    Measure = "exchange-udp"    // the same with a datagram each way
	EstablishedTCP Measure = "established-tcp" // µs of request and reply on a connection that is there
	RateTCP        Measure = "rate-tcp"        // connections with an exchange, a second
	Throughput     Measure = "throughput"      // Gbit/s of one connection
	CPUTCP         Measure = "cpu-tcp"         // µs of CPU a connection, whole machine
	CPUPacket      Measure = "cpu-packet"      // µs of CPU a packet of established connections, whole machine
	Update         Measure = "update"          // ms from a changed endpoint to the first connection
	Load           Measure = "load"            // ms from nothing to all services answering
	KernelMem      Measure = "memory-kernel"
	ProcessMem     Measure = "memory-process"
)

var measureUnits = map[Measure]string{ConnectTCP: "µs", ExchangeTCP: "µs", ExchangeUDP: "µs", EstablishedTCP: "µs",
	RateTCP: "1/s", Throughput: "Gbit/s", CPUTCP: "µs", CPUPacket: "µs", Update: "ms", Load: "ms", KernelMem: "MiB",
	ProcessMem: "MiB"}

// Path is where connections go.
type Path string

// The paths of a run. First and last are the services that were loaded first
// and last.
const (
	// From a pod to a pod of its node: by the pod's own address, or by cluster IP.
	PathPod   Path = "pod"
	PathFirst Path = "first"
	PathLast  Path = "last"
	// From a client outside through a node to a pod of it (near), or of another
	// node (far): routed to the pod's own address, or by node port.
	PathNear      Path = "near-pod"
	PathNearFirst Path = "near-first"
	PathNearLast  Path = "near-last"
	PathFar       Path = "far-pod"
	PathFarFirst  Path = "far-first"
	PathFarLast   Path = "far-last"
	PathNone      Path = "" // no connection is meant
)

// limit gives the path of `direct` that a path is compared with.
func (p Path) limit() Path {
	switch p {
	case PathNear, PathNearFirst, PathNearLast:
		return PathNear
	case PathFar, PathFarFirst, PathFarLast:
		return PathFar
	}
	return PathPod
}

// Size is what is measured at: so many services of so many endpoints each.
type Size struct {
	Services  int `json:"services"`
	Endpoints int `json:"endpoints"`
}

// Sizes are all that a run measures at.
func (s Setup) Sizes() []Size {
	var all []Size
	for _, services := range s.Services {
		for _, endpoints := range s.Endpoints {
			all = append(all, Size{services, endpoints})
		}
	}
	return all
}

// largest of them.
func (s Setup) largest() Size { return Size{slices.Max(s.Services), slices.Max(s.Endpoints)} }

// String gives "1,000 services of 10 endpoints".
func (s Size) String() string {
	return fmt.Sprintf("%s services of %d endpoints", tick(float64(s.Services)), s.Endpoints)
}

// Key tells a series from the others.
type Key struct {
	Size
	Contender string  `json:"contender"`
	Path      Path    `json:"path,omitempty"`
	Measure   Measure `json:"measure"`
}

// Series is one measure, by rounds. Rounds of one number belong together: they
// were measured one after the other.
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

// series gives that of a key, made if missing.
func (r *Report) series(k Key) *Series {
	if s := r.Find(k); s != nil {
		return s
	}
	s := &Series{Key: k, Unit: measureUnits[k.Measure]}
	r.Series = append(r.Series, s)
	return s
}

// Find gives the series of a key, nil where there is none.
func (r *Report) Find(k Key) *Series {
	if i := slices.IndexFunc(r.Series, func(s *Series) bool { return s.Key == k }); i >= 0 {
		return r.Series[i]
	}
	return nil
}

// Values gives what a series was made of, by round; nil once it was read from
// a file.
func (s *Series) Values() [][]float64 { return s.values }

// conclude fills in all results.
func (r *Report) conclude() {
	for _, s := range r.Series {
		base := s.Key
		base.Contender, base.Path = nameDirect, s.Path.limit()
		s.Result = conclude(s, r.Find(base))
	}
}

// took says which contenders took part, in the order of the report.
func (r *Report) took() []string {
	var names []string
	for _, c := range r.Contenders {
		if c.Missing == "" {
			names = append(names, c.Name)
		}
	}
	return names
}

// Write writes the report as JSON: a line for each series.
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

// encode indents the head, and gives every series one line: hundreds of rounds
// on a line each are for nobody.
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
