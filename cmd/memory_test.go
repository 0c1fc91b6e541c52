// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
)

// residentCode returns the resident size of this process's code, in kB.
func residentCode(t *testing.T) (kB int) {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	code := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if fields := strings.Fields(line); strings.Contains(fields[0], "-") {
			code = fields[1] == "r-xp" && strings.Contains(line, " /")
		}
		var n int
		if _, err := fmt.Sscanf(line, "Rss: %d kB", &n); err == nil && code {
			kB += n
		}
	}
	return kB
}

// TestTrimMemory: less code is resident afterwards, and code still runs.
func TestTrimMemory(t *testing.T) {
	newRootCommand().UsageString()
	before := residentCode(t)
	if err := trimMemory(); err != nil {
		t.Fatal(err)
	}
	if after := residentCode(t); before == 0 || after >= before {
		t.Errorf("%d kB of code are resident, before it were %d", after, before)
	}
	newRootCommand().UsageString()
}
