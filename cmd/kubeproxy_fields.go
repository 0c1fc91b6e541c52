// SPDX-License-Identifier: Apache-2.0

package cmd

// field is a field of KubeProxyConfiguration, with kube-proxy's flag for it and its effect
// in shunt.
type field struct {
	path string
	// flag is the flag's name without dashes; empty where kube-proxy has no flag.
	flag string
	// fate is the reason why the field has no effect; honoured: it has an effect.
	fate fate
	// check returns an error for a malformed value, and nil for the zero value. nil: every
	// value of the type is valid.
	check func(any) error
}

// fate is the text that is logged once for fields that are set and have no effect.
type fate string

const (
	honoured fate = ""

	noDetect    fate = "pods of this node are recognised by their sockets and --pod-devices, those of others by clusterCIDR"
	notUsed     fate = "kube-proxy itself does not use it any more"
	noRules     fate = "there are no iptables, nftables or IPVS rules; services are entries in eBPF maps"
	noMasked    fate = "the endpoint always sees the client's own address: its socket is connected to the endpoint itself"
	noConntrack fate = "the node's nf_conntrack settings are its own"
	noResync    fate = "services are watched, and only what changed is written"
	noLogBuffer fate = "the log has one stream, one verbosity and no buffer"
	noGates     fate = "they are of kube-proxy's own code, but for " + gateExternalIPs
	noHidden    fate = "no metric is hidden"
	noOOM       fate = "what is programmed stays in effect without the process; a pod's priority class sets its score"
	noWindows   fate = "it is for Windows"
	nodeDecides fate = "the node's addresses are those of its interfaces and its Node; " +
		"only the family of the default healthz and metrics addresses follows"
)

// gateExternalIPs is the feature gate that makes kube-proxy stop serving externalIPs
// (KEP-5707). No other gate has an effect in shunt.
const gateExternalIPs = "AllowServiceExternalIPs"

// fields are all fields of KubeProxyConfiguration, in the order of the API's types.
var fields = []field{
	{"featureGates", "feature-gates", noGates, nil},
	{"clientConnection.kubeconfig", "kubeconfig", honoured, nil},
	{"clientConnection.acceptContentTypes", "", honoured, checkContentTypes},
	{"clientConnection.contentType", "kube-api-content-type", honoured, checkContentType},
	{"clientConnection.qps", "kube-api-qps", honoured, nil},
	{"clientConnection.burst", "kube-api-burst", honoured, checkNotNegative},
	{"logging.format", "logging-format", honoured, oneOf("text", "json")},
	{"logging.flushFrequency", "log-flush-frequency", noLogBuffer, checkNotNegative},
	{"logging.verbosity", "v", honoured, nil},
	{"logging.vmodule", "vmodule", noLogBuffer, checkVModule},
	{"logging.options.text.splitStream", "log-text-split-stream", noLogBuffer, nil},
	{"logging.options.text.infoBufferSize", "log-text-info-buffer-size", noLogBuffer, nil},
	{"logging.options.json.splitStream", "log-json-split-stream", noLogBuffer, nil},
	{"logging.options.json.infoBufferSize", "log-json-info-buffer-size", noLogBuffer, nil},
	{"hostnameOverride", "hostname-override", honoured, checkNodeName},
	{"bindAddress", "bind-address", nodeDecides, checkIP},
	{"healthzBindAddress", "healthz-bind-address", honoured, checkBindAddress},
	{"metricsBindAddress", "metrics-bind-address", honoured, checkBindAddress},
	{"bindAddressHardFail", "bind-address-hard-fail", honoured, nil},
	{"enableProfiling", "profiling", honoured, nil},
	{"showHiddenMetricsForVersion", "show-hidden-metrics-for-version", noHidden, checkMinorVersion},
	{"mode", "proxy-mode", noRules, oneOf("iptables", "ipvs", "nftables")},
	{"iptables.masqueradeBit", "iptables-masquerade-bit", noRules, between(0, 31)},
	{"iptables.masqueradeAll", "masquerade-all", noMasked, nil},
	{"iptables.localhostNodePorts", "iptables-localhost-nodeports", honoured, nil},
	{"iptables.syncPeriod", "iptables-sync-period", noResync, checkNotNegative},
	{"iptables.minSyncPeriod", "iptables-min-sync-period", noResync, checkNotNegative},
	{"ipvs.syncPeriod", "ipvs-sync-period", noResync, checkNotNegative},
	{"ipvs.minSyncPeriod", "ipvs-min-sync-period", noResync, checkNotNegative},
	{"ipvs.scheduler", "ipvs-scheduler", noRules, nil},
	{"ipvs.excludeCIDRs", "ipvs-exclude-cidrs", noRules, checkCIDRs},
	{"ipvs.strictARP", "ipvs-strict-arp", noRules, nil},
	{"ipvs.tcpTimeout", "ipvs-tcp-timeout", noRules, checkNotNegative},
	{"ipvs.tcpFinTimeout", "ipvs-tcpfin-timeout", noRules, checkNotNegative},
	{"ipvs.udpTimeout", "ipvs-udp-timeout", noRules, checkNotNegative},
	{"nftables.masqueradeBit", "", noRules, between(0, 31)},
	{"nftables.masqueradeAll", "", noMasked, nil},
	{"nftables.syncPeriod", "", noResync, checkNotNegative},
	{"nftables.minSyncPeriod", "", noResync, checkNotNegative},
	{"winkernel.networkName", "", noWindows, nil},
	{"winkernel.sourceVip", "", noWindows, nil},
	{"winkernel.enableDSR", "", noWindows, nil},
	{"winkernel.rootHnsEndpointName", "", noWindows, nil},
	{"winkernel.forwardHealthCheckVip", "", noWindows, nil},
	{"detectLocalMode", "detect-local-mode", noDetect, oneOf("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")},
	{"detectLocal.bridgeInterface", "pod-bridge-interface", noDetect, nil},
	{"detectLocal.interfaceNamePrefix", "pod-interface-name-prefix", noDetect, nil},
	{"clusterCIDR", "cluster-cidr", honoured, checkClusterCIDR},
	{"nodePortAddresses", "nodeport-addresses", honoured, checkNodePortAddresses},
	{"oomScoreAdj", "oom-score-adj", noOOM, between(-1000, 1000)},
	{"conntrack.maxPerCore", "conntrack-max-per-core", noConntrack, checkNotNegative},
	{"conntrack.min", "conntrack-min", noConntrack, checkNotNegative},
	{"conntrack.tcpEstablishedTimeout", "conntrack-tcp-timeout-established", honoured, checkNotNegative},
	{"conntrack.tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait", honoured, checkNotNegative},
	{"conntrack.tcpBeLiberal", "conntrack-tcp-be-liberal", noConntrack, nil},
	{"conntrack.udpTimeout", "conntrack-udp-timeout", honoured, checkNotNegative},
	{"conntrack.udpStreamTimeout", "conntrack-udp-timeout-stream", honoured, checkNotNegative},
	{"configSyncPeriod", "config-sync-period", noResync, checkNotNegative},
	{"portRange", "proxy-port-range", notUsed, checkPortRange},
	{"windowsRunAsService", "", noWindows, nil},
}
