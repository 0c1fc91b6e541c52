package cmd

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"shunt/lb"
	"shunt/maps"
)

// Config is what `shunt run` was told, checked: everything that can be refused
// without asking the kernel or an API server has been.
type Config struct {
	Kubeconfig string `json:"kubeconfig,omitempty"`
	APIServer  string `json:"apiserver,omitempty"`
	Manifests  string `json:"manifests,omitempty"`
	NodeName   string `json:"nodeName"`

	CgroupRoot string `json:"cgroupRoot,omitempty"`
	BPFFSRoot  string `json:"bpffsRoot"`
	MountBPFFS bool   `json:"mountBPFFS,omitempty"`

	NodePortAddresses []string `json:"nodePortAddresses,omitempty"`
	DestroyTCPSockets bool     `json:"destroyTCPSockets,omitempty"`

	HealthzBindAddress  string `json:"healthzBindAddress"`
	MetricsBindAddress  string `json:"metricsBindAddress"`
	BindAddressHardFail bool   `json:"bindAddressHardFail,omitempty"`
	Profiling           bool   `json:"profiling,omitempty"`
	Verbosity           int    `json:"verbosity"`

	MapSizes maps.Sizes `json:"mapSizes"`

	// What the texts above mean.
	nodePorts        lb.NodePortAddresses
	healthz, metrics netip.AddrPort
}

// defaultBPFFSRoot is where the maps and links are pinned.
const defaultBPFFSRoot = "/sys/fs/bpf/shunt"

func (c *Config) addFlags(f *pflag.FlagSet) {
	f.StringVar(&c.Kubeconfig, "kubeconfig", "", "kubeconfig `file`; without it the pod's service account is used")
	f.StringVar(&c.APIServer, "apiserver", "", "address of the API server (URL, HOST:PORT or HOST), over the kubeconfig's; the kubernetes Service does not work before shunt does (default $SHUNT_APISERVER)")
	f.StringVar(&c.Manifests, "manifests", "", "take Services and EndpointSlices from a YAML `file` or directory, watched for changes, instead of an API server")
	f.StringVar(&c.NodeName, "node-name", "", "name of this node's Node, by which local endpoints are known (default $NODE_NAME, then the host name)")
	f.StringVar(&c.CgroupRoot, "cgroup-root", "", "cgroup v2 `directory` below which pods and processes are this node's clients (default: the first cgroup v2 mount)")
	f.StringVar(&c.BPFFSRoot, "bpffs-root", defaultBPFFSRoot, "`directory` on a bpf file system for maps and links, made if missing")
	f.BoolVar(&c.MountBPFFS, "mount-bpffs", false, "mount a bpf file system at the parent of --bpffs-root where there is none")
	f.StringSliceVar(&c.NodePortAddresses, "nodeport-addresses", nil, "CIDRs of the node's addresses that take node ports, or the word primary (default: all)")
	f.BoolVar(&c.DestroyTCPSockets, "destroy-tcp-sockets", false, "also end TCP connections to endpoints that are gone (UDP sockets always are)")
	f.StringVar(&c.HealthzBindAddress, "healthz-bind-address", "0.0.0.0:10256", "address for /healthz and /livez; empty: none")
	f.StringVar(&c.MetricsBindAddress, "metrics-bind-address", "127.0.0.1:10249", "address for /metrics, /proxyMode and /configz; empty: none")
	f.BoolVar(&c.BindAddressHardFail, "bind-address-hard-fail", false, "end when one of these addresses can't be bound, instead of trying again")
	f.BoolVar(&c.Profiling, "profiling", false, "serve /debug/pprof beside the metrics")
	f.IntVarP(&c.Verbosity, "v", "v", 0, "log more: 0 to 5")
	d := maps.DefaultSizes()
	size := func(to *uint32, flag string, value uint32, what string) {
		f.Uint32Var(to, strings.TrimPrefix(flag, "--"), value, what)
	}
	size(&c.MapSizes.Services, maps.FlagServices, d.Services, "frontends that fit: one for every address and port of a service")
	size(&c.MapSizes.Slots, maps.FlagSlots, d.Slots, "slots that fit: a service port takes the next power of two above its endpoints, twice while it changes")
	size(&c.MapSizes.Backends, maps.FlagBackends, d.Backends, "endpoints of service ports that fit")
	size(&c.MapSizes.Affinity, maps.FlagAffinity, d.Affinity, "clients with session affinity that are remembered")
}

// validate checks what was given, and works out what it means.
func (c *Config) validate() error {
	if c.NodeName == "" {
		c.NodeName = os.Getenv("NODE_NAME")
	}
	if c.NodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return usageErrorf("--node-name is not set and the host's name can't be read: %w", err)
		}
		c.NodeName = strings.ToLower(strings.TrimSpace(host)) // as the kubelet does
	}
	if c.Manifests != "" && (c.Kubeconfig != "" || c.APIServer != "") {
		return usageErrorf("--manifests and --kubeconfig or --apiserver: take Services from one place")
	}
	if !strings.HasPrefix(c.BPFFSRoot, "/") {
		return usageErrorf("--bpffs-root %q: give an absolute path", c.BPFFSRoot)
	}
	if c.Verbosity < 0 || c.Verbosity > 5 {
		return usageErrorf("--v %d: give 0 to 5", c.Verbosity)
	}
	if err := c.MapSizes.Validate(); err != nil {
		return usageError{err}
	}
	var err error
	if c.nodePorts, err = lb.ParseNodePortAddresses(c.NodePortAddresses); err != nil {
		return usageError{err}
	}
	if c.healthz, err = bindAddress("--healthz-bind-address", c.HealthzBindAddress, 10256); err != nil {
		return err
	}
	c.metrics, err = bindAddress("--metrics-bind-address", c.MetricsBindAddress, 10249)
	return err
}

// bindAddress reads IP:PORT, or IP alone with the usual port, as kube-proxy does.
func bindAddress(flag, value string, port uint16) (netip.AddrPort, error) {
	if value == "" {
		return netip.AddrPort{}, nil
	}
	if ap, err := netip.ParseAddrPort(value); err == nil {
		return ap, nil
	}
	a, err := netip.ParseAddr(strings.Trim(value, "[]"))
	if err != nil {
		return netip.AddrPort{}, usageError{fmt.Errorf("%s %q: neither IP:PORT nor an IP address", flag, value)}
	}
	return netip.AddrPortFrom(a, port), nil
}
