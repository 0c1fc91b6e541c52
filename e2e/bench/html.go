package bench

import (
	"bytes"
	_ "embed" // the page
	"fmt"
	"html/template"
	"math"
	"os"
	"slices"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))

// figure is a plot with what it says.
type figure struct {
	Title, Text string
	SVG         template.HTML
}

// tile is a contender in one look.
type tile struct {
	Name, Class, Ratio, Exchange, Update, Memory string
}

// WriteHTML writes the report as one page that needs nothing else.
func (r *Report) WriteHTML(path string) error {
	var b bytes.Buffer
	last := slices.Max(r.Setup.Services)
	data := map[string]any{
		"R": r, "Started": r.Started.UTC().Format("2 January 2006, 15:04 UTC"),
		"Services": tick(float64(last)), "Tiles": r.tiles(last), "Figures": r.figures(last),
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

// worst is the path that shows a contender at its worst.
func worst(name string) Path {
	if name == nameDirect {
		return PathPod
	}
	return PathLast
}

func (r *Report) tiles(n int) []tile {
	var all []tile
	for _, name := range r.took() {
		t := tile{Name: name, Class: "c-" + name, Ratio: "1", Exchange: "-", Update: "-", Memory: "-"}
		if s := r.Find(Key{n, name, worst(name), ExchangeTCP}); s != nil {
			t.Exchange = number(s.Result.P50) + " µs"
			if iv := s.Result.Ratio; iv != nil {
				t.Ratio = iv.String()
			}
		}
		if s := r.Find(Key{Services: n, Contender: name, Measure: Update}); s != nil {
			t.Update = number(s.Result.P50) + " ms"
		}
		if s := r.Find(Key{Services: n, Contender: name, Measure: KernelMem}); s != nil {
			t.Memory = mebibytes(s)
		}
		all = append(all, t)
	}
	return all
}

func (r *Report) figures(n int) []figure {
	var all []figure
	add := func(title, text string, p plot) {
		p.title = title
		if svg := p.svg(); svg != "" {
			// Drawn here, with every text escaped.
			all = append(all, figure{title, text, template.HTML(svg)})
		}
	}
	add("A connection with request and reply",
		"Median over TCP, to the service loaded last; direct: to the pod on a node without rules. Lower is better; a flat "+
			"line does not care how many services there are.",
		r.growth(ExchangeTCP, "µs", false))
	add("connect() alone", "Median, to the service loaded last.", r.growth(ConnectTCP, "µs", false))
	add(fmt.Sprintf("Distribution at %s services", tick(float64(n))),
		"How long a part of all exchanges took at most, over TCP, to the service loaded last. Lower is better; nothing is "+
			"left out.", r.distributionPlot(n))
	add("A request and reply over UDP", "Median with a new socket, to the service loaded last.", r.growth(ExchangeUDP, "µs", false))
	add("A changed endpoint", "From the change to the first connection that reaches the new endpoint: median and its "+
		"interval. No watcher and no API server is in it.",
		r.growth(Update, "ms", true))
	add("Everything from nothing", "Until all services are in effect.", r.growth(Load, "ms", true))
	add("Kernel memory", "shunt: its maps, made for more services than there are; the others: growth of the kernel's memory "+
		"while loading.",
		r.growth(KernelMem, "MiB", true))
	add("CPU of a connection", "Of the whole machine, to the service loaded last; whoever else works there is in "+
		"it.", r.growth(CPUTCP, "µs", false))
	return all
}

// growth shows a measure against the number of services.
func (r *Report) growth(m Measure, unit string, yLog bool) plot {
	p := plot{x: "services (log)", y: unit, xLog: true, yLog: yLog}
	if yLog {
		p.y += " (log)"
	}
	for _, n := range r.Setup.Services {
		p.xTicks = append(p.xTicks, float64(n))
	}
	for _, name := range r.took() {
		l := line{name: name, class: "c-" + name, dashed: name == nameDirect}
		for _, n := range r.Setup.Services {
			k := Key{Services: n, Contender: name, Path: worst(name), Measure: m}
			if m == Update || m == Load || m == KernelMem {
				k.Path = PathNone
			}
			s := r.Find(k)
			if s == nil || s.Result.N == 0 || yLog && s.Result.Rounds.Value <= 0 {
				continue
			}
			iv := s.Result.Rounds
			if yLog {
				iv.Low = math.Max(iv.Low, iv.Value/10) // a logarithm has no 0
			}
			l.points = append(l.points, point{float64(n), iv.Value, iv.Low, iv.High})
		}
		p.lines = append(p.lines, l)
	}
	return p
}

// distributionPlot shows quantiles, spread so that the tail can be seen.
func (r *Report) distributionPlot(n int) plot {
	p := plot{x: "percentile", y: "µs (log)", yLog: true}
	for _, name := range r.took() {
		s := r.Find(Key{n, name, worst(name), ExchangeTCP})
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

// pageTable is the table of one number of services.
type pageTable struct {
	Services string
	Rows     [][]string
}

func (r *Report) tables() []pageTable {
	var all []pageTable
	for _, n := range r.Setup.Services {
		t := pageTable{Services: tick(float64(n))}
		for _, row := range r.rows(n) {
			cells := []string{row.Contender, row.Path.words()}
			for _, m := range []Measure{ConnectTCP, ExchangeTCP, ExchangeUDP} {
				row.Measure = m
				s := r.Find(row)
				if s == nil {
					cells = append(cells, "-", "-", "-")
					continue
				}
				cells = append(cells, number(s.Result.P50), number(s.Result.P99), s.Result.Ratio.String())
			}
			for _, m := range []Measure{RateTCP, CPUTCP} {
				row.Measure = m
				cells = append(cells, number(value(r.Find(row))))
			}
			t.Rows = append(t.Rows, cells)
		}
		all = append(all, t)
	}
	return all
}
