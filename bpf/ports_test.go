// SPDX-License-Identifier: Apache-2.0

package bpf

import "testing"

// TestChooseSNATPorts: the ports are the longest run without ports that the kernel assigns,
// node ports and reserved ones.
func TestChooseSNATPorts(t *testing.T) {
	usual := portSpan{32768, 60999}
	for _, c := range []struct {
		what      string
		ephemeral portSpan
		reserved  string
		want      SNATPorts
	}{
		{"the kernel's default, round the end", usual, "", SNATPorts{First: 61000, Count: 4536 + 28976}},
		{"up to the end", portSpan{32768, 65535}, "", SNATPorts{First: 1024, Count: 28976}},
		{"from the start", portSpan{1024, 20000}, "", SNATPorts{First: 32768, Count: 65536 - 32768}},
		{"over the node ports", portSpan{20000, 40000}, "", SNATPorts{First: 40001, Count: 25535 + 18976}},
		{"within the node ports", portSpan{30100, 30200}, "", SNATPorts{First: 32768, Count: 32768 + 28976}},
		{"with reserved ports below", usual, "8080,9148", SNATPorts{First: 9149, Count: 20851}},
		{"with reserved ports above", usual, "30000-32767,61000-61999", SNATPorts{First: 62000, Count: 3536 + 28976}},
		{"with one near", usual, "29999", SNATPorts{First: 61000, Count: 4536 + 28975}},
		{"the kernel takes all", portSpan{1024, 65535}, "", SNATPorts{First: 32768, Count: 32768 + 28976, Shared: true}},
		{"and more", portSpan{1, 65535}, "1024-65000", SNATPorts{First: 65001, Count: 535, Shared: true}},
		{"few are left", portSpan{1500, 65535}, "", SNATPorts{First: 32768, Count: 32768 + 28976, Shared: true}},
		{"just enough are left", portSpan{2048, 65535}, "", SNATPorts{First: 1024, Count: 1024}},
		{"nothing at all", usual, "1-65535", SNATPorts{Shared: true}},
	} {
		reserved, err := parseSpans(c.reserved)
		if err != nil {
			t.Fatal(err)
		}
		got := chooseSNATPorts(c.ephemeral, reserved)
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", c.what, got, c.want)
		}
		for i := range got.Count {
			p := got.First + i
			if p > portLast {
				p -= portCount
			}
			for _, s := range append(reserved, nodePortSpan, c.ephemeral) {
				if got.Shared && s == c.ephemeral {
					continue
				}
				if p >= s.first && p <= s.last {
					t.Fatalf("%s: port %d is in %+v", c.what, p, s)
				}
			}
		}
	}
	if first, count := longestRun(nil); first != portFirst || count != portCount {
		t.Errorf("with no port taken: %d from %d", count, first)
	}
}

func TestParseSpans(t *testing.T) {
	for _, c := range []struct {
		text string
		want []portSpan
		ok   bool
	}{
		{"", nil, true}, {"32768\t60999", []portSpan{{32768, 60999}}, true},
		{"8080,30000-32767", []portSpan{{8080, 8080}, {30000, 32767}}, true},
		{"1-2-3", nil, false}, {"x", nil, false}, {"-", nil, false}, {"9-8", nil, false}, {"65536", nil, false},
	} {
		got, err := parseSpans(c.text)
		if (err == nil) != c.ok || len(got) != len(c.want) {
			t.Errorf("%q: %v, %v", c.text, got, err)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%q: %v, want %v", c.text, got, c.want)
			}
		}
	}
}
