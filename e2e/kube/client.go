// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"os"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// tokenLifetime is the lifetime of service account tokens in seconds: longer than any test.
const tokenLifetime = 4 * 60 * 60

// Config returns the administrator's configuration, through the proxy, without a
// client-side limit of requests. The caller may change it.
func (c *Cluster) Config() *rest.Config { return rest.CopyConfig(c.config) }

// Client returns the administrator's client, for the test itself. It bypasses the proxy, so
// that a test can change objects while other clients are cut off, and works with the proxy
// in any network namespace. It speaks protobuf.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// connect makes the administrator's client. It sends nothing.
func (c *Cluster) connect() (err error) {
	c.config = &rest.Config{
		Host:            "https://" + c.proxy.Addr(),
		BearerToken:     c.keys.adminToken,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.keys.caPEM},
		QPS:             -1,
	}
	config := rest.CopyConfig(c.config)
	config.Host = "https://" + c.proxy.upstream
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	c.client, err = kubernetes.NewForConfig(config)
	return err
}

// Kubeconfig writes a kubeconfig file with the administrator's rights.
func (c *Cluster) Kubeconfig(path string) error {
	return c.writeKubeconfig(path, "admin", c.keys.adminToken)
}

// TokenKubeconfig writes a kubeconfig file with exactly the rights of a service account,
// which must exist: it requests a token from the API server.
func (c *Cluster) TokenKubeconfig(ctx context.Context, namespace, serviceAccount, path string) error {
	lifetime := int64(tokenLifetime)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &lifetime}}
	answer, err := c.client.CoreV1().ServiceAccounts(namespace).
		CreateToken(ctx, serviceAccount, request, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("request a token of the service account %s/%s: %w", namespace, serviceAccount, err)
	}
	return c.writeKubeconfig(path, serviceAccount, answer.Status.Token)
}

func (c *Cluster) writeKubeconfig(path, user, token string) error {
	const cluster = "shunt-test"
	config := clientcmdapi.NewConfig()
	config.Clusters[cluster] = &clientcmdapi.Cluster{Server: c.config.Host, CertificateAuthorityData: c.keys.caPEM}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts[cluster] = &clientcmdapi.Context{Cluster: cluster, AuthInfo: user}
	config.CurrentContext = cluster
	text, err := clientcmd.Write(*config)
	if err == nil {
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write the kubeconfig %s: %w", path, err)
	}
	return nil
}
