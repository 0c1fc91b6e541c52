// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"shunt/lab"
)

// Options of Run; the zero value of a field means its default.
type Options struct {
	// Services are the numbers of services to measure at, each with every number of
	// endpoints per service in Endpoints.
	Services  []int
	Endpoints []int
	// Rounds of connections, and Exchanges of each kind in a round.
	Rounds, Exchanges int
	// Burst is how long each round counts connections per second.
	Burst time.Duration
	// Updates of an endpoint and Loads of everything, for each number of services.
	Updates, Loads int
	Contenders     []string
	// Kubeconfig leads to an API server, for contenders that watch one. KubeProxy is
	// kube-proxy's program. If empty, those contenders do not take part.
	Kubeconfig, KubeProxy string
	// KeepObjects leaves the services in the API server, for one that ends with the run.
	KeepObjects bool
	// Progress receives what is being done and the part of the run that is done (0 to 1).
	// It may be nil.
	Progress func(part float64, what string)
	// Logf receives the log of the lab.
	Logf func(format string, args ...any)
}

func (o *Options) setDefaults() {
	def := func(field *int, value int) {
		if *field == 0 {
			*field = value
		}
	}
	if len(o.Services) == 0 {
		o.Services = []int{10, 1000, 10_000}
	}
	if len(o.Endpoints) == 0 {
		o.Endpoints = []int{10}
	}
	def(&o.Rounds, 40)
	def(&o.Exchanges, 30)
	def(&o.Updates, 20)
	def(&o.Loads, 3)
	if o.Burst == 0 {
		o.Burst = 100 * time.Millisecond
	}
	if len(o.Contenders) == 0 {
		o.Contenders = Defaults(o.Kubeconfig != "")
	}
	if o.Progress == nil {
		o.Progress = func(float64, string) {}
	}
}

// Check fills in defaults and returns an error for impossible values.
func (o *Options) Check() error {
	o.setDefaults()
	for _, n := range o.Services {
		if n < minServices || n > maxServices {
			return fmt.Errorf("%d services: %d to %d are possible", n, minServices, maxServices)
		}
	}
	o.Services = slices.Compact(slices.Sorted(slices.Values(o.Services)))
	for _, n := range o.Endpoints {
		if n < 1 || n > maxEndpoints {
			return fmt.Errorf("%d endpoints a service: 1 to %d are possible", n, maxEndpoints)
		}
	}
	o.Endpoints = slices.Compact(slices.Sorted(slices.Values(o.Endpoints)))
	if last := o.setup().largest(); last.Services*last.Endpoints > 1<<20 {
		return fmt.Errorf("%v: at most %d endpoints in all are possible", last, 1<<20)
	}
	for name, n := range map[string]int{"rounds": o.Rounds, "exchanges": o.Exchanges, "updates": o.Updates, "loads": o.Loads} {
		if n < 1 || n > 100_000 {
			return fmt.Errorf("%d %s: 1 to 100000 are possible", n, name)
		}
	}
	for _, name := range o.Contenders {
		if !slices.Contains(Names, name) {
			return fmt.Errorf("no contender is called %q: there are %v", name, Names)
		}
	}
	if o.KubeProxy != "" && o.Kubeconfig == "" {
		return errors.New("a kube-proxy without an API server: give --kubeconfig too (`make bench` starts one)")
	}
	if !slices.Contains(o.Contenders, nameDirect) {
		o.Contenders = append([]string{nameDirect}, o.Contenders...) // all ratios are relative to it
	}
	return nil
}

// setup returns the options as the report has them.
func (o *Options) setup() Setup {
	return Setup{API: slices.ContainsFunc(o.Contenders, needsAPI) && o.Kubeconfig != "", Services: o.Services, Endpoints: o.Endpoints,
		Rounds: o.Rounds, Warmup: o.warmup(), Exchanges: o.Exchanges, Burst: o.Burst.Seconds(), Updates: o.Updates, Loads: o.Loads}
}

// runner is one run.
type runner struct {
	Options
	report *Report
	lab    *lab.Lab
	api    *apiServer  // nil: no contender watches an API server
	cpus   unix.CPUSet // that this process may use
	places []*place
	out    outside
	done   float64 // work done, of total
	total  float64
}

// Run creates a lab, measures every contender in it, and removes the lab. With an error the
// report is not valid. The error context.Canceled means that the run was interrupted and
// everything was removed.
func Run(ctx context.Context, o Options) (_ *Report, err error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	r := &runner{Options: o, report: &Report{Format: reportFormat, Started: time.Now(), QuantilePoints: quantilePoints}}
	r.report.Setup = o.setup()
	if r.report.Machine, err = readMachine(); err != nil {
		return nil, err
	}
	if err := unix.SchedGetaffinity(0, &r.cpus); err != nil {
		return nil, fmt.Errorf("find out which CPUs may be used: %w", err)
	}
	if r.report.Setup.API {
		if r.api, err = openAPI(o.Kubeconfig); err != nil {
			return nil, err
		}
		if err := r.api.prepare(ctx); err != nil {
			return nil, err
		}
		if !o.KeepObjects {
			defer func() { err = afterwards(ctx, err, r.api.leave(ctx)) }()
		}
	}
	if r.lab, err = lab.New(ctx, lab.Options{Logf: o.Logf}); err != nil {
		return nil, fmt.Errorf("make nodes and pods: %w", err)
	}
	defer func() { err = afterwards(ctx, err, r.lab.Close()) }()
	if err := r.makePlaces(); err != nil {
		return nil, err
	}
	defer r.closePlaces()
	r.plan()
	for _, size := range r.report.Setup.Sizes() {
		if err := r.measure(ctx, size); err != nil {
			return nil, fmt.Errorf("with %v: %w", size, err)
		}
	}
	r.report.explain()
	r.report.conclude()
	r.report.Seconds = time.Since(r.report.Started).Seconds()
	o.Progress(1, "done")
	return r.report, nil
}

var errNotRemoved = errors.New("interrupted, and not all was removed")

// afterwards joins the error of a run with that of its clean-up.
func afterwards(ctx context.Context, err, cleanUp error) error {
	switch {
	case ctx.Err() == nil:
		return errors.Join(err, cleanUp)
	case cleanUp != nil:
		return fmt.Errorf("%w: %w", errNotRemoved, cleanUp)
	case errors.Is(err, errNotRemoved):
		return err
	}
	return ctx.Err() // an interrupt ended the processes: other errors follow from that
}

// warmup returns the number of warm-up rounds, which are not in the report.
func (o *Options) warmup() int { return max(1, o.Rounds/10) }

// Estimated costs of the parts of a run, for the progress bar. The unit is a round of one
// destination.
const (
	loadCost   = 5.0
	updateCost = 0.5
	fillCost   = 10.0
)

// weight returns the factor by which costs grow with a size: 1 for a thousand services of
// ten endpoints, and never less.
func (s Size) weight() float64 { return max(1, float64(s.Services*(s.Endpoints+10))/20_000) }

// plan adds up the work to do.
func (r *runner) plan() {
	for _, size := range r.report.Setup.Sizes() {
		loaders := float64(len(r.places) - 1)
		r.total += loaders * loadCost * float64(r.Loads) * size.weight()
		r.total += loaders * updateCost * float64(r.Updates) * size.weight()
		r.total += float64(len(r.targets(size)) * (r.Rounds + r.warmup()))
		if r.api != nil {
			r.total += fillCost * size.weight()
		}
	}
}

func (r *runner) progress(cost float64, format string, args ...any) {
	r.done += cost
	r.Progress(min(r.done/r.total, 1), fmt.Sprintf(format, args...))
}

// measure runs all measurements at one size.
func (r *runner) measure(ctx context.Context, size Size) error {
	w := workload{Size: size, Far: r.out.server.Addr4()}
	loads := map[*place]*workload{}
	inAPI := w // one for all that watch the API server
	for _, p := range r.places {
		own := w
		loads[p] = &own
		if needsAPI(p.name) {
			loads[p] = &inAPI
		}
	}
	if r.api != nil {
		cost := fillCost * size.weight() / float64(size.Services)
		done := func(i int) { r.progress(cost, "%v: API objects of service %d", size, i+1) }
		if err := r.api.fill(ctx, &inAPI, done); err != nil {
			return err
		}
	}
	if err := r.loadAll(ctx, size, loads); err != nil {
		return err
	}
	if err := r.measureConnections(ctx, size); err != nil {
		return err
	}
	if err := r.measureUpdates(ctx, loads); err != nil {
		return err
	}
	for _, p := range r.places {
		if err := p.unload(ctx); err != nil {
			return fmt.Errorf("%s: unload: %w", p.name, err)
		}
	}
	return nil
}
