// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"shunt/lb"
	"shunt/maps"
)

// frontendReport is one frontend as `shunt services -o json` prints it.
type frontendReport struct {
	// Address is "*" for a node port: every address that takes node ports.
	Address  string `json:"address"`
	Port     uint16 `json:"port,omitempty"`
	Protocol string `json:"protocol"`
	Kind     string `json:"kind"`
	Family   string `json:"family"`
	// Namespace, Service and PortName are empty for UndefinedPort.
	Namespace string `json:"namespace,omitempty"`
	Service   string `json:"service,omitempty"`
	PortName  string `json:"portName,omitempty"`
	// AffinitySeconds is 0 without session affinity.
	AffinitySeconds uint32 `json:"affinitySeconds,omitempty"`
	// InsidePolicy is for clients on this node, OutsidePolicy for packets from a
	// network: Cluster or Local.
	InsidePolicy  string `json:"insidePolicy,omitempty"`
	OutsidePolicy string `json:"outsidePolicy,omitempty"`
	// SourceRanges are the source ranges of a load-balancer IP; empty: all clients are let in.
	SourceRanges []string `json:"sourceRanges,omitempty"`
	// Inside and Outside are the backends that new connections from inside and from outside
	// may get.
	Inside  []backendReport `json:"inside"`
	Outside []backendReport `json:"outside"`
	// Problem describes why the frontend is not served as the Service asks. A frontend that
	// is not served at all has Kind "none".
	Problem string `json:"problem,omitempty"`
}

type backendReport struct {
	Address     string `json:"address"`
	Port        uint16 `json:"port"`
	Local       bool   `json:"local"`
	Terminating bool   `json:"terminating,omitempty"`
	// Connections is the number of connections and flows from this node since the
	// endpoint was added.
	Connections uint64 `json:"connections"`
}

func newServicesCommand() *cobra.Command {
	var root, output string
	c := &cobra.Command{
		Use:   "services [ADDRESS[:PORT]]",
		Short: "List frontends with their backends, policies and counts",
		Long: "Services lists what this node's maps hold: every frontend, or those of an address. It reads the pinned\n" +
			"maps, so it works with the daemon dead.",
		Example: "  shunt services\n  shunt services 10.96.0.10:53\n  shunt services '[fd00:10:96::a]:53' -o yaml",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			match := func(netip.AddrPort) bool { return true }
			if len(args) == 1 {
				var err error
				if match, err = parseMatch(args[0]); err != nil {
					return err
				}
			}
			list, err := readServices(root, match, len(args) == 0)
			if err != nil {
				return err
			}
			if len(args) == 1 && len(list) == 0 {
				return fmt.Errorf("no frontend has the address %s", args[0])
			}
			return writeServices(c.OutOrStdout(), output, list)
		},
	}
	addOutputFlag(c, &output, "json", "yaml")
	addBPFFSRootFlag(c, &root)
	return c
}

// parseMatch parses ADDRESS, ADDRESS:PORT or *:PORT, and returns a function that reports
// whether a frontend matches.
func parseMatch(s string) (func(netip.AddrPort) bool, error) {
	if rest, ok := strings.CutPrefix(s, "*:"); ok {
		s = "0.0.0.0:" + rest
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return func(o netip.AddrPort) bool {
			same := o.Addr() == ap.Addr() || ap.Addr().IsUnspecified() && o.Addr().IsUnspecified()
			return same && o.Port() == ap.Port()
		}, nil
	}
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		return nil, usageErrorf("%q is neither ADDRESS nor ADDRESS:PORT (an IPv6 address with a port goes in brackets)", s)
	}
	return func(o netip.AddrPort) bool { return o.Addr() == a }, nil
}

// readServices returns the frontends that match. all means that every frontend matches: the
// result then also contains the Services that have a problem and no frontend.
func readServices(root string, match func(netip.AddrPort) bool, all bool) ([]frontendReport, error) {
	set, kernel, err := openPins(root)
	if err != nil {
		return nil, err
	}
	defer func() { _ = errors.Join(kernel.Close(), set.Close()) }() // only read
	dump, err := kernel.Dump()
	if err != nil {
		return nil, err
	}
	list := []frontendReport{}
	for _, k := range dump.SortedFrontends() {
		if match(k.AddrPort()) {
			list = append(list, newFrontendReport(kernel, dump, k))
		}
	}
	problems, _ := kernel.Problems()
	return addProblems(list, problems, match, all), nil
}

func newFrontendReport(kernel *maps.Kernel, dump *maps.Dump, k maps.FrontendKey) frontendReport {
	svc := dump.Frontends[k]
	name := dump.Names[svc.Id]
	ap := k.AddrPort()
	r := frontendReport{
		Protocol: maps.ProtocolName(k.Protocol), Kind: maps.FrontendKind(svc.Kind).String(),
		Namespace: name.Namespace, Service: name.Name, PortName: name.Port,
		AffinitySeconds: svc.AffinitySeconds,
	}
	r.setAddress(ap)
	if maps.FrontendKind(svc.Kind) == maps.UndefinedPort {
		return r
	}
	r.InsidePolicy = policyName(svc.Flags&maps.InsideLocal != 0)
	r.OutsidePolicy = policyName(svc.Flags&maps.OutsideLocal != 0)
	if svc.Flags&maps.SourceRanges != 0 {
		for _, p := range dump.SourceRangesOf(svc.Id) {
			r.SourceRanges = append(r.SourceRanges, p.String())
		}
	}
	r.Inside = newBackendReports(kernel, dump, svc.Inside)
	r.Outside = newBackendReports(kernel, dump, svc.Outside)
	return r
}

func (r *frontendReport) setAddress(ap netip.AddrPort) {
	r.Address, r.Port, r.Family = ap.Addr().String(), ap.Port(), lb.FamilyOf(ap.Addr()).String()
	if ap.Addr().IsUnspecified() {
		r.Address = "*"
	}
}

func policyName(local bool) string {
	if local {
		return "Local"
	}
	return "Cluster"
}

// newBackendReports returns the backends of a slot range. A backend that was removed while
// the maps were read is left out.
func newBackendReports(kernel *maps.Kernel, dump *maps.Dump, r maps.SlotRange) []backendReport {
	list := []backendReport{}
	ids, err := dump.Range(r)
	if err != nil {
		return list
	}
	for _, id := range ids {
		be, ok := dump.Backends[id]
		if !ok {
			continue
		}
		ap := be.AddrPort()
		list = append(list, backendReport{
			Address: ap.Addr().String(), Port: ap.Port(),
			Local:       be.Flags&maps.OnNode != 0,
			Terminating: be.Flags&maps.Terminating != 0,
			Connections: kernel.Connections(id),
		})
	}
	return list
}

func writeServices(w io.Writer, output string, list []frontendReport) error {
	if output == "yaml" {
		text, err := yaml.Marshal(list)
		if err != nil {
			return fmt.Errorf("write YAML: %w", err)
		}
		_, err = w.Write(text)
		return err
	}
	return writeOutput(w, output, list, func(w io.Writer) { servicesTable(w, list) })
}

func servicesTable(w io.Writer, list []frontendReport) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	defer t.Flush()
	problems := anyProblem(list)
	header := "FRONTEND\tKIND\tSERVICE\tPOLICY\tAFFINITY\tBACKENDS\tCONNECTIONS"
	if problems {
		header += "\tPROBLEM"
	}
	fmt.Fprintln(t, header)
	for _, f := range list {
		backends, connections := backendsText(f.Inside)
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d", frontendText(f), f.Kind, serviceText(f), policyText(f), affinityText(f),
			backends, connections)
		if problems {
			fmt.Fprintf(t, "\t%s", f.Problem)
		}
		fmt.Fprintln(t)
	}
}

func serviceText(f frontendReport) string {
	switch {
	case f.Service == "":
		return ""
	case f.PortName == "":
		return f.Namespace + "/" + f.Service
	}
	return f.Namespace + "/" + f.Service + ":" + f.PortName
}

func policyText(f frontendReport) string {
	policy := "refused"
	if f.InsidePolicy != "" {
		policy = f.InsidePolicy
	}
	if f.OutsidePolicy != f.InsidePolicy {
		policy += ", outside " + f.OutsidePolicy
	}
	if len(f.SourceRanges) > 0 {
		policy += ", only from " + someOf(f.SourceRanges)
	}
	if f.Kind == notServed {
		policy = "not served"
	}
	return policy
}

func affinityText(f frontendReport) string {
	if f.AffinitySeconds > 0 {
		return fmt.Sprintf("ClientIP %ds", f.AffinitySeconds)
	}
	return "None"
}

func frontendText(f frontendReport) string {
	host := f.Address
	if host == "" {
		return "none"
	}
	if f.Family == "IPv6" {
		host = "[" + host + "]"
	}
	if f.Port == 0 {
		return host + " other ports"
	}
	return fmt.Sprintf("%s:%d/%s", host, f.Port, f.Protocol)
}

func backendsText(list []backendReport) (text string, connections uint64) {
	var names []string
	for _, b := range list {
		connections += b.Connections
		a, _ := netip.ParseAddr(b.Address)
		names = append(names, netip.AddrPortFrom(a, b.Port).String())
	}
	if len(list) == 0 {
		return "none", 0
	}
	return someOf(names), connections
}

// someOf returns the first three names, and the number of the others.
func someOf(names []string) string {
	if more := len(names) - 3; more > 0 {
		names = append(names[:3:3], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ",")
}
