// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"fmt"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shunt/bpf"
)

// openPackets loads the packet path's programs.
func (d *daemon) openPackets() (*bpf.PacketPath, error) {
	seed, err := bpf.FlowSeed(d.cfg.BPFFSRoot)
	if err != nil {
		return nil, err
	}
	ports, err := bpf.ReadSNATPorts()
	if err != nil {
		return nil, err
	}
	if ports.Count == 0 {
		return nil, fmt.Errorf("no source ports are left for packets to endpoints of other nodes: " +
			"sysctl net.ipv4.ip_local_reserved_ports reserves all")
	}
	if ports.Shared {
		d.log.Warn("source ports of packets to endpoints of other nodes are also given to this node's own sockets, and a "+
			"connection may get the packets of another; leave more ports out of sysctl net.ipv4.ip_local_port_range",
			zap.Uint32("first", ports.First), zap.Uint32("count", ports.Count))
	}
	cidrs, err := parseClusterCIDRs(d.cfg.ClusterCIDR)
	if err != nil {
		return nil, fmt.Errorf("clusterCIDR: %w", err)
	}
	d.flowSeed = seed
	return bpf.NewPacketPath(bpf.PacketPathOptions{
		Root: d.cfg.BPFFSRoot, Set: d.set, Maps: d.kernel, Log: d.log,
		Devices: d.cfg.Devices, PodDevices: d.cfg.PodDevices,
		Programs: bpf.PacketOptions{SNATPorts: ports, FlowSeed: seed, ClusterCIDRs: cidrs, Timeouts: d.cfg.timeouts()},
		Failed:   func() { d.reporter.health.DeviceFailed() },
	})
}

// startPackets puts the packet path into effect. If a program can't be attached to one device,
// the attempt is repeated, and the other devices are served meanwhile.
func (d *daemon) startPackets() {
	problems, err := bpf.ForwardingProblems()
	if err != nil {
		problems = append(problems, err.Error())
	}
	for _, p := range problems {
		d.log.Warn(p)
	}
	d.packets.SetNodeAddrs(d.store.NodeIPs())
	d.packets.Start()
}

// timeouts returns the timeouts that kube-proxy would set for conntrack; 0 means the default.
// Other values below bpf.MinTimeout are raised to it: the programs do not refresh a flow with
// every packet.
func (c *Config) timeouts() bpf.Timeouts {
	if c.settings == nil {
		return bpf.Timeouts{}
	}
	conf := c.settings.conf.Conntrack
	given := func(d *metav1.Duration) time.Duration {
		if d == nil || d.Duration == 0 {
			return 0
		}
		return max(d.Duration, bpf.MinTimeout)
	}
	return bpf.Timeouts{
		TCPEstablished: given(conf.TCPEstablishedTimeout), TCPCloseWait: given(conf.TCPCloseWaitTimeout),
		UDPNew: given(&conf.UDPTimeout), UDPEstablished: given(&conf.UDPStreamTimeout),
	}
}
