// SPDX-License-Identifier: Apache-2.0

// Package kube runs a real Kubernetes control plane for a test: etcd and kube-apiserver as
// child processes, with their own keys, rights and addresses. It simulates neither of them
// and does not depend on shunt. Start reading at Start; a test calls ForTest.
package kube

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Defaults of Options.
const (
	defaultAddress      = "127.0.0.1"
	defaultServiceCIDRs = "10.96.0.0/12,fd00:10:96::/108"
	defaultStartTimeout = 2 * time.Minute
)

// Options describes the control plane to start. The zero value works.
type Options struct {
	// Address is the IP that clients use, IPv4 or IPv6; 127.0.0.1 by default. Unless it is
	// a loopback address, it becomes the endpoint of the kubernetes Service.
	Address string
	// Netns is the path of the network namespace with Address, such as /run/netns/NAME; the
	// current one by default. The processes always use this machine's loopback: only the
	// proxy listens in that namespace.
	Netns string
	// ServiceCIDRs are the ranges of cluster IPs. The first one's family is the default.
	// 10.96.0.0/12,fd00:10:96::/108 by default.
	ServiceCIDRs string
	// APIServerFlags are appended to the flags of kube-apiserver.
	APIServerFlags []string
	// StartTimeout bounds each start of the API server until it is ready, two minutes by
	// default. Only the context bounds building the tools.
	StartTimeout time.Duration
}

func (o Options) withDefaults() Options {
	if o.Address == "" {
		o.Address = defaultAddress
	}
	if o.ServiceCIDRs == "" {
		o.ServiceCIDRs = defaultServiceCIDRs
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = defaultStartTimeout
	}
	return o
}

// Cluster is a running control plane: clients → proxy → kube-apiserver → etcd.
// Its methods may be called from several goroutines.
type Cluster struct {
	options Options
	dir     *workDir
	keys    *keys
	tools   tools
	proxy   *Proxy
	config  *rest.Config
	client  *kubernetes.Clientset

	mu        sync.Mutex // held while a process is started or ended
	etcd      *process
	apiServer *process
	stopped   bool
}

// Start builds the tools if they are missing, starts etcd and kube-apiserver, and
// returns when the API is ready and the system's namespaces exist. The context
// bounds the start only; Stop ends what was started. After an error nothing is left.
func Start(ctx context.Context, options Options) (*Cluster, error) {
	c := &Cluster{options: options.withDefaults()}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start a Kubernetes control plane: %w", err), c.Stop())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) (err error) {
	if c.tools, err = findTools(ctx); err != nil {
		return err
	}
	if c.dir, err = newWorkDir(); err != nil {
		return err
	}
	if c.keys, err = newKeys(c.dir.path, c.options.Address); err != nil {
		return err
	}
	if c.proxy, err = newClusterProxy(c.options.Netns, c.options.Address); err != nil {
		return err
	}
	if err := c.connect(); err != nil {
		return err
	}
	if err := c.startEtcd(); err != nil {
		return err
	}
	if err := c.StartAPIServer(ctx); err != nil {
		return err
	}
	return c.waitNamespaces(ctx)
}

// ForTest starts a control plane that lives as long as the test. If the test fails, the
// last lines of both processes' logs are added to its output.
func ForTest(t testing.TB, options ...Options) *Cluster {
	t.Helper()
	var o Options
	if len(options) > 0 {
		o = options[0]
	}
	c, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("etcd:\n%s\nkube-apiserver:\n%s", c.Log("etcd"), c.Log("kube-apiserver"))
		}
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Addr returns the host:port at which clients reach the API server, the same for the whole
// life of the cluster. It is the proxy's address; the port is also kube-apiserver's own.
func (c *Cluster) Addr() string { return c.proxy.Addr() }

// Proxy returns the proxy between the clients and the API server.
func (c *Cluster) Proxy() *Proxy { return c.proxy }

// CutWatches ends all connections to the API server at once, with a TCP reset, and so all
// watches. New connections are accepted as before.
func (c *Cluster) CutWatches() { c.proxy.Cut() }

// Dir returns the directory of the cluster's files. Stop removes it.
func (c *Cluster) Dir() string { return c.dir.path }

// Log returns the end of the log of "etcd" or "kube-apiserver".
func (c *Cluster) Log(name string) string { return tail(filepath.Join(c.dir.path, name+".log")) }

// Stop ends both processes and the proxy, waits for them, and removes the files. It may be
// called twice.
func (c *Cluster) Stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return nil
	}
	c.stopped = true
	if c.proxy != nil {
		c.proxy.Close()
	}
	c.apiServer.kill()
	c.etcd.kill()
	if c.dir == nil {
		return nil
	}
	if err := c.dir.remove(); err != nil {
		return fmt.Errorf("remove the files of a stopped control plane: %w", err)
	}
	return nil
}
