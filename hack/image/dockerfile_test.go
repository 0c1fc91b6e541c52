// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestObjectsOfArchitectures: amd64 and arm64 embed the same eBPF objects. Both are
// little-endian, and the objects are made for that and for nothing else of the machine.
func TestObjectsOfArchitectures(t *testing.T) {
	embedded := func(arch string) string {
		list := exec.Command("go", "list", "-C", "../..", "-f", "{{.ImportPath}} {{.EmbedFiles}}", "./bpf", "./maps")
		list.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0", "GOARCH="+arch)
		out, err := list.Output()
		if err != nil {
			t.Fatalf("%v: %v", list, err)
		}
		return string(out)
	}
	amd64, arm64 := embedded("amd64"), embedded("arm64")
	if strings.Count(amd64, "_bpfel.o") != 6 || amd64 != arm64 {
		t.Errorf("amd64 embeds\n%sand arm64\n%s", amd64, arm64)
	}
	if big := embedded("s390x"); strings.Contains(big, "_bpfel.o") {
		t.Errorf("a big-endian machine embeds\n%s", big)
	}
}

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
