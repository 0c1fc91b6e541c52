// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"shunt/lb"
)

// TestExternalIPs: externalIPs are switched by kube-proxy's feature gate in the file or as
// a flag, and by shunt's own flag.
func TestExternalIPs(t *testing.T) {
	off := configFile(t, withFields(map[string]string{"featureGates": `{"AllowServiceExternalIPs":false}`}))
	more := configFile(t, withFields(map[string]string{"featureGates": `{"AllowServiceExternalIPs":false,"Other":true}`}))
	for _, c := range []struct {
		args  []string
		serve bool
		said  string // what is logged to have no effect
	}{
		{nil, true, ""},
		{[]string{"--external-ips=false"}, false, ""},
		{[]string{"--config", off}, false, ""},
		{[]string{"--config", more}, false, "featureGates"},
		{[]string{"--config", off, "--external-ips"}, true, ""}, // a flag wins over the file
		{[]string{"--feature-gates=AllowServiceExternalIPs=false"}, false, ""},
		{[]string{"--feature-gates=AllowServiceExternalIPs=true,X=false"}, true, "--feature-gates"},
		{[]string{"--config", off, "--feature-gates=AllowServiceExternalIPs=true"}, true, ""},
	} {
		got, err := parseRun(c.args...)
		if err != nil {
			t.Errorf("%q: %v", c.args, err)
			continue
		}
		if got.ExternalIPs != c.serve {
			t.Errorf("%q: external IPs are served: %t", c.args, got.ExternalIPs)
		}
		for _, name := range []string{"featureGates", "--feature-gates"} {
			why := noteOf(t, got, name)
			if said := why != "" && !strings.Contains(why, "a flag wins"); said != (name == c.said) {
				t.Errorf("%q: %s is said to be without effect: %t", c.args, name, said)
			}
		}
		if r := newReserved(lb.NewStore(time.Now), got); r.now.NoExternalIPs == c.serve || len(r.now.Listens) != 3 {
			t.Errorf("%q: reserved are %+v", c.args, r.now)
		}
		file := filepath.Join(t.TempDir(), "written.yaml")
		if err := got.settings.write(file, got); err != nil {
			t.Fatal(err)
		}
		if again, err := parseRun("--config", file); err != nil || again.ExternalIPs != c.serve {
			t.Errorf("%q: as it was written (%v): %s", c.args, err, jsonOf(t, again))
		}
	}
	_, err := parseRun("--external-ips", "--feature-gates=AllowServiceExternalIPs=false")
	wantUsageError(t, err, "--external-ips")
}
