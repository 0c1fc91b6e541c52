package bench

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func testWorkload(services int) *workload {
	return &workload{Services: services, Endpoints: 4, Server: netip.MustParseAddr("10.244.1.2"), Next: netip.MustParseAddr("10.244.1.3")}
}

// TestIPTablesDraw follows every service through the rules: the endpoints are
// the workload's, each with the same chance.
func TestIPTablesDraw(t *testing.T) {
	w := testWorkload(9)
	text := iptablesLoad(w)
	draws := map[string]map[string]float64{} // chance of an endpoint chain by service chain
	rest := map[string]float64{}
	target := map[string]string{}
	declared := map[string]bool{}
	chance := regexp.MustCompile(`--probability ([0-9.]+)`)
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		jump := words[len(words)-1]
		switch {
		case strings.HasPrefix(words[0], ":"):
			declared[words[0][1:]] = true
		case strings.HasPrefix(jump, "KUBE-SEP-"):
			svc, p := words[1], 1.0
			if m := chance.FindStringSubmatch(line); m != nil {
				p, _ = strconv.ParseFloat(m[1], 64)
			}
			if draws[svc] == nil {
				draws[svc], rest[svc] = map[string]float64{}, 1
			}
			draws[svc][jump] = rest[svc] * p
			rest[svc] *= 1 - p
		case strings.Contains(line, "-j DNAT"):
			target[words[1]] = jump
		}
		if words[0] == "-A" && strings.HasPrefix(jump, "KUBE-") && !declared[jump] {
			t.Errorf("no chain for %q", line)
		}
	}
	checked := 0
	for i := range w.Services {
		for _, f := range w.frontends(i) {
			dispatch := fmt.Sprintf("-p %s -d %s --dport %d -j %s\n", f.proto(), f.Addr.Addr(), f.Addr.Port(), f.serviceChain())
			if n := strings.Count(text, dispatch); n != 1 {
				t.Errorf("%d rules %q", n, dispatch)
			}
			for e, b := range f.Backends {
				want := 1 / float64(len(f.Backends))
				if got := draws[f.serviceChain()][f.endpointChain(e)]; got < want-1e-6 || got > want+1e-6 {
					t.Errorf("%s to %v with a chance of %v, want %v", f.Name, b, got, want)
				}
				if target[f.endpointChain(e)] != b.String() {
					t.Errorf("%s goes to %s, want %v", f.endpointChain(e), target[f.endpointChain(e)], b)
				}
				checked++
			}
		}
	}
	if checked != 8*4+2*4+1 {
		t.Errorf("%d endpoints looked at", checked)
	}
}

// TestUpdatesTouchOneService: an update holds what changed, and of iptables the
// dispatch of all services, in the order of before.
func TestUpdatesTouchOneService(t *testing.T) {
	before := testWorkload(9)
	after := *before
	after.Moved = true
	ipt, nft := iptablesUpdate(before, &after), nftablesUpdate(before, &after)
	if n := strings.Count(ipt, "\n-A KUBE-SERVICES "); n != 9+2+1 { // two have UDP; node ports
		t.Errorf("%d rules of dispatch", n)
	}
	dispatch := func(text string) (all []string) {
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "-A KUBE-SERVICES ") && strings.Contains(line, "cluster IP") {
				all = append(all, line)
			}
		}
		return all
	}
	if a, b := dispatch(iptablesLoad(before)), dispatch(ipt); strings.Join(a, "") != strings.Join(b, "") {
		t.Errorf("dispatch\n%v\nbecomes\n%v", a, b)
	}
	for _, text := range []string{ipt, nft} {
		if !strings.Contains(text, "10.244.1.3") || strings.Contains(text, "10.244.1.2") || strings.Contains(text, "100.0.") {
			t.Errorf("more or less than the moved endpoint in\n%s", text)
		}
	}
	if n := strings.Count(ipt, "-j DNAT"); n != 1 {
		t.Errorf("%d endpoints in\n%s", n, ipt)
	}
	if n := strings.Count(nft, "dnat to"); n != 1 {
		t.Errorf("%d endpoints in\n%s", n, nft)
	}
}

// TestNFTablesNames: what rules jump to is there, and chains are of one
// endpoint each.
func TestNFTablesNames(t *testing.T) {
	text := nftablesLoad(testWorkload(9))
	chains := map[string]bool{}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if words[0] == "add" && words[1] == "chain" {
			if chains[words[4]] {
				t.Errorf("chain %s twice", words[4])
			}
			chains[words[4]] = true
		}
	}
	for _, m := range regexp.MustCompile(`(?:goto|jump) ([a-z0-9A-Z-]+)`).FindAllStringSubmatch(text, -1) {
		if !chains[m[1]] {
			t.Errorf("no chain %s", m[1])
		}
	}
	if n := strings.Count(text, "add element ip kube-proxy service-ips"); n != 9+2 {
		t.Errorf("%d services", n)
	}
}

// TestWorkloadEqual: what shunt gets is what the rules say.
func TestWorkloadEqual(t *testing.T) {
	w := testWorkload(9)
	for i := range w.Services {
		svc, list := w.objects(i)
		var got, want []string
		for n, port := range svc.Ports {
			for _, e := range list[n].Endpoints {
				got = append(got, fmt.Sprint(svc.ClusterIPs[0], port.Port, port.Protocol, netip.AddrPortFrom(e.Addr, list[n].Ports[0].Port)))
			}
			if list[n].Ports[0].Name != port.Name || list[n].Ports[0].Protocol != port.Protocol || list[n].Service != svc.Name {
				t.Errorf("slice %+v does not join port %+v", list[n], port)
			}
		}
		for _, f := range w.frontends(i) {
			for _, b := range f.Backends {
				want = append(want, fmt.Sprint(f.Addr.Addr(), f.Addr.Port(), f.Protocol, b))
			}
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("service %d: %v, want %v", i, got, want)
		}
	}
}
