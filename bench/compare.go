// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// Change compares one series between two reports.
type Change struct {
	Key  Key    `json:"key"`
	Unit string `json:"unit"`
	// Of is the number compared: the ratio to direct if there is one, since it depends less
	// on the machine, else the value itself.
	Of  string   `json:"of"`
	Old Interval `json:"old"`
	New Interval `json:"new"`
	// Factor is New divided by Old. Beyond means that the intervals do not overlap.
	Factor float64 `json:"factor"`
	Beyond bool    `json:"beyondNoise"`
}

// Comparison of two reports.
type Comparison struct {
	// Warnings name differences that make the reports hard to compare.
	Warnings []string `json:"warnings"`
	Changes  []Change `json:"changes"`
	// OnlyOld and OnlyNew are the series of one report only.
	OnlyOld []Key `json:"onlyOld"`
	OnlyNew []Key `json:"onlyNew"`
}

// Compare returns the changes from old to new, and whether each is beyond noise.
func Compare(old, new *Report) *Comparison {
	c := &Comparison{Warnings: differences(old, new), Changes: []Change{}}
	for _, a := range old.Series {
		b := new.Find(a.Key)
		if b == nil || a.Result.N == 0 || b.Result.N == 0 {
			c.OnlyOld = append(c.OnlyOld, a.Key)
			continue
		}
		ch := Change{Key: a.Key, Unit: a.Unit, Of: "value", Old: a.Result.Rounds, New: b.Result.Rounds}
		if a.Result.Ratio != nil && b.Result.Ratio != nil {
			ch.Of, ch.Old, ch.New = "ratio to direct", *a.Result.Ratio, *b.Result.Ratio
		}
		if ch.Old.Value != 0 {
			ch.Factor = ch.New.Value / ch.Old.Value
		}
		ch.Beyond = ch.Old.apart(ch.New)
		c.Changes = append(c.Changes, ch)
	}
	for _, b := range new.Series {
		if old.Find(b.Key) == nil {
			c.OnlyNew = append(c.OnlyNew, b.Key)
		}
	}
	return c
}

// differences returns the differences between machines and setups.
func differences(a, b *Report) []string {
	all := []string{}
	differ := func(what string, x, y any) {
		if x != y {
			all = append(all, fmt.Sprintf("%s: %v and %v", what, x, y))
		}
	}
	differ("kernel", a.Machine.Kernel, b.Machine.Kernel)
	differ("CPU", a.Machine.CPU, b.Machine.CPU)
	differ("CPUs", a.Machine.CPUs, b.Machine.CPUs)
	differ("services from an API server", a.Setup.API, b.Setup.API)
	differ("rounds", a.Setup.Rounds, b.Setup.Rounds)
	differ("exchanges a round", a.Setup.Exchanges, b.Setup.Exchanges)
	return all
}

// Table writes the comparison for a terminal.
func (c *Comparison) Table(w io.Writer) {
	for _, warning := range c.Warnings {
		fmt.Fprintf(w, "not the same: %s\n", warning)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "services\tendpoints\tcontender\tpath\tmeasure\tof\told\tnew\tfactor\tbeyond noise")
	beyond := 0
	for _, ch := range c.Changes {
		verdict := "no"
		if ch.Beyond {
			verdict = "YES"
			beyond++
		}
		unit := ""
		if ch.Of == "value" {
			unit = " " + ch.Unit
		}
		fmt.Fprintf(tw, "%d\t%d\t%s\t%s\t%s\t%s\t%s%s\t%s%s\t%.2f\t%s\n", ch.Key.Services, ch.Key.Endpoints, ch.Key.Contender,
			ch.Key.Path.words(), ch.Key.Measure, ch.Of, number(ch.Old.Value), unit, number(ch.New.Value), unit, ch.Factor, verdict)
	}
	tw.Flush()
	fmt.Fprintf(w, "%d of %d beyond noise (intervals of 95%% that do not overlap); %d only in the first, %d only in the second\n",
		beyond, len(c.Changes), len(c.OnlyOld), len(c.OnlyNew))
}
