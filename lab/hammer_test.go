// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	stdmaps "maps"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"shunt/lab"
)

func TestHammer(t *testing.T) {
	c := newCluster(t)
	for _, network := range []string{"tcp", "udp"} {
		for _, addr := range c.api.Addrs() {
			before := lab.Monotonic()
			s, err := c.client.Hammer(t.Context(), network, at(addr, 8080),
				lab.HammerOptions{Count: 500, Concurrency: 4, Records: true})
			check(t, err)
			after := lab.Monotonic()
			if s.Done != 500 || s.Answered != 500 || len(s.Errors) != 0 || !stdmaps.Equal(s.Servers, map[string]int{"api-0": 500}) {
				t.Fatalf("%s %v: %+v", network, addr, s)
			}
			for _, l := range []lab.Latency{s.Connect, s.Total} {
				if l.Min <= 0 || l.P50 < l.Min || l.P90 < l.P50 || l.P99 < l.P90 || l.Max < l.P99 {
					t.Errorf("%s %v: not a distribution: %+v", network, addr, l)
				}
			}
			if s.Total.P50 < s.Connect.P50 || len(s.Records) != 500 {
				t.Errorf("%s %v: %+v", network, addr, s)
			}
			for _, r := range s.Records {
				if r.Server != "api-0" || r.Errno != 0 || r.Start < before || r.Connected < r.Start || r.End < r.Connected || r.End > after {
					t.Fatalf("record %+v, not between %d and %d", r, before, after)
				}
			}
		}
	}
}

func TestHammerErrors(t *testing.T) {
	c := newCluster(t)
	s, err := c.client.Hammer(t.Context(), "tcp", at(c.api.Addr4(), 1), lab.HammerOptions{Count: 10})
	check(t, err)
	if s.Done != 10 || s.Answered != 0 || s.Errors[syscall.ECONNREFUSED] != 10 || s.FirstError == "" {
		t.Errorf("%+v", s)
	}
	s, err = c.client.Hammer(t.Context(), "udp", netip.MustParseAddrPort("10.96.0.1:53"),
		lab.HammerOptions{Count: 2, Timeout: 20 * time.Millisecond})
	check(t, err)
	if s.Errors[syscall.ETIMEDOUT] != 2 {
		t.Errorf("%+v", s)
	}
	if _, err = c.client.Hammer(t.Context(), "tcp", at(c.api.Addr4(), 1), lab.HammerOptions{}); err == nil {
		t.Error("a hammer without an end was started")
	}
}

func TestHammerRateAndStop(t *testing.T) {
	c := newCluster(t)
	s, err := c.client.Hammer(t.Context(), "tcp", at(c.web.Addr4(), 8080),
		lab.HammerOptions{Count: 51, Rate: 200, Concurrency: 2})
	check(t, err)
	if s.Done != 51 || s.Elapsed < 250*time.Millisecond {
		t.Errorf("51 at 200 a second: %d in %v", s.Done, s.Elapsed)
	}
	h := c.client.StartHammer("udp", at(c.web.Addr6(), 8080), lab.HammerOptions{Duration: time.Minute, Rate: 100})
	for range 3 { // it runs beside other requests
		if a := c.client.Ask("tcp", at(c.web.Addr4(), 8080)); a.Err != nil {
			t.Error(a.Err)
		}
	}
	s, err = h.Stop()
	check(t, err)
	if s.Elapsed > 30*time.Second || s.Done != s.Answered {
		t.Errorf("%+v", s)
	}
}

func TestCompare(t *testing.T) {
	c := newCluster(t)
	all, err := c.client.Compare(t.Context(), "tcp", []netip.AddrPort{at(c.web.Addr4(), 8080), at(c.api.Addr6(), 8080)},
		lab.CompareOptions{Rounds: 100, Records: true})
	check(t, err)
	for i, name := range []string{"web-0", "api-0"} {
		if s := all[i]; s.Answered != 100 || s.Servers[name] != 100 || len(s.Records) != 100 {
			t.Errorf("%+v, want 100 answers of %s", s, name)
		}
	}
}

// BenchmarkCompareSame measures the difference between two measurements of the same thing:
// the resolution of comparisons on this machine.
func BenchmarkCompareSame(b *testing.B) {
	l := lab.ForTest(b)
	n1, n2 := l.Node("n1"), l.Node("n2")
	client, web := n1.Pod("client"), n2.Pod("web-0")
	web.Serve("tcp", 8080)
	dst := at(web.Addr4(), 8080)
	for b.Loop() {
		all, err := client.Compare(b.Context(), "tcp", []netip.AddrPort{dst, dst}, lab.CompareOptions{Rounds: 5000})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(all[0].Connect.P50.Nanoseconds()), "connect-ns")
		b.ReportMetric(float64(all[0].Total.P50.Nanoseconds()), "total-ns")
		b.ReportMetric(float64(all[0].Connect.P50)/float64(all[1].Connect.P50), "connect-ratio")
		b.ReportMetric(float64(all[0].Total.P50)/float64(all[1].Total.P50), "total-ratio")
	}
}

// BenchmarkPod measures the time to make a pod, without its agent.
func BenchmarkPod(b *testing.B) {
	l := lab.ForTest(b)
	n := l.Node("n1")
	for b.Loop() {
		p := n.Pod("web-0")
		b.StopTimer()
		p.Remove()
		b.StartTimer()
	}
}
