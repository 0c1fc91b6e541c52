// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"shunt/lab"
)

// Names of contenders, in the order of the report. The second half watches an API server.
const (
	nameDirect   = "direct"
	nameShunt    = "shunt"
	nameIPTables = "iptables"
	nameNFTables = "nftables"
	nameIPVS     = "ipvs"

	nameShuntAPI     = "shunt-api"
	kubeProxyPrefix  = "kube-proxy-"
	nameKubeIPTables = kubeProxyPrefix + nameIPTables
	nameKubeNFTables = kubeProxyPrefix + nameNFTables
	nameKubeIPVS     = kubeProxyPrefix + nameIPVS
)

// Names are the names of all contenders.
var Names = []string{nameDirect, nameShunt, nameIPTables, nameNFTables, nameIPVS,
	nameShuntAPI, nameKubeIPTables, nameKubeNFTables, nameKubeIPVS}

// Defaults returns the contenders of a run whose options name none. api: there is an API
// server.
func Defaults(api bool) []string {
	if api {
		return []string{nameDirect, nameShuntAPI, nameKubeIPTables, nameKubeNFTables, nameKubeIPVS}
	}
	return []string{nameDirect, nameShunt, nameIPTables, nameNFTables, nameIPVS}
}

// needsAPI reports whether a contender watches an API server.
func needsAPI(name string) bool {
	return name == nameShuntAPI || strings.HasPrefix(name, kubeProxyPrefix)
}

// step is prepared work whose duration is measured.
type step func(context.Context) error

// contender is a service proxy of one node. To add one: a type, a name, a case in
// newContender.
type contender interface {
	// load prepares to put the workload into effect on an empty node. The step may return
	// before the workload is in effect.
	load(context.Context, *workload) (step, error)
	// update prepares to move the endpoint.
	update(before, after *workload) (step, error)
	// memory returns the memory that the contender uses.
	memory() (memoryUse, error)
	// unload removes everything.
	unload(context.Context) error
}

// memoryUse is a contender's memory in MiB. A negative number means that the contender
// cannot measure it.
type memoryUse struct{ process, kernel float64 }

var cannotTell = memoryUse{-1, -1}

// newContender returns the contender of that name for a node, or nil and the reason why it
// cannot run here.
func (r *runner) newContender(name string, n *lab.Node) (contender, ContenderInfo) {
	i := ContenderInfo{Name: name}
	switch name {
	case nameDirect:
		i.What = "the pod's own address, on a node without proxy and rules: the limit"
		return direct{}, i
	case nameShunt:
		i.What = "this program's store, loop, maps and programs in a process of their own, with services from memory instead " +
			"of a watcher"
		i.Version = buildVersion()
		return &shunt{node: n}, i
	case nameIPTables, nameNFTables:
		return newRules(name, n)
	case nameIPVS:
		i.What = "kube-proxy's ipvs mode"
		if i.Missing = noIPVS(); i.Missing == "" {
			i.Missing = "it is measured by the real kube-proxy only: give --kubeconfig and --kube-proxy, and ask for " + nameKubeIPVS
		}
		return nil, i
	case nameShuntAPI:
		i.What = "this program's daemon, `shunt run`, which watches the API server"
		i.Version = buildVersion()
		if r.api == nil {
			i.Missing = noAPI
			return nil, i
		}
		return &subscriber{name: name, node: n, api: r.api, args: shuntArgs(n), clean: cleanShunt(n)}, i
	}
	return r.newKubeProxy(name, n)
}

const noAPI = "it needs an API server: --kubeconfig (`make bench` starts one)"

// newKubeProxy returns the real kube-proxy in the mode that the name ends with.
func (r *runner) newKubeProxy(name string, n *lab.Node) (contender, ContenderInfo) {
	mode := strings.TrimPrefix(name, kubeProxyPrefix)
	i := ContenderInfo{Name: name, What: "the real kube-proxy in " + mode + " mode, which watches the API server"}
	switch {
	case r.api == nil:
		i.Missing = noAPI
	case r.KubeProxy == "":
		i.Missing = "it needs the program: --kube-proxy (`make bench` builds it)"
	case mode == nameIPVS:
		i.Missing = noIPVS()
	case mode == nameIPTables || mode == nameNFTables:
		_, i.Missing = toolVersion(mode)
	}
	if i.Missing != "" {
		return nil, i
	}
	out, err := exec.Command(r.KubeProxy, "--version").Output()
	if err != nil {
		i.Missing = fmt.Sprintf("%s --version: %v", r.KubeProxy, err)
		return nil, i
	}
	i.Version = strings.TrimPrefix(strings.TrimSpace(string(out)), "Kubernetes ")
	return &subscriber{name: name, node: n, api: r.api, args: kubeProxyArgs(r.KubeProxy, mode), clean: cleanRules}, i
}

// noIPVS returns why the kernel has no IPVS, empty if it has.
func noIPVS() string {
	if _, err := os.Stat("/proc/net/ip_vs"); err != nil {
		return "this kernel has no IPVS (no /proc/net/ip_vs: not built in, or the module ip_vs is not loaded)"
	}
	return ""
}

// direct is a node with no proxy and no rules: the limit for all other contenders.
type direct struct{}

func (direct) load(context.Context, *workload) (step, error) { return nil, nil }
func (direct) update(_, _ *workload) (step, error)           { return nil, nil }
func (direct) memory() (memoryUse, error)                    { return cannotTell, nil }
func (direct) unload(context.Context) error                  { return nil }

// rules is a contender of rule sets. This package writes them with kube-proxy's structure,
// and the same tools load them.
type rules struct {
	name string
	node *lab.Node
	host *lab.Pod // the node's own processes
}

func newRules(name string, n *lab.Node) (contender, ContenderInfo) {
	r := &rules{name: name, node: n, host: n.HostPod("rules")}
	i := ContenderInfo{Name: name, What: "rules of the structure that kube-proxy's " + name + " mode writes, loaded by " +
		toolOf(name) + "; not kube-proxy itself"}
	if i.Version, i.Missing = toolVersion(name); i.Missing == "" {
		i.Missing = r.probe()
	}
	if i.Missing != "" {
		return nil, i
	}
	return r, i
}

// toolOf returns the program that loads the rules of a mode.
func toolOf(mode string) string {
	if mode == nameIPTables {
		return "iptables-restore"
	}
	return "nft"
}

// toolVersion returns the version of a mode's tool, or why the tool is missing.
func toolVersion(mode string) (version, missing string) {
	tool := toolOf(mode)
	path, err := exec.LookPath(tool)
	if err != nil {
		return "", tool + " is not installed (Debian package " + mode + ")"
	}
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return "", fmt.Sprintf("%s --version: %v", filepath.Base(path), err)
	}
	return strings.TrimSpace(string(out)), ""
}

// probe loads and unloads a few services. It returns why that fails, empty if it succeeds.
func (r *rules) probe() string {
	w := &workload{Size: Size{minServices, 2}, Far: lab.ClusterCIDR4.Addr()}
	ctx := context.Background()
	load, err := r.load(ctx, w)
	if err == nil {
		err = errors.Join(load(ctx), r.unload(ctx))
	}
	if err != nil {
		return "this kernel does not take its rules: " + err.Error()
	}
	return ""
}

func (r *rules) load(_ context.Context, w *workload) (step, error) {
	if r.name == nameIPTables {
		return toolStep(r.host, iptablesLoad(w), "iptables-restore", "-w", "5"), nil
	}
	return toolStep(r.host, nftablesLoad(w), "nft", "-f", "-"), nil
}

func (r *rules) update(before, after *workload) (step, error) {
	if r.name == nameIPTables {
		return toolStep(r.host, iptablesUpdate(before, after), "iptables-restore", "-w", "5", "--noflush", "--counters"), nil
	}
	return toolStep(r.host, nftablesUpdate(before, after), "nft", "-f", "-"), nil
}

func (r *rules) unload(ctx context.Context) error {
	if r.name == nameIPTables {
		return toolStep(r.host, "*filter\nCOMMIT\n*nat\nCOMMIT\n", "iptables-restore", "-w", "5")(ctx)
	}
	return toolStep(r.host, "delete table ip kube-proxy\n", "nft", "-f", "-")(ctx)
}

func (r *rules) memory() (memoryUse, error) { return cannotTell, nil }

// toolStep returns a step that runs a tool with that input in a pod's network namespace.
func toolStep(host *lab.Pod, input, tool string, args ...string) step {
	return func(ctx context.Context) error {
		path, err := exec.LookPath(tool)
		if err != nil {
			return err
		}
		var said bytes.Buffer
		cmd := host.Command(ctx, path, args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &said, &said
		if err := cmd.Run(); err != nil {
			text := said.String()
			return fmt.Errorf("%s on node %s: %w: %s", tool, host.Node().Name(), err, strings.TrimSpace(text[:min(len(text), 500)]))
		}
		return nil
	}
}
