// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"shunt/maps"
)

// TestOperatorsPages: the metrics, flags, reasons and exit codes that the operators' pages name
// exist, and the pages have every one that an operator needs.
func TestOperatorsPages(t *testing.T) {
	text := map[string]string{}
	for _, page := range []string{"docs/OPERATING.md", "docs/TROUBLESHOOTING.md", "SECURITY.md"} {
		content, err := os.ReadFile(filepath.Join("..", page))
		if err != nil {
			t.Fatal(err)
		}
		text[page] = string(content)
		wantKnown(t, page, string(content))
	}
	operating, troubleshooting := text["docs/OPERATING.md"], text["docs/TROUBLESHOOTING.md"]
	newRunFlags(t).VisitAll(func(f *pflag.Flag) {
		if strings.HasSuffix(f.Name, "-map-size") || strings.HasSuffix(f.Name, "-bind-address") && f.DefValue != "" && !f.Hidden {
			if !strings.Contains(operating, "`--"+f.Name+"`") {
				t.Errorf("OPERATING.md lacks --%s", f.Name)
			}
		}
	})
	for _, kind := range maps.ProblemKinds() {
		if !strings.Contains(troubleshooting, "| `"+kind.String()+"` |") {
			t.Errorf("TROUBLESHOOTING.md lacks the kind %s", kind)
		}
	}
	for code, exit := range map[string]int{"0": exitOK, "1": exitFailure, "2": exitUsage, "3": exitDegraded} {
		if strings.Count(operating, "\n| "+code+" |") != 1 || code != string(rune('0'+exit)) {
			t.Errorf("OPERATING.md has the exit code %s, which is %d", code, exit)
		}
	}
}

func newRunFlags(t *testing.T) *pflag.FlagSet {
	t.Helper()
	run, _, err := newRootCommand().Find([]string{"run"})
	if err != nil {
		t.Fatal(err)
	}
	return run.Flags()
}

// wantKnown checks each name of a page.
func wantKnown(t *testing.T, page, content string) {
	t.Helper()
	metrics := sourcesOf(t, "../health/*.go")
	for _, m := range regexp.MustCompile(`\b(?:shunt|kubeproxy)_[a-z_]*[a-z]\b`).FindAllString(content, -1) {
		if !strings.Contains(metrics, `"`+m+`"`) {
			t.Errorf("%s: there is no metric %s", page, m)
		}
	}
	reasons, err := maps.ReasonNames()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`reason="([a-z_]+)"|reason .([a-z_]+).`).FindAllStringSubmatch(content, -1) {
		if !slices.Contains(reasons, m[1]+m[2]) {
			t.Errorf("%s: there is no reason %s", page, m[1]+m[2])
		}
	}
	others := []string{"since"} // kubectl's
	for _, m := range regexp.MustCompile("--([a-z][a-z-]*[a-z])").FindAllStringSubmatch(content, -1) {
		if !slices.Contains(others, m[1]) && !hasFlag(newRootCommand(), m[1]) {
			t.Errorf("%s: no command has --%s", page, m[1])
		}
	}
}

func hasFlag(c *cobra.Command, name string) bool {
	return c.Flags().Lookup(name) != nil || slices.ContainsFunc(c.Commands(), func(sub *cobra.Command) bool { return hasFlag(sub, name) })
}

// sourcesOf returns the text of the files that match a pattern, without tests.
func sourcesOf(t *testing.T, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %v", pattern, err)
	}
	all := ""
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all += string(content)
	}
	return all
}
