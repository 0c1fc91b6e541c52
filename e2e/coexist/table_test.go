// SPDX-License-Identifier: Apache-2.0

package coexist

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"text/tabwriter"
)

// jsonFile is the environment variable with the path of the file that gets the table as JSON.
const jsonFile = "COEXIST_JSON"

// right is a cell's text where everything was as expected.
const right = "right"

// row is the outcome of one situation.
type row struct {
	Situation string            `json:"situation"`
	Part      string            `json:"part"`
	Right     string            `json:"right"` // what is right, in words
	Cells     map[string]string `json:"cells"` // by column
}

// TestCoexist runs every situation on every node, and prints the table. kube-proxy's cells are a
// comparison: only shunt's fail the test.
func TestCoexist(t *testing.T) {
	w := newWorld(t)
	var rows []row
	for i, s := range situations {
		r := row{s.name, s.part, s.right, map[string]string{}}
		for _, c := range w.columns {
			if s.only != "" && s.only != c.name {
				r.Cells[c.name] = "-"
				continue
			}
			t.Run(s.name+"/"+c.name, func(t *testing.T) {
				sc := &scene{world: w, column: c, T: t, number: 10 + i}
				r.Cells[c.name] = "ended early"
				s.run(sc)
				r.Cells[c.name] = sc.cell()
				if c.name == shunt && s.open == "" && len(sc.wrong) > 0 {
					t.Error(strings.Join(sc.wrong, "\n"))
				} else if c.name == shunt && s.open != "" && len(sc.wrong) == 0 {
					t.Error("it is right, but the situation is marked as open")
				}
			})
		}
		rows = append(rows, r)
	}
	fmt.Print(text(w.columns, rows))
	if file := os.Getenv(jsonFile); file != "" {
		out, err := json.MarshalIndent(rows, "", "  ")
		if err == nil {
			err = os.WriteFile(file, append(out, '\n'), 0o644)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// text returns the table.
func text(columns []*column, rows []row) string {
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "PART\tSITUATION")
	for _, c := range columns {
		fmt.Fprintf(tw, "\t%s", strings.ToUpper(c.name))
	}
	fmt.Fprintln(tw)
	for _, r := range rows {
		fmt.Fprintf(tw, "%s\t%s", r.Part, r.Situation)
		for _, c := range columns {
			fmt.Fprintf(tw, "\t%s", r.Cells[c.name])
		}
		fmt.Fprintln(tw)
	}
	_ = tw.Flush() // a Builder returns no error
	return b.String()
}

// cell returns what the table shows of the scene: right, or the first thing that was wrong.
func (s *scene) cell() string {
	if len(s.wrong) == 0 {
		return right
	}
	return s.wrong[0]
}

// expect records what was seen, where it differs from what is right.
func (s *scene) expect(what, got, want string) {
	if got != want {
		s.wrong = append(s.wrong, fmt.Sprintf("%s: %s, not %s", what, got, want))
	}
}
