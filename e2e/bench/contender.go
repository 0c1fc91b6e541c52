package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"shunt/e2e/lab"
)

// Names of contenders, in the order of the report.
const (
	nameDirect   = "direct"
	nameShunt    = "shunt"
	nameIPTables = "iptables"
	nameNFTables = "nftables"
	nameIPVS     = "ipvs"
)

// Names of all contenders there are.
var Names = []string{nameDirect, nameShunt, nameIPTables, nameNFTables, nameIPVS}

// step is something prepared, to be done while a clock runs.
type step func(context.Context) error

// contender makes services work on one node. To add one: a type, a name, a
// line in newContender.
type contender interface {
	info() ContenderInfo
	// load prepares to put the workload into effect on a node that has nothing.
	load(context.Context, *workload) (step, error)
	// update prepares what the moved endpoint takes.
	update(before, after *workload) (step, error)
	// memory is what it has for itself, in MiB; see memoryUse.
	memory() (memoryUse, error)
	// unload takes everything away again.
	unload(context.Context) error
}

// memoryUse of a contender in MiB; negative: it can't tell by itself.
type memoryUse struct{ process, kernel float64 }

var cannotTell = memoryUse{-1, -1}

// newContender gives the contender of that name for a node; nil and the reason
// where it cannot run here.
func newContender(name string, n *lab.Node) (contender, ContenderInfo) {
	switch name {
	case nameDirect:
		return direct{}, direct{}.info()
	case nameShunt:
		s := &shunt{node: n}
		return s, s.info()
	case nameIPTables, nameNFTables:
		r := &rules{name: name, node: n}
		i := r.info()
		if i.Missing == "" {
			i.Missing = r.probe()
		}
		if i.Missing != "" {
			return nil, i
		}
		return r, i
	}
	i := ContenderInfo{Name: nameIPVS, What: "kube-proxy's ipvs mode",
		Missing: "this version of the benchmark has no contender for it yet"}
	if _, err := os.Stat("/proc/net/ip_vs"); err != nil {
		i.Missing = "this kernel has no IPVS (no /proc/net/ip_vs: not built in, or the module ip_vs is not loaded)"
	}
	return nil, i
}

// direct is the limit: a node with no proxy and no rules.
type direct struct{}

func (direct) info() ContenderInfo {
	return ContenderInfo{Name: nameDirect, What: "the pod's own address, on a node without proxy and rules: the limit"}
}
func (direct) load(context.Context, *workload) (step, error) { return nil, nil }
func (direct) update(_, _ *workload) (step, error)           { return nil, nil }
func (direct) memory() (memoryUse, error)                    { return cannotTell, nil }
func (direct) unload(context.Context) error                  { return nil }

// rules is a contender of rule sets, written here with the structure that
// kube-proxy gives them and loaded by the same tools.
type rules struct {
	name string
	node *lab.Node
	host *lab.Pod // the node's own processes
}

func (r *rules) tool() string {
	if r.name == nameIPTables {
		return "iptables-restore"
	}
	return "nft"
}

func (r *rules) info() ContenderInfo {
	i := ContenderInfo{Name: r.name, What: "rules of the structure that kube-proxy's " + r.name + " mode writes, loaded by " +
		r.tool() + "; not kube-proxy itself"}
	path, err := exec.LookPath(r.tool())
	if err != nil {
		i.Missing = r.tool() + " is not installed (Debian package " + r.name + ")"
		return i
	}
	if out, err := exec.Command(path, "--version").Output(); err == nil {
		i.Version = strings.TrimSpace(string(out))
	}
	return i
}

// probe loads and unloads a few services, and says why that can't be done.
func (r *rules) probe() string {
	w := &workload{Services: minServices, Endpoints: 2, Server: lab.ClusterCIDR4.Addr(), Next: lab.ClusterCIDR4.Addr().Next()}
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
		return r.step(iptablesLoad(w), "iptables-restore", "-w", "5"), nil
	}
	return r.step(nftablesLoad(w), "nft", "-f", "-"), nil
}

func (r *rules) update(before, after *workload) (step, error) {
	if r.name == nameIPTables {
		return r.step(iptablesUpdate(before, after), "iptables-restore", "-w", "5", "--noflush", "--counters"), nil
	}
	return r.step(nftablesUpdate(before, after), "nft", "-f", "-"), nil
}

func (r *rules) unload(ctx context.Context) error {
	if r.name == nameIPTables {
		return r.step("*filter\nCOMMIT\n*nat\nCOMMIT\n", "iptables-restore", "-w", "5")(ctx)
	}
	return r.step("delete table ip kube-proxy\n", "nft", "-f", "-")(ctx)
}

func (r *rules) memory() (memoryUse, error) { return cannotTell, nil }

// step runs a tool in the node's network namespace, with that on its input.
func (r *rules) step(input, tool string, args ...string) step {
	if r.host == nil {
		r.host = r.node.HostPod("rules")
	}
	return func(ctx context.Context) error {
		path, err := exec.LookPath(tool)
		if err != nil {
			return err
		}
		var said bytes.Buffer
		cmd := r.host.Command(ctx, path, args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &said, &said
		if err := cmd.Run(); err != nil {
			text := said.String()
			return fmt.Errorf("%s on node %s: %w: %s", tool, r.node.Name(), err, strings.TrimSpace(text[:min(len(text), 500)]))
		}
		return nil
	}
}
