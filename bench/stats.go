// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"math"
	"slices"
)

// quantilePoints are the quantiles of a Distribution, as fractions of 1.
var quantilePoints = []float64{0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1}

// confidence is the level of intervals, if there are enough rounds.
const confidence = 0.95

// Interval is a median with its confidence interval.
type Interval struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
	// Level is the confidence: the probability that [Low, High] holds the true median. With
	// fewer than six values it is below 0.95, and the interval is their whole range.
	Level float64 `json:"level"`
	// N is the number of values.
	N int `json:"n"`
}

// quantile returns the smallest value of a sorted list such that at least a part q of the
// list is not above it (nearest rank, no interpolation). It returns NaN for an empty list.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// middle returns the median: of an even number of values, the mean of the two in the
// middle.
func middle(sorted []float64) float64 {
	n := len(sorted)
	if n == 0 {
		return math.NaN()
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// medianInterval returns the median with an interval by order statistics, for any distribution
// of the values: the true median is between the k-th smallest and the k-th largest value with
// a probability of 1 - 2·P(B < k), where B is the number of heads in n throws of a coin.
func medianInterval(values []float64) Interval {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	iv := Interval{Value: middle(sorted), N: n}
	if n == 0 {
		return Interval{}
	}
	k, below := 1, coin(n, 0) // below: P(B < k)
	for k < (n+1)/2 {
		more := below + coin(n, k)
		if 2*more > 1-confidence {
			break
		}
		k, below = k+1, more
	}
	iv.Low, iv.High, iv.Level = sorted[k-1], sorted[n-k], max(0, 1-2*below)
	return iv
}

// coin returns the probability of exactly k heads in n throws.
func coin(n, k int) float64 {
	lg := func(x int) float64 { v, _ := math.Lgamma(float64(x) + 1); return v }
	return math.Exp(lg(n) - lg(k) - lg(n-k) - float64(n)*math.Ln2)
}

// apart reports whether two intervals do not overlap: the difference is beyond noise.
func (iv Interval) apart(other Interval) bool {
	return iv.High < other.Low || other.High < iv.Low
}

// Round summarizes all values of one round: no outliers are removed.
type Round struct {
	N    int     `json:"n"`
	Min  float64 `json:"min"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	Max  float64 `json:"max"`
	Mean float64 `json:"mean"`
	// Errors counts unanswered exchanges, which N does not include.
	Errors int `json:"errors,omitempty"`
}

// sumUp summarizes the values of a round.
func sumUp(values []float64, errors int) Round {
	r := Round{N: len(values), Errors: errors}
	if r.N == 0 {
		return r
	}
	sorted := slices.Sorted(slices.Values(values))
	for _, v := range sorted {
		r.Mean += v / float64(r.N)
	}
	r.Min, r.Max = sorted[0], sorted[r.N-1]
	r.P50, r.P90, r.P99 = quantile(sorted, 0.5), quantile(sorted, 0.9), quantile(sorted, 0.99)
	return r
}

// Result summarizes a series.
type Result struct {
	// N values and Errors failures of all rounds together.
	N      int     `json:"n"`
	Errors int     `json:"errors"`
	P50    float64 `json:"p50"`
	P90    float64 `json:"p90"`
	P99    float64 `json:"p99"`
	Mean   float64 `json:"mean"`
	// Distribution is the values at QuantilePoints of the report.
	Distribution []float64 `json:"distribution,omitempty"`
	// Rounds is the median of the rounds' medians.
	Rounds Interval `json:"rounds"`
	// Ratio is the median, over rounds, of a round's median divided by that of `direct` in
	// the same round. Nil means that there is nothing to compare with.
	Ratio *Interval `json:"ratio,omitempty"`
}

// conclude computes the result of a series from its values by round. base is the series of
// `direct` to compare with, nil for none.
func conclude(s *Series, base *Series) Result {
	var all, medians []float64
	var r Result
	for i, round := range s.Rounds {
		all = append(all, s.values[i]...)
		r.Errors += round.Errors
		if round.N > 0 {
			medians = append(medians, round.P50)
		}
	}
	slices.Sort(all)
	r.N = len(all)
	if r.N == 0 {
		return r
	}
	for _, v := range all {
		r.Mean += v / float64(r.N)
	}
	r.P50, r.P90, r.P99 = quantile(all, 0.5), quantile(all, 0.9), quantile(all, 0.99)
	for _, q := range quantilePoints {
		r.Distribution = append(r.Distribution, quantile(all, q))
	}
	r.Rounds = medianInterval(medians)
	if ratios := ratiosOf(s, base); len(ratios) > 0 {
		iv := medianInterval(ratios)
		r.Ratio = &iv
	}
	return r
}

// ratiosOf compares round by round. It omits rounds that are missing in either series.
func ratiosOf(s, base *Series) []float64 {
	if base == nil || base == s {
		return nil
	}
	var ratios []float64
	for i := range min(len(s.Rounds), len(base.Rounds)) {
		if a, b := s.Rounds[i], base.Rounds[i]; a.N > 0 && b.N > 0 && b.P50 > 0 {
			ratios = append(ratios, a.P50/b.P50)
		}
	}
	return ratios
}
