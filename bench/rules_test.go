// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func testWorkload(services int) *workload {
	return &workload{Size: Size{services, 4}, Far: netip.MustParseAddr("10.244.1.2")}
}

// TestIPTablesDraw follows every service through the rules: it reaches the workload's
// endpoints, each with the same chance.
func TestIPTablesDraw(t *testing.T) {
	w := testWorkload(9)
	text := iptablesLoad(w)
	draws := map[string]map[string]float64{} // chances of endpoint chains by service chain
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
			ext := f.externalChain()
			for _, rule := range []string{fmt.Sprintf("--dport %d -j %s\n", f.NodePort, ext), fmt.Sprintf("-A %s -j %s\n", ext, f.serviceChain()),
				fmt.Sprintf("-A %s -m comment --comment \"masquerade traffic for %s external destinations\" -j KUBE-MARK-MASQ\n", ext, f.Name)} {
				if n := strings.Count(text, rule); n != 1 {
					t.Errorf("%d rules %q", n, rule)
				}
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
	if checked != 8*4+4*4+1 { // four have UDP
		t.Errorf("%d endpoints looked at", checked)
	}
}

// TestUpdatesTouchOneService: an update holds the changed service only, and for iptables
// the dispatch rules of all services, in the same order as before.
func TestUpdatesTouchOneService(t *testing.T) {
	before := testWorkload(9)
	after := *before
	after.Moved = true
	ipt, nft := iptablesUpdate(before, &after), nftablesUpdate(before, &after)
	if n := strings.Count(ipt, "\n-A KUBE-SERVICES "); n != 9+4+1 { // four have UDP; node ports
		t.Errorf("%d rules of dispatch", n)
	}
	if n := strings.Count(ipt, "\n-A KUBE-NODEPORTS "); n != 9+4 {
		t.Errorf("%d rules of dispatch of node ports", n)
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
		if !strings.Contains(text, "10.245.1.1") || strings.Contains(text, "10.245.0.") || strings.Contains(text, "10.244.1.") {
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

// TestNFTablesNames: the target of every jump exists, and each chain belongs to one
// endpoint.
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
	for _, what := range []string{"service-ips", "service-nodeports"} {
		if n := strings.Count(text, "add element ip kube-proxy "+what); n != 9+4 {
			t.Errorf("%d of %s", n, what)
		}
	}
}

// TestWorkloadEqual: shunt and the API server get the same services as the rules have.
func TestWorkloadEqual(t *testing.T) {
	w := testWorkload(1009)
	nodePorts := map[string]bool{}
	for i := range w.Services {
		svc, slice := w.objects(i)
		apiSvc, apiSlice := apiObjects(w, i)
		var got, fromAPI, want []string
		for n, port := range svc.Ports {
			for e, ep := range slice.Endpoints {
				got = append(got, fmt.Sprint(svc.ClusterIPs[0], port.Port, port.NodePort, port.Protocol,
					netip.AddrPortFrom(ep.Addr, slice.Ports[n].Port), ep.Node))
				apiPort, apiEndpoint := apiSvc.Spec.Ports[n], apiSlice.Endpoints[e]
				fromAPI = append(fromAPI, fmt.Sprint(apiSvc.Spec.ClusterIP, " ", apiPort.Port, apiPort.NodePort, " ", apiPort.Protocol, " ",
					apiEndpoint.Addresses[0], ":", *apiSlice.Ports[n].Port, " ", *apiEndpoint.NodeName))
			}
			if slice.Ports[n].Name != port.Name || slice.Ports[n].Protocol != port.Protocol || slice.Service != svc.Name {
				t.Errorf("slice %+v does not join port %+v", slice, port)
			}
			if key := fmt.Sprint(port.Protocol, port.NodePort); port.NodePort != 0 && nodePorts[key] {
				t.Errorf("node port %s twice", key)
			} else {
				nodePorts[key] = true
			}
		}
		for _, f := range w.frontends(i) {
			for _, b := range f.Backends {
				want = append(want, fmt.Sprint(f.Addr.Addr(), f.Addr.Port(), f.NodePort, f.Protocol, b, f.Node))
			}
		}
		words := func(lines []string) string { return strings.ReplaceAll(strings.Join(lines, "\n"), " ", "") }
		if words(got) != words(want) || words(fromAPI) != words(want) {
			t.Fatalf("service %d: %v and in the API %v, want %v", i, got, fromAPI, want)
		}
	}
	if w.nodePort(1007) == 0 || w.nodePort(1008) == 0 || w.nodePort(1001) != 0 {
		t.Error("the measured services have node ports, and those behind the first thousand have none")
	}
}

// TestSpread: the first and the last service are in it, each number once.
func TestSpread(t *testing.T) {
	for services := range 300 {
		if services < minServices {
			continue
		}
		all := spread(services, 100)
		if all[0] != 0 || all[len(all)-1] != services-1 || len(all) != min(services, 100) || !slices.IsSorted(all) ||
			len(slices.Compact(all)) != min(services, 100) {
			t.Fatalf("of %d: %v", services, all)
		}
	}
}
