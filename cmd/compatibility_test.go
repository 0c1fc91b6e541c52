// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestCompatibilityPage: docs/COMPATIBILITY.md has every field, flag and metric of
// kube-proxy, each row names a test, and the named tests exist.
func TestCompatibilityPage(t *testing.T) {
	content, err := os.ReadFile("../docs/COMPATIBILITY.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(content)
	list, err := os.ReadFile("testdata/kube-proxy-flags.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(list)) {
		if name, _, _ := strings.Cut(line, " "); name != "#" && !strings.Contains(page, "`--"+name+"`") {
			t.Errorf("--%s is missing", name)
		}
	}
	for _, f := range fields {
		if !strings.Contains(page, "`"+f.path+"`") {
			t.Errorf("%s is missing", f.path)
		}
	}
	checkRows(t, page)
	checkMetrics(t, page)
	tests := map[string]string{} // the text of all test files, by package
	named := regexp.MustCompile("(?:\\b(cmd|lb|maps|bpf|watcher|health|kubeproxy|e2e/[a-z]+)\\s)?`((?:Test|Fuzz)[A-Za-z0-9]+)`")
	pkg := "" // a name without a package is of the same package as the one before
	for _, m := range named.FindAllStringSubmatch(page, -1) {
		if m[1] != "" {
			pkg = m[1]
		}
		if tests[pkg] == "" {
			tests[pkg] = textOfTests(t, pkg)
		}
		if !strings.Contains(tests[pkg], "func "+m[2]+"(") {
			t.Errorf("package %s has no %s", pkg, m[2])
		}
	}
	if len(tests) < 5 {
		t.Errorf("tests of only %d packages were found on the page", len(tests))
	}
}

// checkRows checks that each row of a table with the column "shown by" names a test.
func checkRows(t *testing.T, page string) {
	t.Helper()
	shown, rows := false, 0
	for line := range strings.Lines(page) {
		switch line = strings.TrimSpace(line); {
		case !strings.HasPrefix(line, "|"):
			shown = false
		case strings.HasSuffix(line, "| shown by |"):
			shown = true
		case shown && !strings.HasPrefix(line, "|---"):
			cells := strings.Split(strings.TrimSuffix(line, "|"), "|")
			if rows++; !strings.Contains(cells[len(cells)-1], "`Test") {
				t.Errorf("no test shows %s", line)
			}
		}
	}
	if rows < 30 {
		t.Errorf("only %d rows were found", rows)
	}
}

// checkMetrics checks that the page has every metric of package health with kube-proxy's
// name.
func checkMetrics(t *testing.T, page string) {
	t.Helper()
	files, err := filepath.Glob("../health/*.go")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, m := range regexp.MustCompile(`"(kubeproxy_[a-z_]+)"`).FindAllStringSubmatch(string(content), -1) {
			if seen++; !strings.Contains(page, "`"+m[1]+"`") && !strings.Contains(page, "`"+m[1]+"{") {
				t.Errorf("%s is missing", m[1])
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d metrics were found", seen)
	}
}

func textOfTests(t *testing.T, pkg string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", pkg, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("package %q has no tests: %v", pkg, err)
	}
	all := ""
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all += string(content)
	}
	return all
}
