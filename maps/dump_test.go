// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"shunt/maps"
)

// reasonWords reads the names of enum reason from the C source.
func reasonWords(t *testing.T) []string {
	t.Helper()
	source, err := os.ReadFile("../bpf/include/reason.h")
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, m := range regexp.MustCompile(`(?m)^\s+REASON_(\w+),`).FindAllStringSubmatch(string(source), -1) {
		if m[1] != "UNSPEC" && m[1] != "MAX" {
			words = append(words, strings.ToLower(m[1]))
		}
	}
	if len(words) < 10 {
		t.Fatalf("enum reason has only %v", words)
	}
	return words
}

// The text has every entry with its names, sorted, and shows what is wrong.
func TestDumpText(t *testing.T) {
	f := maps.NewFake(small)
	err := errors.Join(
		f.SetName(1, maps.Name{Namespace: "ns", Name: "web", Port: "http", Protocol: 6, Family: 4}),
		f.SetName(2, maps.Name{Namespace: "ns", Name: "dns", Protocol: 17, Family: 6}),
		f.SetBackend(1, record("10.0.0.9:8080", 6, maps.ClusterSet|maps.LocalSet|maps.OnNode, 1)),
		f.SetBackend(2, record("10.0.0.10:8080", 6, maps.Terminating, 1)),
		f.SetBackend(3, record("[fd00::3]:53", 17, maps.ClusterSet, 2)),
		f.WriteSlots(0, []uint32{2, 1, 3}),
		f.SetFrontend(frontend("10.96.0.10:80", 6), maps.Frontend{Id: 1, Kind: uint8(maps.ClusterIP), AffinitySeconds: 10800,
			Inside: maps.SlotRange{Base: 0, Count: 2}, Outside: maps.SlotRange{Base: 1, Count: 1}, Flags: maps.OutsideLocal | maps.Elsewhere}),
		f.SetFrontend(frontend("10.96.0.9:80", 6), maps.Frontend{Id: 1, Kind: uint8(maps.ExternalIP), Flags: maps.InsideLocal}),
		f.SetFrontend(frontend("[::]:30053", 17), maps.Frontend{Id: 2, Kind: uint8(maps.NodePort), Inside: maps.SlotRange{Base: 2, Count: 1}}),
		f.SetFrontend(maps.NewFrontendKey(addr("10.96.0.10"), 0, 0), maps.Frontend{Kind: uint8(maps.UndefinedPort)}),
		f.SetFrontend(frontend("1.2.3.4:80", 6), maps.Frontend{Id: 1, Kind: uint8(maps.LoadBalancerIP), Flags: maps.SourceRanges}),
		f.SetSourceRange(source(1, "203.0.113.0/24")), f.SetSourceRange(source(1, "0.0.0.0/1")), f.SetSourceRange(source(2, "::/0")),
		f.SetNodeAddr(addr("192.168.0.1"), 0),
		f.SetNodeAddr(addr("127.0.0.1"), maps.HostNetns),
		f.SetServiceCIDR(prefix("fd00:10:96::/112")), f.SetServiceCIDR(prefix("10.96.0.0/12")))
	if err != nil {
		t.Fatal(err)
	}
	want := `frontend 1.2.3.4:80/TCP LoadBalancerIP of ns/web:http/TCP inside=cluster[] outside=cluster[] source-ranges
frontend 10.96.0.9:80/TCP ExternalIP of ns/web:http/TCP inside=local[] outside=cluster[]
frontend 10.96.0.10:0/ANY UndefinedPort
frontend 10.96.0.10:80/TCP ClusterIP of ns/web:http/TCP affinity 10800s inside=cluster[10.0.0.10:8080 10.0.0.9:8080] outside=local[10.0.0.9:8080] elsewhere
frontend [*]:30053/UDP NodePort of ns/dns/UDP inside=cluster[[fd00::3]:53] outside=cluster[]
backend 10.0.0.10:8080 of ns/web:http/TCP terminating
backend 10.0.0.9:8080 of ns/web:http/TCP cluster local on-node
backend [fd00::3]:53 of ns/dns/UDP cluster
source 0.0.0.0/1 of ns/web:http/TCP
source 203.0.113.0/24 of ns/web:http/TCP
source ::/0 of ns/dns/UDP
node-addr 127.0.0.1 own-netns
node-addr 192.168.0.1
service-cidr 10.96.0.0/12
service-cidr fd00:10:96::/112
`
	if got := dump(t, f).Text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	d := dump(t, f)
	delete(d.Names, 2)
	delete(d.Backends, 1)
	s := d.Frontends[frontend("10.96.0.9:80", 6)]
	s.Inside = maps.SlotRange{Base: 31, Count: 2}
	d.Frontends[frontend("10.96.0.9:80", 6)] = s
	if got := d.SourceRangesOf(1); len(got) != 2 || got[0].String() != "0.0.0.0/1" {
		t.Errorf("sources of service 1: %v", got)
	}
	d.Sources[maps.SourceRangeKey{PrefixBits: 30, ServiceId: 9}] = true
	for _, w := range []string{"source :: with 30 bits of service id 9", "unnamed service 2", "free record 1", "inside=local[invalid: slots 31 to 33 of 32]"} {
		if !strings.Contains(d.Text(), w) {
			t.Errorf("%q is not said in\n%s", w, d.Text())
		}
	}
}

// A write does not happen if Fail returns an error. Every write calls Fail with its own name.
func TestFaulty(t *testing.T) {
	refused := errors.New("refused")
	writes := map[string]func(maps.Tables) error{
		"SetFrontend": func(t maps.Tables) error {
			return t.SetFrontend(frontend("10.0.0.1:1", 6), maps.Frontend{Id: 1, Kind: 1})
		},
		"DeleteFrontend":    func(t maps.Tables) error { return t.DeleteFrontend(frontend("10.96.0.1:80", 6)) },
		"WriteSlots":        func(t maps.Tables) error { return t.WriteSlots(3, []uint32{1}) },
		"SetBackend":        func(t maps.Tables) error { return t.SetBackend(1, record("10.0.0.1:1", 6, 7, 1)) },
		"FreeBackend":       func(t maps.Tables) error { return t.FreeBackend(2) },
		"SetName":           func(t maps.Tables) error { return t.SetName(2, maps.Name{Namespace: "n", Name: "n"}) },
		"DeleteName":        func(t maps.Tables) error { return t.DeleteName(1) },
		"SetNodeAddr":       func(t maps.Tables) error { return t.SetNodeAddr(addr("10.0.0.1"), 0) },
		"DeleteNodeAddr":    func(t maps.Tables) error { return t.DeleteNodeAddr(addr("10.0.0.9")) },
		"SetServiceCIDR":    func(t maps.Tables) error { return t.SetServiceCIDR(prefix("10.96.0.0/12")) },
		"DeleteServiceCIDR": func(t maps.Tables) error { return t.DeleteServiceCIDR(prefix("10.96.0.0/16")) },
		"SetSourceRange":    func(t maps.Tables) error { return t.SetSourceRange(source(1, "10.0.0.0/8")) },
		"DeleteSourceRange": func(t maps.Tables) error { return t.DeleteSourceRange(source(1, "1.0.0.0/8")) },
	}
	for method, write := range writes {
		fake := maps.NewFake(small)
		err := errors.Join(fake.SetName(1, maps.Name{Namespace: "a", Name: "b"}),
			fake.SetBackend(1, record("10.0.0.1:1", 6, 1, 1)), fake.SetBackend(2, record("10.0.0.2:1", 6, 1, 1)),
			fake.SetFrontend(frontend("10.96.0.1:80", 6), maps.Frontend{Id: 1, Kind: 1}), fake.SetNodeAddr(addr("10.0.0.9"), 0),
			fake.SetServiceCIDR(prefix("10.96.0.0/16")), fake.SetSourceRange(source(1, "1.0.0.0/8")))
		if err != nil {
			t.Fatal(err)
		}
		before := dump(t, fake)
		var asked []string
		faulty := &maps.Faulty{Tables: fake, Fail: func(m string) error { asked = append(asked, m); return refused }}
		if err := write(faulty); !errors.Is(err, refused) || len(asked) != 1 || asked[0] != method {
			t.Errorf("%s: error %v, asked %v", method, err, asked)
		}
		sameDump(t, before, dump(t, faulty))
		faulty.Fail = nil
		if err := write(faulty); err != nil {
			t.Errorf("%s: %v", method, err)
		}
		if method != "SetName" && dump(t, fake).Text() == before.Text() && method != "WriteSlots" && method != "DeleteName" {
			t.Errorf("%s changed nothing", method)
		}
	}
}
