// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"strings"
	"testing"

	semver "k8s.io/apimachinery/pkg/util/version"
)

// TestLinkerVariables: the linker ignores -X for a variable that is not there, or that is not
// initialized by a constant. So each that hack/version.sh names must be such a variable.
func TestLinkerVariables(t *testing.T) {
	set := linkerSets(t, "SHUNT_VERSION=v1.2.3", "SHUNT_REVISION=abc")
	if len(set) != 2 || set["shunt/cmd.version"] != "v1.2.3" || set["shunt/cmd.revision"] != "abc" {
		t.Errorf("ldflags set %v", set)
	}
	file, err := parser.ParseFile(token.NewFileSet(), "version.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name := range set {
		object := file.Scope.Lookup(strings.TrimPrefix(name, "shunt/cmd."))
		if object == nil || object.Kind != ast.Var {
			t.Errorf("the linker sets %s, which is no variable of version.go", name)
			continue
		}
		spec := object.Decl.(*ast.ValueSpec)
		value, constant := spec.Values[0].(*ast.BasicLit)
		if len(spec.Values) != 1 || !constant || value.Kind != token.STRING {
			t.Errorf("the linker sets %s, which is not initialized by a string", name)
		}
	}
}

// linkerSets returns what hack/version.sh has the linker set, by name.
func linkerSets(t *testing.T, env ...string) map[string]string {
	t.Helper()
	c := exec.Command("../hack/version.sh", "ldflags")
	c.Env = append(os.Environ(), env...)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("hack/version.sh ldflags: %v\n%s", err, out)
	}
	set := map[string]string{}
	for _, assignment := range strings.Split(strings.TrimSpace(string(out)), "-X ")[1:] {
		name, value, _ := strings.Cut(strings.TrimSpace(assignment), "=")
		set[name] = value
	}
	return set
}

// TestVersionText: the revision is there where it is known.
func TestVersionText(t *testing.T) {
	defer func(v, r string) { version, revision = v, r }(version, revision)
	for _, c := range []struct{ revision, want string }{
		{"abc-dirty", "shunt v1.2.3 (revision abc-dirty, map ABI "},
		{"", "shunt v1.2.3 (map ABI "},
	} {
		version, revision = "v1.2.3", c.revision
		var out bytes.Buffer
		if err := printVersion(&out, ""); err != nil || !strings.HasPrefix(out.String(), c.want) {
			t.Errorf("%q, %v, want %q…", out.String(), err, c.want)
		}
	}
}

// TestVersionsSort: every version that hack/version.sh makes of a repository is a semantic
// version and sorts after the one of the commit before it.
func TestVersionsSort(t *testing.T) {
	tree := t.TempDir()
	script, err := os.ReadFile("../hack/version.sh")
	if err != nil {
		t.Fatal(err)
	}
	run := func(command string) string {
		c := exec.Command("sh", "-ec", command)
		c.Dir = tree
		c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if err := os.MkdirAll(tree+"/hack", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tree+"/hack/version.sh", script, 0o755); err != nil {
		t.Fatal(err)
	}
	if v := run("hack/version.sh version"); v != "devel" {
		t.Errorf("without git: %s", v)
	}
	run("git init -q && git config user.name t && git config user.email t@example.org && git add .")
	commit := func(second string) {
		run("GIT_COMMITTER_DATE=2026-01-02T03:04:0" + second + "Z git commit -q --allow-empty -m c")
	}
	commit("1")
	got := []string{run("hack/version.sh version")}
	for i, tag := range []string{"v0.1.0-rc.1", "v0.1.0", "v1.9.9"} {
		commit(string(rune('2' + 2*i)))
		run("git tag " + tag)
		commit(string(rune('3' + 2*i)))
		after := run("hack/version.sh version")
		run("git checkout -q " + tag)
		got = append(got, run("hack/version.sh version"), after)
		run("git checkout -q -")
	}
	stamps := []string{"v0.0.0-20260102030401.g", "v0.1.0-rc.1", "v0.1.0-rc.1.20260102030403.g",
		"v0.1.0", "v0.1.1-0.20260102030405.g", "v1.9.9", "v1.9.10-0.20260102030407.g"}
	for i, want := range stamps {
		if v, release := got[i], !strings.HasSuffix(want, "g"); release && v != want || !strings.HasPrefix(v, want) {
			t.Errorf("version %d is %s, want %s", i, v, want)
		}
		if i > 0 && !semver.MustParseSemantic(got[i-1]).LessThan(semver.MustParseSemantic(got[i])) {
			t.Errorf("%s does not sort after %s", got[i], got[i-1])
		}
	}
	if err := os.WriteFile(tree+"/hack/version.sh", append(script, '\n'), 0o755); err != nil {
		t.Fatal(err)
	}
	if v, r := run("hack/version.sh version"), run("hack/version.sh revision"); !strings.HasSuffix(v, "-dirty") || !strings.HasSuffix(r, "-dirty") {
		t.Errorf("with a changed file: version %s, revision %s", v, r)
	}
}
