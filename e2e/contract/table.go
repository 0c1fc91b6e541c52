// SPDX-License-Identifier: Apache-2.0

package contract

import (
	_ "embed" // the table
	"fmt"
	"slices"
	"strings"
)

//go:embed table.txt
var text string

// Client is a kind of client.
type Client string

// The clients. "This node" is the one whose maps and programs are tested.
const (
	Pod       Client = "pod"       // a pod of this node
	Node      Client = "node"      // a process in this node's own network
	Neighbour Client = "neighbour" // a pod of another node, whose packets arrive here
	Outside   Client = "outside"   // a machine outside the cluster
)

// OnNode reports whether the client's sockets are on this node.
func (c Client) OnNode() bool { return c == Pod || c == Node }

// Frontend is the kind of address that is asked.
type Frontend string

// The kinds of frontend.
const (
	ClusterIP      Frontend = "cluster-ip"
	NodePort       Frontend = "node-port"
	LoadBalancerIP Frontend = "load-balancer-ip"
	ExternalIP     Frontend = "external-ip"
)

// Policies are the traffic policies of a service. A policy that is not named is Cluster.
type Policies string

// The policies.
const (
	Default       Policies = "default"
	ExternalLocal Policies = "external-local"
	InternalLocal Policies = "internal-local"
)

// Endpoints is the set of endpoints of a service. table.txt describes each.
type Endpoints string

// The sets of endpoints.
const (
	None        Endpoints = "none"
	Local       Endpoints = "local"
	Remote      Endpoints = "remote"
	Both        Endpoints = "both"
	Terminating Endpoints = "terminating"
	Mixed       Endpoints = "mixed"
)

// The verdicts of cells.
const (
	Refused = "refused"
	Dropped = "dropped"
)

// SeenAsNode after a server's name means that it sees this node's address.
const SeenAsNode = "*"

// The dimensions of the table, in its order.
var (
	Clients      = []Client{Pod, Node, Neighbour, Outside}
	Frontends    = []Frontend{ClusterIP, NodePort, LoadBalancerIP, ExternalIP}
	AllPolicies  = []Policies{Default, ExternalLocal, InternalLocal}
	AllEndpoints = []Endpoints{None, Local, Remote, Both, Terminating, Mixed}
)

// Case is a cell of the table. It is the same for both families and protocols.
type Case struct {
	Client    Client
	Frontend  Frontend
	Policies  Policies
	Endpoints Endpoints
	// Want is Refused, Dropped, or the servers in the form of Text.
	Want string
}

// String returns the name of the case's test.
func (c Case) String() string {
	return fmt.Sprintf("%s/%s/%s/%s", c.Client, c.Frontend, c.Policies, c.Endpoints)
}

// Verdict reports whether no server may answer.
func (c Case) Verdict() bool { return c.Want == Refused || c.Want == Dropped }

// Servers returns the names of the servers that may answer, sorted.
func (c Case) Servers() []string {
	if c.Verdict() {
		return nil
	}
	return strings.Split(strings.ReplaceAll(c.Want, SeenAsNode, ""), ",")
}

// Text returns servers in the form of cells: sorted, separated by commas, each with
// SeenAsNode if it saw the node.
func Text(servers map[string]bool) string {
	var all []string
	for s := range servers {
		all = append(all, s)
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}

// Cases returns the whole table. The error describes a mistake in table.txt: it must have
// every combination once.
func Cases() ([]Case, error) {
	var all []Case
	seen := map[string]bool{}
	head := false
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		if len(words) != 3+len(AllEndpoints) {
			return nil, fmt.Errorf("table.txt: %d columns in %q", len(words), line)
		}
		if !head {
			head = true
			for i, e := range AllEndpoints {
				if words[3+i] != string(e) {
					return nil, fmt.Errorf("table.txt: column %q, want %q", words[3+i], e)
				}
			}
			continue
		}
		for i, e := range AllEndpoints {
			c := Case{Client(words[0]), Frontend(words[1]), Policies(words[2]), e, words[3+i]}
			if seen[c.String()] || !known(c) {
				return nil, fmt.Errorf("table.txt: %s: %q is there twice or makes no sense", c, c.Want)
			}
			seen[c.String()] = true
			all = append(all, c)
		}
	}
	if want := len(Clients) * len(Frontends) * len(AllPolicies) * len(AllEndpoints); len(all) != want {
		return nil, fmt.Errorf("table.txt: %d cells, want %d", len(all), want)
	}
	return all, nil
}

// known reports whether a case consists of defined words.
func known(c Case) bool {
	if !slices.Contains(Clients, c.Client) || !slices.Contains(Frontends, c.Frontend) || !slices.Contains(AllPolicies, c.Policies) {
		return false
	}
	if c.Verdict() {
		return true
	}
	for _, s := range c.Servers() {
		if !slices.ContainsFunc(servers[c.Endpoints], func(o endpoint) bool { return o.server == s && o.serving }) {
			return false
		}
	}
	return true
}
