// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// plot is a picture with lines. The page's style has the colours by class.
type plot struct {
	title, x, y string // y in the units of the axis
	xLog, yLog  bool
	xTicks      []float64 // nil: chosen
	lines       []line
}

// line is a series of points, in the colour of a contender.
type line struct {
	name, class string
	dashed      bool
	points      []point
}

// point has an interval around y if low < high.
type point struct{ x, y, low, high float64 }

// Dimensions of a picture, in its own units.
const (
	plotWidth, plotHeight   = 580.0, 320.0
	plotLeft, plotRight     = 62.0, 152.0
	plotTop, plotBottom     = 26.0, 46.0
	labelHeight, tickLength = 15.0, 5.0
)

// scale maps values to a picture's coordinates.
type scale struct {
	log      bool
	min, max float64
	from, to float64
	ticks    []float64
}

func (s *scale) at(v float64) float64 {
	lo, hi := s.min, s.max
	if s.log {
		lo, hi, v = math.Log(lo), math.Log(hi), math.Log(math.Max(v, s.min))
	}
	if hi == lo {
		return (s.from + s.to) / 2
	}
	return s.from + (v-lo)/(hi-lo)*(s.to-s.from)
}

// newScale returns a scale that covers all values with room at both ends, and chooses its
// ticks: powers of ten with others between, or multiples of 1, 2 or 5.
func newScale(log bool, values []float64, from, to float64) scale {
	s := scale{log: log, min: slices.Min(values), max: slices.Max(values), from: from, to: to}
	if log {
		s.min, s.max = s.min/1.15, s.max*1.15
		for e := math.Floor(math.Log10(s.min)); e <= math.Ceil(math.Log10(s.max)); e++ {
			for _, m := range mantissas(s.max / s.min) {
				if v := m * math.Pow(10, e); v >= s.min && v <= s.max {
					s.ticks = append(s.ticks, v)
				}
			}
		}
		return s
	}
	s.min, s.max = math.Min(0, s.min), s.max*1.08
	step := math.Pow(10, math.Floor(math.Log10((s.max-s.min)/4)))
	for _, m := range []float64{1, 2, 5, 10} {
		if (s.max-s.min)/(step*m) <= 6 {
			step *= m
			break
		}
	}
	for v := math.Ceil(s.min/step) * step; v <= s.max; v += step {
		s.ticks = append(s.ticks, v)
	}
	return s
}

// mantissas returns the mantissas of ticks on a logarithmic scale whose end divided by its
// beginning is width.
func mantissas(width float64) []float64 {
	switch {
	case width > 300:
		return []float64{1}
	case width < 8:
		return []float64{1, 1.5, 2, 3, 4, 5, 7}
	}
	return []float64{1, 2, 5}
}

// svg draws the plot. It returns an empty string for a plot without points.
func (p *plot) svg() string {
	var xs, ys []float64
	for _, l := range p.lines {
		for _, pt := range l.points {
			xs, ys = append(xs, pt.x), append(ys, pt.y)
		}
	}
	if len(xs) == 0 {
		return ""
	}
	// The range covers intervals up to twice the highest point and down to half the lowest:
	// a wider interval is cut off and does not compress all lines.
	top, bottom := 2*slices.Max(ys), slices.Min(ys)/2
	for _, l := range p.lines {
		for i := range l.points {
			if pt := &l.points[i]; pt.low < pt.high {
				pt.low, pt.high = max(pt.low, bottom), min(pt.high, top)
				ys = append(ys, pt.low, pt.high)
			}
		}
	}
	x := newScale(p.xLog, xs, plotLeft, plotWidth-plotRight)
	if p.xTicks != nil {
		x.ticks = p.xTicks
	}
	y := newScale(p.yLog, ys, plotHeight-plotBottom, plotTop)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %.0f %.0f" role="img" aria-label="%s">`, plotWidth, plotHeight, html.EscapeString(p.title))
	p.axes(&b, &x, &y)
	for _, l := range p.lines {
		l.draw(&b, &x, &y)
	}
	p.names(&b, &y)
	b.WriteString("</svg>")
	return b.String()
}

func (p *plot) axes(b *strings.Builder, x, y *scale) {
	bottom, right := plotHeight-plotBottom, plotWidth-plotRight
	for _, t := range y.ticks {
		at := y.at(t)
		fmt.Fprintf(b, `<line class="grid" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, plotLeft, right, at, at)
		fmt.Fprintf(b, `<text class="tick" x="%.1f" y="%.1f" text-anchor="end">%s</text>`, plotLeft-8, at+4, tick(t))
	}
	fmt.Fprintf(b, `<line class="axis" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, plotLeft, right, bottom, bottom)
	for _, t := range x.ticks {
		at := x.at(t)
		fmt.Fprintf(b, `<line class="axis" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, at, at, bottom, bottom+tickLength)
		fmt.Fprintf(b, `<text class="tick" x="%.1f" y="%.1f" text-anchor="middle">%s</text>`, at, bottom+18, tick(t))
	}
	fmt.Fprintf(b, `<text class="label" x="%.1f" y="%.1f" text-anchor="middle">%s</text>`,
		(plotLeft+right)/2, plotHeight-6, html.EscapeString(p.x))
	fmt.Fprintf(b, `<text class="label" x="0" y="%.1f">%s</text>`, plotTop-10, html.EscapeString(p.y))
}

// draw draws the line, its points with their intervals, and tooltips.
func (l *line) draw(b *strings.Builder, x, y *scale) {
	dashed := ""
	if l.dashed {
		dashed = " dashed"
	}
	var path []string
	for _, p := range l.points {
		path = append(path, fmt.Sprintf("%.1f,%.1f", x.at(p.x), y.at(p.y)))
	}
	fmt.Fprintf(b, `<polyline class="line %s%s" points="%s"/>`, l.class, dashed, strings.Join(path, " "))
	for _, p := range l.points {
		if p.low < p.high {
			fmt.Fprintf(b, `<line class="line thin %s" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`,
				l.class, x.at(p.x), x.at(p.x), y.at(p.low), y.at(p.high))
		}
		fmt.Fprintf(b, `<circle class="dot %s" cx="%.1f" cy="%.1f" r="3.5"><title>%s: %s at %s</title></circle>`,
			l.class, x.at(p.x), y.at(p.y), html.EscapeString(l.name), number(p.y), tick(p.x))
	}
}

// names writes the lines' names at their ends, and separates those that would overlap.
func (p *plot) names(b *strings.Builder, y *scale) {
	type label struct {
		at   float64
		line *line
	}
	var all []label
	for i := range p.lines {
		l := &p.lines[i]
		if n := len(l.points); n > 0 {
			all = append(all, label{y.at(l.points[n-1].y), l})
		}
	}
	slices.SortFunc(all, func(a, b label) int { return int(math.Copysign(1, a.at-b.at)) })
	for i := 1; i < len(all); i++ {
		all[i].at = math.Max(all[i].at, all[i-1].at+labelHeight)
	}
	over := 0.0
	if n := len(all); n > 0 {
		over = math.Max(0, all[n-1].at-(plotHeight-plotBottom))
	}
	for i := len(all) - 1; i >= 0 && over > 0; i-- {
		all[i].at -= over
		if i > 0 {
			over = math.Max(0, all[i-1].at+labelHeight-all[i].at)
		}
	}
	for _, l := range all {
		fmt.Fprintf(b, `<text class="name %s" x="%.1f" y="%.1f">%s</text>`,
			l.line.class, plotWidth-plotRight+9, l.at+4, html.EscapeString(l.line.name))
	}
}

// tick formats a round number in a short form.
func tick(v float64) string {
	if v >= 1000 && v == math.Trunc(v) {
		return number(v)
	}
	return fmt.Sprintf("%.4g", v)
}
