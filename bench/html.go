// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	_ "embed" // the page
	"fmt"
	"html/template"
	"math"
	"os"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))

// figure is a plot with its title and text.
type figure struct {
	Title, Text string
	SVG         template.HTML
}

// tile summarizes a contender.
type tile struct {
	Name, Class, Ratio string
	Facts              [][2]string
}

// WriteHTML writes the report as one self-contained page.
func (r *Report) WriteHTML(path string) error {
	var b bytes.Buffer
	last := r.Setup.largest()
	data := map[string]any{
		"R": r, "Started": r.Started.UTC().Format("2 January 2006, 15:04 UTC"),
		"Largest": last, "Tiles": r.tiles(last), "Figures": r.figures(last),
		"Tables": r.tables(), "Errors": r.errors(),
	}
	err := page.Execute(&b, data)
	if err == nil {
		err = os.WriteFile(path, b.Bytes(), 0o644)
	}
	if err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	return nil
}

// kind is a kind of path: last is a contender's worst case, limit the path of direct.
type kind struct {
	last, limit Path
}

var (
	clusterIPs   = kind{PathLast, PathPod}
	farNodePorts = kind{PathFarLast, PathFar}
)

// of returns the path of a contender.
func (k kind) of(name string) Path {
	if name == nameDirect {
		return k.limit
	}
	return k.last
}

func (r *Report) tiles(size Size) []tile {
	var all []tile
	for _, name := range r.took() {
		t := tile{Name: name, Class: "c-" + name, Ratio: "1"}
		one := func(path Path, m Measure) *Series { return r.Find(Key{size, name, path, m}) }
		add := func(what, text string, s *Series) {
			if s == nil || s.Result.N == 0 {
				text = "–"
			}
			t.Facts = append(t.Facts, [2]string{what, text})
		}
		s := one(clusterIPs.of(name), ExchangeTCP)
		if s != nil && s.Result.Ratio != nil {
			t.Ratio = s.Result.Ratio.String()
		}
		add("by cluster IP", number(median50(s))+" µs", s)
		s = one(farNodePorts.of(name), ExchangeTCP)
		add("by node port", number(median50(s))+" µs", s)
		s = one(farNodePorts.of(name), RateTCP)
		add("by node port, a second", number(value(s)), s)
		s = one(PathNone, Update)
		add("changed endpoint", number(median50(s))+" ms", s)
		s = one(PathNone, Load)
		add("start", number(value(s))+" ms", s)
		s = one(PathNone, KernelMem)
		add("kernel memory", mebibytes(s), s)
		all = append(all, t)
	}
	return all
}

func median50(s *Series) float64 {
	if s == nil {
		return math.NaN()
	}
	return s.Result.P50
}

func (r *Report) figures(size Size) []figure {
	var all []figure
	add := func(title, text string, p plot) {
		p.title = title
		if svg := p.svg(); svg != "" {
			// svg made this markup, and it escapes every text.
			all = append(all, figure{title, text, template.HTML(svg)})
		}
	}
	x := r.Setup.byServices()
	change, start := "From the change to the first connection that reaches the new endpoint: median and its interval. ",
		"Until all services answer. "
	if r.Setup.API {
		change += "The change is written to the API server."
		start += "From the start of the process; it takes all from the API server."
	} else {
		change += "No watcher and no API server is in it."
		start += "The text of the rules was written before."
	}
	add("A connection to a cluster IP, with request and reply", "Median over TCP from a pod, to the service loaded last; direct: to "+
		"the pod on a node without rules. Lower is better; a flat line does not care how many services there are.",
		r.growth(x, ExchangeTCP, clusterIPs, "µs", false))
	add("The same through a node port", "From outside, to a pod of another node; direct: routed through a node without rules.",
		r.growth(x, ExchangeTCP, farNodePorts, "µs", false))
	add(fmt.Sprintf("Distribution at %s services", tick(float64(size.Services))),
		"How long a part of all exchanges with a cluster IP took at most. Lower is better; nothing is left out.",
		r.distributionPlot(size, clusterIPs))
	add("A changed endpoint", change, r.growth(x, Update, kind{}, "ms", true))
	add("Start", start, r.growth(x, Load, kind{}, "ms", true))
	add("Kernel memory", "shunt: its maps, made for more services than there are; the others: growth of the kernel's memory while "+
		"loading.", r.growth(x, KernelMem, kind{}, "MiB", true))
	add("Connections a second through a node port", "With a thread for each CPU, to a pod of another node. Higher is better.",
		r.growth(x, RateTCP, farNodePorts, "1/s", false))
	add("CPU of a connection through a node port", "Of the whole machine: the work of other processes is part of it.",
		r.growth(x, CPUTCP, farNodePorts, "µs", false))
	add("connect() alone, to a cluster IP", "Median, to the service loaded last.", r.growth(x, ConnectTCP, clusterIPs, "µs", false))
	add("A request and reply over UDP, to a cluster IP", "Median with a new socket, to the service loaded last.",
		r.growth(x, ExchangeUDP, clusterIPs, "µs", false))
	if len(r.Setup.Endpoints) > 1 {
		x = r.Setup.byEndpoints()
		add("A connection to a cluster IP, by endpoints", fmt.Sprintf("At %s services.", tick(float64(size.Services))),
			r.growth(x, ExchangeTCP, clusterIPs, "µs", false))
		add("A changed endpoint, by endpoints", "The service that changes has one, the others as many as that.",
			r.growth(x, Update, kind{}, "ms", true))
		add("Start, by endpoints", "Until all services answer.", r.growth(x, Load, kind{}, "ms", true))
		add("Kernel memory, by endpoints", "As above.", r.growth(x, KernelMem, kind{}, "MiB", true))
	}
	return all
}

// axis is a sequence of sizes in which one number grows.
type axis struct {
	name  string
	sizes []Size
	at    func(Size) float64
}

func (s Setup) byServices() axis {
	a := axis{name: "services (log)", at: func(s Size) float64 { return float64(s.Services) }}
	for _, n := range s.Services {
		a.sizes = append(a.sizes, Size{n, s.largest().Endpoints})
	}
	return a
}

func (s Setup) byEndpoints() axis {
	a := axis{name: "endpoints of a service (log)", at: func(s Size) float64 { return float64(s.Endpoints) }}
	for _, n := range s.Endpoints {
		a.sizes = append(a.sizes, Size{s.largest().Services, n})
	}
	return a
}

// growth plots a measure over growing sizes.
func (r *Report) growth(a axis, m Measure, of kind, unit string, yLog bool) plot {
	p := plot{x: a.name, y: unit, xLog: true, yLog: yLog}
	if yLog {
		p.y += " (log)"
	}
	for _, size := range a.sizes {
		p.xTicks = append(p.xTicks, a.at(size))
	}
	for _, name := range r.took() {
		l := line{name: name, class: "c-" + name, dashed: name == nameDirect}
		for _, size := range a.sizes {
			s := r.Find(Key{size, name, of.of(name), m})
			if s == nil || s.Result.N == 0 || yLog && s.Result.Rounds.Value <= 0 {
				continue
			}
			iv := s.Result.Rounds
			if yLog {
				iv.Low = math.Max(iv.Low, iv.Value/10) // a logarithmic axis has no 0
			}
			l.points = append(l.points, point{a.at(size), iv.Value, iv.Low, iv.High})
		}
		p.lines = append(p.lines, l)
	}
	return p
}

// distributionPlot plots quantiles, spread so that the tail can be seen.
func (r *Report) distributionPlot(size Size, of kind) plot {
	p := plot{x: "percentile", y: "µs (log)", yLog: true}
	for _, name := range r.took() {
		s := r.Find(Key{size, name, of.of(name), ExchangeTCP})
		if s == nil {
			continue
		}
		l := line{name: name, class: "c-" + name, dashed: name == nameDirect}
		for i, v := range s.Result.Distribution {
			if q := r.QuantilePoints[i]; q >= 0.01 && q <= 0.99 {
				l.points = append(l.points, point{x: q * 100, y: v})
			}
		}
		p.lines = append(p.lines, l)
	}
	p.xTicks = []float64{1, 10, 25, 50, 75, 90, 99}
	return p
}

// pageTable holds the tables of one size.
type pageTable struct {
	Size  Size
	Grids []grid
}

func (r *Report) tables() []pageTable {
	var all []pageTable
	for _, size := range r.Setup.Sizes() {
		all = append(all, pageTable{size, r.grids(size)})
	}
	return all
}
