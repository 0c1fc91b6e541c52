// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"shunt/bpf"
	"shunt/lb"
	"shunt/maps"
	"shunt/watcher"
)

// Config is the configuration of `shunt run`. After validate, every value has been checked as
// far as that is possible without the kernel or an API server.
type Config struct {
	ConfigFile string `json:"config,omitempty"`
	Kubeconfig string `json:"kubeconfig,omitempty"`
	APIServer  string `json:"apiserver,omitempty"`
	Manifests  string `json:"manifests,omitempty"`
	NodeName   string `json:"nodeName"`

	// For packets from outside.
	ClusterCIDR     string   `json:"clusterCIDR,omitempty"`
	DetectLocalMode string   `json:"detectLocalMode,omitempty"` // only shown
	Devices         []string `json:"devices,omitempty"`
	PodDevices      []string `json:"podDevices,omitempty"`

	// For requests to the API server; zero values are the client's own defaults.
	QPS                float32 `json:"qps,omitempty"`
	Burst              int     `json:"burst,omitempty"`
	ContentType        string  `json:"contentType,omitempty"`
	AcceptContentTypes string  `json:"acceptContentTypes,omitempty"`

	CgroupRoot string `json:"cgroupRoot,omitempty"`
	BPFFSRoot  string `json:"bpffsRoot"`
	MountBPFFS bool   `json:"mountBPFFS,omitempty"`

	ServiceCIDRs       []string `json:"serviceCIDRs,omitempty"`
	NodePortAddresses  []string `json:"nodePortAddresses,omitempty"`
	LocalhostNodePorts bool     `json:"localhostNodePorts"`
	DestroyTCPSockets  bool     `json:"destroyTCPSockets,omitempty"`
	ExternalIPs        bool     `json:"externalIPs"`

	HealthzBindAddress  string `json:"healthzBindAddress"`
	MetricsBindAddress  string `json:"metricsBindAddress"`
	ProbeBindAddress    string `json:"probeBindAddress"`
	BindAddressHardFail bool   `json:"bindAddressHardFail,omitempty"`
	Profiling           bool   `json:"profiling,omitempty"`
	LogFormat           string `json:"logFormat"`
	Verbosity           int    `json:"verbosity"`

	MapSizes maps.Sizes `json:"mapSizes"`
	// MaxFrontends is how many frontends one Service may have; 0: no limit.
	MaxFrontends int `json:"maxFrontendsPerService"`

	// The parsed form of the texts above.
	nodePorts        lb.NodePortAddresses
	serviceCIDRs     []netip.Prefix
	healthz, metrics netip.AddrPort
	probes           netip.AddrPort

	kubeProxy kubeProxyFlags
	settings  *settings
	file      followedFile
}

const (
	// defaultBPFFSRoot is the directory in which the maps and links are pinned.
	defaultBPFFSRoot = "/sys/fs/bpf/shunt"

	defaultHealthz = "0.0.0.0:10256"
	defaultMetrics = "127.0.0.1:10249"
	defaultProbes  = "127.0.0.1:10266"
	defaultLog     = "json"

	// defaultMaxFrontends is far more than a Service of a hundred ports needs, and a small
	// part of the maps' capacity: no single Service can fill the maps.
	defaultMaxFrontends = 4096
)

func (c *Config) addFlags(f *pflag.FlagSet) {
	f.StringVar(&c.ConfigFile, "config", "", "KubeProxyConfiguration `file`, kube-proxy's own; flags that are given win over its fields")
	f.StringVar(&c.Kubeconfig, "kubeconfig", "", "kubeconfig `file`; without it the pod's service account is used")
	f.StringVar(&c.APIServer, "apiserver", "", "addresses of the API server (URL, HOST:PORT or HOST) with commas between them, tried in this order, over the kubeconfig's; the kubernetes Service's works only where something served it before (default $SHUNT_APISERVER)")
	f.StringVar(&c.Manifests, "manifests", "", "take Services and EndpointSlices from a YAML `file` or directory, watched for changes, instead of an API server")
	f.StringVar(&c.NodeName, "node-name", "", "name of this node's Node, by which local endpoints are known (default $NODE_NAME, then the host name)")
	f.StringVar(&c.CgroupRoot, "cgroup-root", "", "cgroup v2 `directory` below which pods and processes are this node's clients (default: the first cgroup v2 mount)")
	f.StringVar(&c.BPFFSRoot, "bpffs-root", defaultBPFFSRoot, "`directory` on a bpf file system for maps and links, made if missing")
	f.BoolVar(&c.MountBPFFS, "mount-bpffs", false, "mount a bpf file system at the parent of --bpffs-root where there is none")
	f.StringSliceVar(&c.Devices, "devices", nil, "network devices by which packets come from outside and leave for other nodes: names, with * and ? (default: found by itself, tunnels among them; see shunt status)")
	f.StringSliceVar(&c.PodDevices, "pod-devices", nil, "this node's ends of pods' network devices, for pods whose sockets are out of reach, such as virtual machines: names, with * and ?")
	f.StringSliceVar(&c.ServiceCIDRs, "service-cidr", nil, "the ranges of cluster IPs, of which addresses that no service has are refused (default: those of the API server's ServiceCIDRs)")
	f.String("cluster-cidr", "", "CIDRs of the cluster's pods, at most 4: externalTrafficPolicy Local does not bind them")
	f.StringSliceVar(&c.NodePortAddresses, "nodeport-addresses", nil, "the node's addresses that take node ports: CIDRs and the words primary, localhost and all (default: all)")
	f.BoolVar(&c.LocalhostNodePorts, "iptables-localhost-nodeports", true, "127.0.0.1 and ::1 take node ports, from the node itself; kube-proxy's name, there are no iptables rules")
	f.BoolVar(&c.ExternalIPs, "external-ips", true, "serve the externalIPs of Services; false does what kube-proxy's feature gate "+gateExternalIPs+"=false does")
	f.BoolVar(&c.DestroyTCPSockets, "destroy-tcp-sockets", false, "also end TCP connections to endpoints that are gone (UDP sockets always are)")
	f.StringVar(&c.HealthzBindAddress, "healthz-bind-address", defaultHealthz, "address for /healthz and /livez; empty: none")
	f.StringVar(&c.MetricsBindAddress, "metrics-bind-address", defaultMetrics, "address for /metrics, /proxyMode and /configz; empty: none")
	f.StringVar(&c.ProbeBindAddress, "probe-bind-address", defaultProbes, "address for /livez and /readyz of shunt alone, for its own pod's probes: a kube-proxy that still runs has the two others; empty: none")
	f.BoolVar(&c.BindAddressHardFail, "bind-address-hard-fail", false, "end when one of these addresses can't be bound, instead of trying again")
	f.BoolVar(&c.Profiling, "profiling", false, "serve /debug/pprof beside the metrics")
	f.StringVar(&c.LogFormat, "logging-format", defaultLog, "form of the log: json or text")
	f.IntVarP(&c.Verbosity, "v", "v", 0, "log more: 1 and above log every change that is programmed")
	c.MapSizes = maps.DefaultSizes()
	c.MapSizes.EachFlag(func(field *uint32, flag, help string) {
		f.Uint32Var(field, strings.TrimPrefix(flag, "--"), *field, help)
	})
	f.IntVar(&c.MaxFrontends, "max-frontends-per-service", defaultMaxFrontends, "frontends that one Service may have, one for every address and port; more are left out, external IPs first; 0: any number")
	c.kubeProxy.add(f)
	addFieldFlags(f)
}

// validate checks the flags and the file of --config, and sets the parsed fields of c.
func (c *Config) validate(flags *pflag.FlagSet) error {
	if err := c.kubeProxy.validate(); err != nil {
		return err
	}
	var err error
	c.file = readFollowedFile(c.ConfigFile, flags)
	if c.settings, err = loadSettings(c.ConfigFile, flags); err != nil {
		return err
	}
	if err := c.adopt(flags); err != nil {
		return err
	}
	if c.Manifests != "" && (c.Kubeconfig != "" || c.APIServer != "") {
		return usageErrorf("--manifests and --kubeconfig or --apiserver: take Services from one of them")
	}
	if c.BPFFSRoot, err = bpffsRoot(c.BPFFSRoot); err != nil {
		return err
	}
	if c.APIServer != "" {
		if _, err := watcher.ServerURLs(c.APIServer); err != nil {
			return usageErrorf("--apiserver: %w", err)
		}
	}
	if err := c.MapSizes.Validate(); err != nil {
		return usageError{err}
	}
	if c.MaxFrontends < 0 {
		return usageErrorf("--max-frontends-per-service is %d: give a number from 0", c.MaxFrontends)
	}
	if err := bpf.DeviceNames(c.Devices).Validate(); err != nil {
		return usageErrorf("--devices %w", err)
	}
	if err := bpf.DeviceNames(c.PodDevices).Validate(); err != nil {
		return usageErrorf("--pod-devices %w", err)
	}
	if c.nodePorts, err = lb.ParseNodePortAddresses(c.NodePortAddresses); err != nil {
		return usageErrorf("--nodeport-addresses %w", err)
	}
	c.nodePorts.NoLoopback = !c.LocalhostNodePorts
	if err := c.parseServiceCIDRs(); err != nil {
		return err
	}
	if c.healthz, err = bindAddress(c.HealthzBindAddress, 10256); err != nil {
		return usageErrorf("--healthz-bind-address %w", err)
	}
	if c.metrics, err = bindAddress(c.MetricsBindAddress, 10249); err != nil {
		return usageErrorf("--metrics-bind-address %w", err)
	}
	if c.probes, err = bindAddress(c.ProbeBindAddress, 10266); err != nil {
		return usageErrorf("--probe-bind-address %w", err)
	}
	return c.checkAddresses()
}

// checkAddresses returns an error if two of the servers can't listen at the same time.
func (c *Config) checkAddresses() error {
	type server struct {
		flag string
		at   netip.AddrPort
	}
	all := []server{{"--healthz-bind-address", c.healthz}, {"--metrics-bind-address", c.metrics}, {"--probe-bind-address", c.probes}}
	for i, a := range all {
		for _, b := range all[i+1:] {
			if collide(a.at, b.at) {
				return usageErrorf("%s %s and %s %s: two servers can't have one port", a.flag, a.at, b.flag, b.at)
			}
		}
	}
	return nil
}

// collide reports whether two servers can't listen at the same time: they have the same port,
// and either the same address or one of them an unspecified address, which binds both families.
func collide(a, b netip.AddrPort) bool {
	return a.IsValid() && b.IsValid() && a.Port() == b.Port() && a.Port() != 0 &&
		(a.Addr() == b.Addr() || a.Addr().IsUnspecified() || b.Addr().IsUnspecified())
}

// bpffsRoot returns the cleaned path of --bpffs-root, or an error if it is not absolute. Every
// command with that flag calls it.
func bpffsRoot(dir string) (string, error) {
	if !filepath.IsAbs(dir) {
		return dir, usageErrorf("--bpffs-root %q: give an absolute path", dir)
	}
	return filepath.Clean(dir), nil
}

func (c *Config) parseServiceCIDRs() error {
	for _, text := range c.ServiceCIDRs {
		p, err := netip.ParsePrefix(text)
		if err != nil || p.Addr().Is4In6() {
			return usageErrorf("--service-cidr %q: give CIDRs such as 10.96.0.0/12", text)
		}
		c.serviceCIDRs = append(c.serviceCIDRs, p.Masked())
	}
	return nil
}

// adopt copies the merged kube-proxy configuration to c. shunt's own flags override it.
func (c *Config) adopt(flags *pflag.FlagSet) error {
	conf := &c.settings.conf
	given := flags.Changed
	c.ClusterCIDR, c.DetectLocalMode = conf.ClusterCIDR, string(conf.DetectLocalMode)
	client := conf.ClientConnection
	c.QPS, c.Burst = client.QPS, int(client.Burst)
	c.ContentType, c.AcceptContentTypes = client.ContentType, client.AcceptContentTypes
	if c.Manifests == "" {
		c.Kubeconfig = client.Kubeconfig
	}
	if given("master") && given("apiserver") && c.kubeProxy.master != c.APIServer {
		return usageErrorf("--master %s and --apiserver %s are two names of one thing: give one", c.kubeProxy.master, c.APIServer)
	}
	if !given("apiserver") {
		c.APIServer = c.kubeProxy.master
	}
	if !given("nodeport-addresses") {
		c.NodePortAddresses = conf.NodePortAddresses
	}
	if allowed, set := conf.FeatureGates[gateExternalIPs]; set {
		switch {
		case !given("external-ips"):
			c.ExternalIPs = allowed
		case given("feature-gates") && allowed != c.ExternalIPs:
			return usageErrorf("--external-ips=%t and --feature-gates=%s=%t are two names of one thing: give one",
				c.ExternalIPs, gateExternalIPs, allowed)
		}
	}
	if ports := conf.IPTables.LocalhostNodePorts; ports != nil {
		c.LocalhostNodePorts = *ports
	}
	c.BindAddressHardFail, c.Profiling = conf.BindAddressHardFail, conf.EnableProfiling
	c.Verbosity = int(conf.Logging.Verbosity)
	if conf.Logging.Format != "" {
		c.LogFormat = conf.Logging.Format
	}
	c.adoptAddresses(flags)
	return c.adoptNodeName(flags)
}

// adoptAddresses sets the addresses of healthz and metrics. As for kube-proxy, an empty
// address in the file means the default address, whose family the field bindAddress selects.
// An empty flag disables the server.
func (c *Config) adoptAddresses(flags *pflag.FlagSet) {
	conf := &c.settings.conf
	if a, err := netip.ParseAddr(conf.BindAddress); err == nil && a.Is6() {
		c.HealthzBindAddress = orElse(flags.Changed("healthz-bind-address"), c.HealthzBindAddress, "[::]:10256")
		c.MetricsBindAddress = orElse(flags.Changed("metrics-bind-address"), c.MetricsBindAddress, "[::1]:10249")
	}
	one := func(address *string, fromFile, flag string, port int32, portFlag string) {
		given := flags.Changed(flag)
		if !given && fromFile != "" {
			*address, given = fromFile, true
		}
		*address = atPort(*address, port, given, flags.Changed(portFlag))
	}
	one(&c.HealthzBindAddress, conf.HealthzBindAddress, "healthz-bind-address", c.kubeProxy.healthzPort, "healthz-port")
	one(&c.MetricsBindAddress, conf.MetricsBindAddress, "metrics-bind-address", c.kubeProxy.metricsPort, "metrics-port")
}

func orElse(keep bool, kept, other string) string {
	if keep {
		return kept
	}
	return other
}

// adoptNodeName sets the node's name: --node-name, else hostnameOverride of flag or file,
// else $NODE_NAME, else the host's name.
func (c *Config) adoptNodeName(flags *pflag.FlagSet) error {
	override := nodeNameOf(c.settings.conf.HostnameOverride)
	if c.NodeName != "" {
		if err := checkNodeName(c.NodeName); err != nil {
			return usageErrorf("--node-name %w", err)
		}
		c.NodeName = nodeNameOf(c.NodeName)
		if flags.Changed("hostname-override") && override != c.NodeName {
			return usageErrorf("--node-name %s and --hostname-override %s are two names of one thing: give one", c.NodeName, override)
		}
		return nil
	}
	if c.NodeName = override; c.NodeName == "" {
		c.NodeName = os.Getenv("NODE_NAME")
		if err := checkNodeName(c.NodeName); err != nil {
			return usageErrorf("$NODE_NAME %w", err)
		}
		c.NodeName = nodeNameOf(c.NodeName)
	}
	if c.NodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return usageErrorf("--node-name is not set and the host's name can't be read: %w", err)
		}
		c.NodeName = nodeNameOf(host)
	}
	return nil
}

// notes returns the settings without effect, which are logged once.
func (c *Config) notes() []note {
	notes := c.settings.withoutEffect()
	if kubeconfig := c.settings.conf.ClientConnection.Kubeconfig; c.Manifests != "" && kubeconfig != "" {
		notes = append(notes, note{"--manifests: no API server is asked", []string{"clientConnection.kubeconfig"}})
	}
	if c.kubeProxy.udpTimeout != 0 {
		notes = append(notes, note{string(notUsed), []string{"--udp-timeout"}})
	}
	return notes
}

// bindAddress parses IP:PORT, or an IP alone, with port as the default, like kube-proxy. For
// an empty value it returns the zero AddrPort.
func bindAddress(value string, port uint16) (netip.AddrPort, error) {
	if value == "" {
		return netip.AddrPort{}, nil
	}
	if ap, err := netip.ParseAddrPort(value); err == nil {
		return ap, nil
	}
	a, err := netip.ParseAddr(strings.Trim(value, "[]"))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q: neither IP:PORT nor an IP address", value)
	}
	return netip.AddrPortFrom(a, port), nil
}
