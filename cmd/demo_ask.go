// SPDX-License-Identifier: Apache-2.0

//go:build !node

package cmd

import (
	"context"
	"errors"
	"fmt"
	stdmaps "maps"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"shunt/lab"
)

// demoExpect is the expected outcome of a question.
type demoExpect string

const (
	// expectAll: every request is answered, and every endpoint answers some of them.
	expectAll demoExpect = "answers of all endpoints"
	// expectSame: every request is answered, by the same endpoint.
	expectSame demoExpect = "answers of one endpoint"
	// expectRefused: every request fails with ECONNREFUSED.
	expectRefused demoExpect = "refused"
)

const (
	// demoRounds is how often each question is asked. The probability that 200 random
	// choices between two endpoints are all the same is 1 in 2^199.
	demoRounds = 200
	// demoRefusals is how often a question is asked whose expected outcome is a refusal.
	demoRefusals = 10
	demoTimeout  = 2 * time.Second
)

// demoQuestion is one line of the table.
type demoQuestion struct {
	from        *lab.Pod
	fromName    string
	what        string // the frontend in words
	network     string // as lab.Pod.Request takes it
	dst         netip.AddrPort
	direct      []netip.AddrPort // the endpoints behind it
	servers     []string         // their names
	unconnected bool             // UDP by sendto
	expect      demoExpect
}

// demoResult is a question with its outcome.
type demoResult struct {
	From     string         `json:"from"`
	Frontend string         `json:"frontend"`
	Address  netip.AddrPort `json:"address"`
	Protocol string         `json:"protocol"`
	Expected demoExpect     `json:"expected"`
	OK       bool           `json:"ok"`
	// Problem describes the difference from the expected outcome.
	Problem  string `json:"problem,omitempty"`
	Requests int    `json:"requests"`
	// Answers is the number of answers by the name of the pod that answered.
	Answers map[string]int `json:"answers,omitempty"`
	Refused int            `json:"refused,omitempty"`
	// Service and Direct are medians of connect, request and reply, in microseconds:
	// through the service, and directly to the endpoint that the service had chosen in
	// the same round.
	Service float64 `json:"serviceMicroseconds,omitempty"`
	Direct  float64 `json:"directMicroseconds,omitempty"`
	Ratio   float64 `json:"ratio,omitempty"`
}

// questions returns all questions, in both families.
func (c *demoCluster) questions() []demoQuestion {
	type row struct {
		from         *lab.Pod
		what         string
		network      string
		v4, v6       string // address
		port         uint16
		expect       demoExpect
		sendto, only bool // by sendto; only the first family
	}
	pod, host, far := c.client[0], c.hosts[0], c.client[1]
	n1v4, n1v6 := c.nodes[0].Addr4().String(), c.nodes[0].Addr6().String()
	rows := []row{
		{pod, "web: cluster IP", "tcp", "10.96.0.10", "fd00:10:96::10", 80, expectAll, false, false},
		{pod, "web: cluster IP, v4-mapped", "tcp6", "10.96.0.10", "", 80, expectAll, false, true},
		{pod, "dns: cluster IP", "udp", "10.96.0.11", "fd00:10:96::11", 53, expectAll, false, false},
		{pod, "dns: cluster IP, by sendto", "udp", "10.96.0.11", "fd00:10:96::11", 53, expectAll, true, false},
		{pod, "edge: load-balancer IP", "tcp", "198.51.100.10", "fd00:198:51:100::10", 80, expectAll, false, false},
		{pod, "edge: external IP", "udp", "198.51.100.20", "fd00:198:51:100::20", 53, expectAll, false, false},
		{pod, "edge: node port, node's address", "tcp", n1v4, n1v6, 30080, expectAll, false, false},
		{pod, "cart: cluster IP, session affinity", "tcp", "10.96.0.13", "fd00:10:96::13", 80, expectSame, false, false},
		{pod, "empty: no endpoints", "tcp", "10.96.0.14", "fd00:10:96::14", 80, expectRefused, false, false},
		{pod, "empty: no endpoints", "udp", "10.96.0.14", "fd00:10:96::14", 53, expectRefused, false, false},
		{host, "web: cluster IP", "tcp", "10.96.0.10", "fd00:10:96::10", 80, expectAll, false, false},
		{host, "dns: cluster IP", "udp", "10.96.0.11", "fd00:10:96::11", 53, expectAll, false, false},
		{host, "edge: node port, loopback", "tcp", "127.0.0.1", "::1", 30080, expectAll, false, false},
		{host, "edge: node port, loopback", "udp", "127.0.0.1", "::1", 30053, expectAll, false, false},
		{host, "edge: node port, node's address", "udp", n1v4, n1v6, 30053, expectAll, false, false},
		{host, "edge: load-balancer IP", "tcp", "198.51.100.10", "fd00:198:51:100::10", 80, expectAll, false, false},
		{host, "empty: no endpoints", "tcp", "10.96.0.14", "fd00:10:96::14", 80, expectRefused, false, false},
		{far, "web: cluster IP", "tcp", "10.96.0.10", "fd00:10:96::10", 80, expectAll, false, false},
		{far, "dns: cluster IP", "udp", "10.96.0.11", "fd00:10:96::11", 53, expectAll, false, false},
	}
	names := map[*lab.Pod]string{pod: "pod on n1", host: "node n1", far: "pod on n2"}
	var all []demoQuestion
	for _, r := range rows {
		addrs := []string{r.v4, r.v6}
		if r.only {
			addrs = addrs[:1]
		}
		port := uint16(demoTCPPort)
		if strings.HasPrefix(r.network, "udp") {
			port = demoUDPPort
		}
		for _, text := range addrs {
			addr := netip.MustParseAddr(text)
			all = append(all, demoQuestion{
				from: r.from, fromName: names[r.from], what: r.what, network: r.network,
				dst: netip.AddrPortFrom(addr, r.port), direct: c.direct(addr, port),
				servers: []string{c.web[0].Name(), c.web[1].Name()}, unconnected: r.sendto, expect: r.expect,
			})
		}
	}
	return all
}

// ask makes one request and checks all addresses of the exchange. Then it makes many requests
// and measures them. It returns an error if it could not send requests; a wrong answer is
// reported in the result.
func (q demoQuestion) ask(ctx context.Context) (demoResult, error) {
	if err := ctx.Err(); err != nil {
		return demoResult{}, err
	}
	r := demoResult{From: q.fromName, Frontend: q.what, Address: q.dst, Protocol: strings.ToUpper(q.network[:3]), Expected: q.expect}
	var err error
	if q.expect == expectRefused {
		q.askRefused(&r)
	} else if r.Problem = q.look(); r.Problem == "" {
		err = q.measure(ctx, &r)
	}
	r.OK = r.Problem == ""
	return r, err
}

func (q demoQuestion) askRefused(r *demoResult) {
	var took []time.Duration
	for range demoRefusals {
		a := q.from.Request(q.network, q.dst, lab.RequestOptions{Timeout: demoTimeout})
		r.Requests++
		if !errors.Is(a.Err, syscall.ECONNREFUSED) {
			r.Problem = fmt.Sprintf("answered by %q, error %v", a.Server, a.Err)
			return
		}
		r.Refused++
		took = append(took, a.Total)
	}
	r.Service = microseconds(median(took))
}

// look checks the addresses that the client and the server see in one request. It returns the
// fault, "" if there is none.
func (q demoQuestion) look() string {
	a := q.from.Request(q.network, q.dst, lab.RequestOptions{Timeout: demoTimeout, Unconnected: q.unconnected})
	peer := netip.AddrPortFrom(a.Peer.Addr().Unmap(), a.Peer.Port())
	local := netip.AddrPortFrom(a.Local.Addr().Unmap(), a.Local.Port())
	switch {
	case a.Err != nil:
		return a.Err.Error()
	case q.unconnected && a.From != q.dst:
		return fmt.Sprintf("recvfrom said %v instead of the service's address", a.From)
	case !q.unconnected && peer != q.dst:
		return fmt.Sprintf("getpeername said %v instead of the service's address", a.Peer)
	case !q.unconnected && a.ClientSeen != local:
		return fmt.Sprintf("the server saw %v instead of the client's own %v", a.ClientSeen, local)
	}
	return ""
}

// measure asks the service and all its endpoints in turn.
func (q demoQuestion) measure(ctx context.Context, r *demoResult) error {
	all, err := q.from.Compare(ctx, q.network, append([]netip.AddrPort{q.dst}, q.direct...),
		lab.CompareOptions{Rounds: demoRounds, Timeout: demoTimeout, Unconnected: q.unconnected, Records: true})
	if err != nil {
		return fmt.Errorf("ask from %s: %w", q.fromName, err)
	}
	service := all[0]
	r.Requests, r.Answers = service.Done, service.Servers
	r.Problem = q.judge(service)
	for i, direct := range all[1:] {
		if r.Problem == "" && direct.Answered != demoRounds {
			r.Problem = fmt.Sprintf("%s does not always answer by itself: %s", q.servers[i], direct.FirstError)
		}
	}
	if r.Problem != "" {
		return nil
	}
	through, beside := sameRounds(all, q.servers)
	r.Service, r.Direct = microseconds(through), microseconds(beside)
	r.Ratio = float64(through) / float64(beside)
	return nil
}

// judge returns how the answers differ from the expected outcome, "" if they do not.
func (q demoQuestion) judge(s lab.Summary) string {
	names := slices.Sorted(stdmaps.Keys(s.Servers))
	switch {
	case s.Done != demoRounds:
		return fmt.Sprintf("asked %d times instead of %d", s.Done, demoRounds)
	case s.Answered != s.Done:
		return fmt.Sprintf("%d of %d requests failed, the first with: %s", s.Done-s.Answered, s.Done, s.FirstError)
	case q.expect == expectSame && len(names) == 1 && slices.Contains(q.servers, names[0]):
		return ""
	case q.expect == expectAll && slices.Equal(names, q.servers):
		return ""
	}
	return "answered by " + strings.Join(names, ", ")
}

// sameRounds returns the median of the exchanges with the service, and the median of the
// direct exchanges in the same rounds with the endpoint that the service had chosen.
func sameRounds(all []lab.Summary, servers []string) (service, direct time.Duration) {
	var s, d []time.Duration
	for round, record := range all[0].Records {
		other := all[1+slices.Index(servers, record.Server)].Records[round]
		s = append(s, time.Duration(record.End-record.Start))
		d = append(d, time.Duration(other.End-other.Start))
	}
	return median(s), median(d)
}

// median returns the median of at least one sample. It sorts the samples.
func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
