// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	pollInterval = 50 * time.Millisecond
	// The sockets of etcd, in the cluster's directory, which is the processes' working
	// directory: etcd needs no ports.
	etcdClientURL = "unix://etcd-client.sock"
	etcdPeerURL   = "unix://etcd-peer.sock"
)

func (c *Cluster) startEtcd() (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.etcd, err = startProcess(c.dir.path, "etcd", c.tools.etcd,
		"--name=test", "--data-dir=etcd", "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+etcdClientURL, "--advertise-client-urls="+etcdClientURL,
		"--listen-peer-urls="+etcdPeerURL, "--initial-advertise-peer-urls="+etcdPeerURL,
		"--initial-cluster=test="+etcdPeerURL,
	)
	return err
}

// StartAPIServer starts kube-apiserver, also again after KillAPIServer or StopAPIServer, on
// the same port and data, and returns when it is ready. The proxy accepts clients as soon
// as the process runs: they see it get ready as on a real control plane.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return errors.New("start kube-apiserver: the cluster was stopped")
	}
	if c.apiServer.alive() {
		return fmt.Errorf("start kube-apiserver: it runs already, as pid %d", c.apiServer.pid)
	}
	ctx, cancel := context.WithTimeout(ctx, c.options.StartTimeout)
	defer cancel()
	p, err := startProcess(c.dir.path, "kube-apiserver", c.tools.apiServer, c.apiServerFlags()...)
	if err != nil {
		return err
	}
	c.apiServer = p
	if err := errors.Join(c.proxy.Accept(), c.waitReady(ctx)); err != nil {
		p.kill()
		c.proxy.Refuse()
		return err
	}
	return nil
}

// KillAPIServer kills kube-apiserver with SIGKILL. Until it is started again, clients are
// refused at its address, as if the process were gone.
func (c *Cluster) KillAPIServer() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.apiServer.kill()
	c.proxy.Refuse()
}

// StopAPIServer ends kube-apiserver gracefully: it closes watches and finishes requests.
// When the context ends first, the process is killed, which is an error.
func (c *Cluster) StopAPIServer(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.apiServer.terminate(ctx)
	c.proxy.Refuse()
	return err
}

func (c *Cluster) apiServerFlags() []string {
	_, port, _ := net.SplitHostPort(c.proxy.upstream)
	flags := []string{
		"--etcd-servers=" + etcdClientURL,
		"--bind-address=" + backendAddress, "--secure-port=" + port,
		"--tls-cert-file=" + c.keys.servingCert, "--tls-private-key-file=" + c.keys.servingKey,
		"--cert-dir=" + c.dir.path,
		"--token-auth-file=" + c.keys.tokenFile, "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + c.keys.serviceAccountKey,
		"--service-account-signing-key-file=" + c.keys.serviceAccountKey,
		"--service-cluster-ip-range=" + c.options.ServiceCIDRs,
		"--advertise-address=" + c.options.Address,
		"--allow-privileged=true", "--profiling=false",
	}
	if ip := net.ParseIP(c.options.Address); ip.IsLoopback() || ip.IsUnspecified() {
		// The API does not accept a loopback address as an endpoint of the kubernetes
		// Service: leave that Service without one instead of retrying for ever.
		flags = append(flags, "--endpoint-reconciler-type=none")
	}
	return append(flags, c.options.APIServerFlags...)
}

// waitReady returns when /readyz reports success, or an error with the last reason.
func (c *Cluster) waitReady(ctx context.Context) error {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.keys.caPEM)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer transport.CloseIdleConnections()
	probe := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	// Asked directly: the proxy may refuse connections.
	url := "https://" + c.proxy.upstream + "/readyz?verbose"
	return c.poll(ctx, "kube-apiserver to be ready", func() error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		request.Header.Set("Authorization", "Bearer "+c.keys.adminToken)
		answer, err := probe.Do(request)
		if err != nil {
			return err
		}
		defer func() { _ = answer.Body.Close() }()
		body, err := io.ReadAll(answer.Body)
		if err == nil && answer.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", answer.Status, body)
		}
		return err
	})
}

// waitNamespaces returns when the namespaces that the API server creates exist, which is a
// moment after it is ready.
func (c *Cluster) waitNamespaces(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.options.StartTimeout)
	defer cancel()
	for _, name := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem} {
		err := c.poll(ctx, "the namespace "+name, func() error {
			_, err := c.client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// poll repeats a check until it succeeds, or the context or a process ends.
func (c *Cluster) poll(ctx context.Context, what string, check func() error) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-c.etcd.done:
			return fmt.Errorf("wait for %s: %w", what, c.etcd.failure())
		case <-c.apiServer.done:
			return fmt.Errorf("wait for %s: %w", what, c.apiServer.failure())
		case <-ctx.Done():
			if apierrors.IsNotFound(err) {
				return fmt.Errorf("wait for %s: %w", what, ctx.Err())
			}
			return fmt.Errorf("wait for %s: %w (%w)", what, ctx.Err(), err)
		case <-ticker.C:
		}
	}
}
