package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"shunt/e2e/lab"
)

// Options of Run; the zero value of a field means its default.
type Options struct {
	// Services are the numbers of services to measure at, Endpoints what each
	// service has.
	Services  []int
	Endpoints int
	// Rounds of connections; Exchanges of each kind in a round.
	Rounds, Exchanges int
	// Burst is how long a round counts connections per second.
	Burst time.Duration
	// Updates of an endpoint and Loads of everything, for each number of services.
	Updates, Loads int
	Contenders     []string
	// Progress is told what is being done, and the part of the whole that is
	// behind; nil: nobody is.
	Progress func(part float64, what string)
	// Logf gets what the lab has to say.
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
	def(&o.Endpoints, 10)
	def(&o.Rounds, 60)
	def(&o.Exchanges, 30)
	def(&o.Updates, 20)
	def(&o.Loads, 3)
	if o.Burst == 0 {
		o.Burst = 100 * time.Millisecond
	}
	if len(o.Contenders) == 0 {
		o.Contenders = Names
	}
	if o.Progress == nil {
		o.Progress = func(float64, string) {}
	}
}

// Check fills in defaults and says what makes no sense.
func (o *Options) Check() error {
	o.setDefaults()
	for _, n := range o.Services {
		if n < minServices || n > maxServices {
			return fmt.Errorf("%d services: %d to %d are possible", n, minServices, maxServices)
		}
	}
	o.Services = slices.Compact(slices.Sorted(slices.Values(o.Services)))
	if o.Endpoints < 1 || o.Endpoints > maxEndpoints {
		return fmt.Errorf("%d endpoints a service: 1 to %d are possible", o.Endpoints, maxEndpoints)
	}
	if last := o.Services[len(o.Services)-1]; last*o.Endpoints > 1<<20 {
		return fmt.Errorf("%d services of %d endpoints: at most %d endpoints in all are possible", last, o.Endpoints, 1<<20)
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
	if !slices.Contains(o.Contenders, nameDirect) {
		o.Contenders = append([]string{nameDirect}, o.Contenders...) // all ratios are to it
	}
	return nil
}

// place is a node with a contender on it.
type place struct {
	contender
	name   string
	node   *lab.Node
	client *lab.Pod
	// prober asks while an endpoint moves.
	prober       *lab.Pod
	server, next *lab.Pod
	// old and new count what each end of the move answered.
	servers map[netip.Addr]*lab.Server
}

// runner is one run.
type runner struct {
	Options
	report *Report
	lab    *lab.Lab
	cpus   unix.CPUSet // that this process may use
	places []*place
	done   float64 // work behind, of total
	total  float64
}

// Run makes a lab, measures every contender in it, and removes it. With an
// error the report is of no use; context.Canceled says that all was removed.
func Run(ctx context.Context, o Options) (_ *Report, err error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	r := &runner{Options: o, report: &Report{Format: reportFormat, Started: time.Now(), QuantilePoints: quantilePoints}}
	r.report.Setup = Setup{Services: o.Services, Endpoints: o.Endpoints, Rounds: o.Rounds, Warmup: r.warmup(),
		Exchanges: o.Exchanges, Burst: o.Burst.Seconds(), Updates: o.Updates, Loads: o.Loads}
	if r.report.Machine, err = readMachine(); err != nil {
		return nil, err
	}
	if err := unix.SchedGetaffinity(0, &r.cpus); err != nil {
		return nil, fmt.Errorf("find out which CPUs may be used: %w", err)
	}
	if r.lab, err = lab.New(ctx, lab.Options{Logf: o.Logf}); err != nil {
		return nil, fmt.Errorf("make nodes and pods: %w", err)
	}
	defer func() {
		closeErr := r.lab.Close()
		switch {
		case ctx.Err() == nil:
			err = errors.Join(err, closeErr)
		case closeErr == nil: // whatever failed did so since its processes were ended
			err = ctx.Err()
		default:
			err = fmt.Errorf("interrupted, and not all was removed: %w", closeErr)
		}
	}()
	if err := r.makePlaces(); err != nil {
		return nil, err
	}
	r.plan()
	for _, n := range o.Services {
		if err := r.measure(ctx, n); err != nil {
			return nil, fmt.Errorf("with %d services: %w", n, err)
		}
	}
	r.report.explain()
	r.report.conclude()
	r.report.Seconds = time.Since(r.report.Started).Seconds()
	o.Progress(1, "done")
	return r.report, nil
}

// warmup rounds come before those that count.
func (o *Options) warmup() int { return max(1, o.Rounds/10) }

// makePlaces makes a node for each contender, all of one shape, and drops those
// that can't run here.
func (r *runner) makePlaces() error {
	for _, name := range Names {
		if !slices.Contains(r.Contenders, name) {
			continue
		}
		p := &place{name: name, servers: map[netip.Addr]*lab.Server{}}
		p.node = r.lab.Node(name)
		if err := r.lab.Err(); err != nil {
			return fmt.Errorf("make nodes and pods: %w", err)
		}
		var info ContenderInfo
		p.contender, info = newContender(name, p.node)
		r.report.Contenders = append(r.report.Contenders, info)
		if p.contender == nil {
			continue
		}
		p.server, p.next = p.node.Pod("server"), p.node.Pod("next")
		p.client, p.prober = p.node.Pod("client"), p.node.Pod("prober")
		for e := 1; e < r.Endpoints; e++ {
			p.server.AddAddr(endpoint(p.server.Addr4(), e))
		}
		p.server.Serve("udp4", backendPort)
		p.servers[p.server.Addr4()] = p.server.Serve("tcp4", backendPort)
		p.servers[p.next.Addr4()] = p.next.Serve("tcp4", backendPort)
		if err := r.lab.Err(); err != nil {
			return fmt.Errorf("make nodes and pods: %w", err)
		}
		r.places = append(r.places, p)
	}
	return nil
}

// Costs of the parts of a run beside a round of one destination, as guessed for
// the progress bar.
const (
	loadCost   = 5.0
	updateCost = 0.5
)

// loadBudget is the time after which a contender is not loaded once more for a
// number of services: the report's counts say how often it was.
const loadBudget = 30 * time.Second

func (r *runner) plan() {
	for _, n := range r.Services {
		loaders := float64(len(r.places) - 1)
		r.total += loaders * loadCost * float64(r.Loads) * max(1, float64(n)/1000)
		r.total += loaders * updateCost * float64(r.Updates) * max(1, float64(n)/3000)
		r.total += float64(len(r.targets(n)) * (r.Rounds + r.warmup()))
	}
}

func (r *runner) progress(cost float64, format string, args ...any) {
	r.done += cost
	r.Progress(min(r.done/r.total, 1), fmt.Sprintf(format, args...))
}

// measure does everything for one number of services.
func (r *runner) measure(ctx context.Context, n int) error {
	loads := map[*place]*workload{}
	for _, p := range r.places {
		loads[p] = &workload{Services: n, Endpoints: r.Endpoints, Server: p.server.Addr4(), Next: p.next.Addr4()}
	}
	spent := map[*place]time.Duration{}
	for i := range r.Loads {
		for _, p := range r.places {
			if spent[p] > loadBudget {
				r.progress(loadCost*max(1, float64(n)/1000), "%d services: enough loads of %s", n, p.name)
				continue
			}
			start := time.Now()
			if i > 0 {
				if err := p.unload(ctx); err != nil {
					return fmt.Errorf("%s: unload: %w", p.name, err)
				}
			}
			if err := r.measureLoad(ctx, p, loads[p]); err != nil {
				return fmt.Errorf("%s: load: %w", p.name, err)
			}
			spent[p] += time.Since(start)
		}
	}
	if err := r.measureConnections(ctx, n); err != nil {
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

// measureLoad puts everything into effect, and proves by connections to the
// first and the last service that it is.
func (r *runner) measureLoad(ctx context.Context, p *place, w *workload) error {
	do, err := p.load(ctx, w)
	if err != nil || do == nil {
		return err
	}
	before, err := kernelMemory()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := do(ctx); err != nil {
		return err
	}
	took := time.Since(start)
	after, err := kernelMemory()
	if err != nil {
		return err
	}
	for _, i := range []int{0, w.moving(), w.Services - 1} {
		a := p.client.Ask("tcp4", netip.AddrPortFrom(clusterIP(i), servicePort))
		if a.Err != nil {
			return fmt.Errorf("service %d of %d does not answer: %w", i+1, w.Services, a.Err)
		}
	}
	own, err := p.memory()
	if err != nil {
		return err
	}
	key := Key{Services: w.Services, Contender: p.name}
	put := func(m Measure, v float64) {
		key.Measure = m
		r.report.series(key).add([]float64{v}, 0)
	}
	put(Load, took.Seconds()*1e3)
	if own.kernel < 0 {
		own.kernel = after - before
	}
	put(KernelMem, own.kernel)
	if own.process >= 0 {
		put(ProcessMem, own.process)
	}
	r.progress(loadCost*max(1, float64(w.Services)/1000), "%d services: load %s", w.Services, p.name)
	return nil
}
