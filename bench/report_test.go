// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var ofNoPath = []Measure{Update, Load, KernelMem, ProcessMem}

// sampleReport returns a report with every kind of series and invented numbers.
func sampleReport(factor float64) *Report {
	r := &Report{Format: reportFormat, Started: time.Unix(0, 0).UTC(), QuantilePoints: quantilePoints,
		Setup: Setup{Services: []int{10, 10_000}, Endpoints: []int{2, 10}, Rounds: 8}, Machine: Machine{Kernel: "6.18", CPU: "<cpu>", CPUs: 2, Load: "0.10"}}
	for _, name := range Names {
		c := ContenderInfo{Name: name, What: "what " + name + " is"}
		if strings.HasSuffix(name, nameIPVS) {
			c.Missing = "not here"
		}
		r.Contenders = append(r.Contenders, c)
	}
	for _, size := range r.Setup.Sizes() {
		for i, name := range r.took() {
			for round := range 8 {
				v := factor * float64(100+10*i+round+size.Services/1000)
				for _, path := range allPaths {
					if limit := path == path.limit(); name == nameDirect && !limit || name != nameDirect && limit && path != PathPod {
						continue
					}
					for m := range measureUnits {
						if slices.Contains(ofNoPath, m) {
							continue
						}
						r.series(Key{size, name, path, m}).add([]float64{v, v * 1.01, v * 3}, 0)
					}
				}
				if name != nameDirect {
					for _, m := range ofNoPath {
						r.series(Key{size, name, PathNone, m}).add([]float64{v}, 0)
					}
				}
			}
		}
	}
	r.explain()
	r.conclude()
	return r
}

func TestReportRoundTrip(t *testing.T) {
	r := sampleReport(1)
	file := filepath.Join(t.TempDir(), "r.json")
	if err := r.Write(file); err != nil {
		t.Fatal(err)
	}
	back, err := Read(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Series {
		s.values = nil
	}
	if !reflect.DeepEqual(r, back) {
		t.Error("what was read is not what was written")
	}
	if err := os.WriteFile(file, []byte(`{"format": 99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(file); err == nil || !strings.Contains(err.Error(), "format 99") {
		t.Errorf("%v", err)
	}
}

func TestCompare(t *testing.T) {
	same := Compare(sampleReport(1), sampleReport(1))
	if len(same.Warnings) != 0 || len(same.OnlyOld)+len(same.OnlyNew) != 0 || len(same.Changes) != len(sampleReport(1).Series) {
		t.Errorf("%v, %d changes", same.Warnings, len(same.Changes))
	}
	for _, c := range same.Changes {
		if c.Beyond || c.Factor != 1 {
			t.Errorf("%+v between equals", c)
		}
	}
	slow := sampleReport(2)
	slow.Machine.CPUs = 4
	slow.Series = slow.Series[1:]
	twice := Compare(sampleReport(1), slow)
	if len(twice.Warnings) != 1 || len(twice.OnlyOld) != 1 || len(twice.OnlyNew) != 0 {
		t.Errorf("warnings %v, only in the first %v", twice.Warnings, twice.OnlyOld)
	}
	for _, c := range twice.Changes {
		// A machine that is half as fast changes values, but no ratio.
		if isValue := c.Of == "value"; c.Beyond != isValue || isValue && c.Factor != 2 {
			t.Errorf("%+v", c)
		}
	}
	var out strings.Builder
	twice.Table(&out)
	if !strings.Contains(out.String(), "not the same: CPUs: 2 and 4") || !strings.Contains(out.String(), "YES") {
		t.Errorf("%s", &out)
	}
}

func TestTable(t *testing.T) {
	var out strings.Builder
	r := sampleReport(1)
	r.Table(&out)
	for _, want := range []string{"ipvs did not take part: not here", "10,000 services of 10 endpoints", "last service", "Not measured:", "last node port, pod elsewhere",
		"A connection each", "Connections that are there", "Changes, start and memory"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "NOT ANSWERED") {
		t.Error("errors are told of where there are none")
	}
	for _, m := range []Measure{ConnectTCP, ExchangeTCP} { // the same exchanges
		r.Find(Key{Size{10, 10}, nameShunt, PathLast, m}).Result.Errors = 3
	}
	r.Table(&out)
	if !strings.Contains(out.String(), "3 exchanges were NOT ANSWERED") {
		t.Errorf("%s", &out)
	}
}

// TestHTML: one page that loads nothing from elsewhere, with valid XML as pictures.
func TestHTML(t *testing.T) {
	file := filepath.Join(t.TempDir(), "r.html")
	if err := sampleReport(1).WriteHTML(file); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for _, bad := range []string{"http:", "https:", "<script", "<link", "url(", "@import", "<cpu>", "NaN", "%!"} {
		if strings.Contains(text, bad) {
			t.Errorf("%q in the page", bad)
		}
	}
	svgs := regexp.MustCompile(`(?s)<svg.*?</svg>`).FindAllString(text, -1)
	if len(svgs) != 14 {
		t.Errorf("%d pictures", len(svgs))
	}
	for _, svg := range svgs {
		d := xml.NewDecoder(strings.NewReader(svg))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%v in %s", err, svg)
			}
		}
		for _, name := range []string{nameShunt, nameIPTables, nameNFTables, nameShuntAPI, nameKubeIPTables, nameKubeNFTables} {
			if !strings.Contains(svg, `class="name c-`+name) {
				t.Errorf("%s is not in %.120s", name, svg)
			}
		}
	}
}

func TestPlotOfNothing(t *testing.T) {
	if svg := (&plot{lines: []line{{name: "x"}}}).svg(); svg != "" {
		t.Errorf("%s", svg)
	}
}
