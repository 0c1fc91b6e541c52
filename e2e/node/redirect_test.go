// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"shunt/lab"
)

// TestNoRedirects: a node that forwards a packet through the link it came from may report a
// shorter path to the sender (ICMP redirect). That path leads to the pod: a client must not
// use it for the service.
func TestNoRedirects(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Network{})
	c.backendServices()
	before := redirects(t, c.n1)
	eachWay(func(network string, family int) {
		for _, b := range backends {
			for _, f := range frontends {
				dst := f.of(c, b.service, family)
				for range 3 {
					if a := ask(c.outside, network, dst, 0); a.Err != nil {
						t.Errorf("%s, %s: %v", f.name, b.name, a.Err)
					}
				}
				out, err := runIn(c.outside, "", "ip", "route", "get", dst.Addr().String())
				if err != nil {
					t.Fatalf("ip route get: %v: %s", err, out)
				}
				if strings.Contains(out, "redirected") || strings.Contains(out, "via "+nodeAddrs(c.n2)[family].String()+" ") {
					t.Errorf("%s, %s: the client was led astray: %s", f.name, b.name, out)
				}
			}
		}
	})
	// For IPv6 a node redirects to link-local addresses only, and has no such route here.
	if redirects(t, c.n1) == before {
		t.Error("the node has told nobody of a shorter way by IPv4: nothing was tried")
	}
}

// redirects returns the number of IPv4 redirects that a node has sent.
func redirects(t *testing.T, n *lab.Node) (sent int) {
	t.Helper()
	err := n.Do(func() error {
		// The network of this thread, not of the process.
		text, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		var columns []string
		for line := range strings.Lines(string(text)) {
			words := strings.Fields(line)
			switch {
			case words[0] != "Icmp:":
			case columns == nil:
				columns = words
			default:
				sent, err = strconv.Atoi(words[slices.Index(columns, "OutRedirects")])
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sent
}
