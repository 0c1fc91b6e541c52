package cmd

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestCompatibilityPage: docs/COMPATIBILITY.md has every field and flag of
// kube-proxy's, and the tests that it names exist.
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
	tests := map[string]string{} // all tests of a package's directory
	named := regexp.MustCompile("(?:\\b(cmd|lb|watcher|health|e2e/[a-z]+)\\s)?`((?:Test|Fuzz)[A-Za-z0-9]+)`")
	pkg := "" // that of the name before goes on
	for _, m := range named.FindAllStringSubmatch(page, -1) {
		if m[1] != "" {
			pkg = m[1]
		}
		if tests[pkg] == "" {
			tests[pkg] = sourcesOf(t, pkg)
		}
		if !strings.Contains(tests[pkg], "func "+m[2]+"(") {
			t.Errorf("package %s has no %s", pkg, m[2])
		}
	}
	if len(tests) < 5 {
		t.Errorf("tests of only %d packages were found on the page", len(tests))
	}
}

func sourcesOf(t *testing.T, pkg string) string {
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
