// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestDockerfile: the packages that the Dockerfile compiles ahead are packages of the image's
// binary, and it has nothing that Docker's older builder refuses.
func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	list := exec.Command("go", "list", "-C", "../..", "-deps", "-tags", "node", ".")
	out, err := list.Output()
	if err != nil {
		t.Fatalf("%v: %v", list, err)
	}
	linked := map[string]bool{}
	for _, p := range strings.Fields(string(out)) {
		linked[p] = true
	}
	ahead := regexp.MustCompile(`(?m)^    ([a-z0-9.]+\.[a-z]+/\S+)`).FindAllStringSubmatch(string(text), -1)
	if len(ahead) < 5 {
		t.Errorf("the Dockerfile compiles %d packages ahead", len(ahead))
	}
	for _, m := range ahead {
		if !linked[m[1]] {
			t.Errorf("the Dockerfile compiles %s, which is not in the binary", m[1])
		}
	}
	for _, line := range strings.Split(string(text), "\n") {
		instruction := !strings.HasPrefix(line, "#")
		if instruction && (strings.Contains(line, "--mount") || regexp.MustCompile(`\$\{?BUILDPLATFORM\b($|[^:])`).MatchString(line)) {
			t.Errorf("Docker's older builder refuses %q", line)
		}
	}
	// .dockerignore must keep what the Dockerfile copies from the build.
	ignore, err := os.ReadFile("../../.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Fields(string(ignore)) {
		if strings.HasPrefix("LICENSE", line) || strings.HasPrefix("NOTICE", line) {
			t.Errorf(".dockerignore has %s", line)
		}
	}
}
