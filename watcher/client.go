// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// The environment variables that name the API server. The cluster IP of the kubernetes
// Service can't be used to reach the API server: no proxy serves that Service before shunt does.
const (
	// EnvAPIServer is the default of ClientOptions.APIServer.
	EnvAPIServer = "SHUNT_APISERVER"
	// envControlPlane is the variable of kind and kindnet, as HOST:PORT.
	envControlPlane = "CONTROL_PLANE_ENDPOINT"
	envServiceHost  = "KUBERNETES_SERVICE_HOST"
	envServicePort  = "KUBERNETES_SERVICE_PORT"
)

// serviceAccountDir is where the kubelet mounts a pod's token and the cluster's CA.
const serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// ClientOptions says how to reach the API server.
type ClientOptions struct {
	// Kubeconfig is the path of a file; empty: the pod's service account is used.
	Kubeconfig string
	// APIServer is a URL, HOST:PORT or HOST, or a comma-separated list of these, in
	// the order in which they are tried. The default is $SHUNT_APISERVER. A value
	// overrides the kubeconfig's server. Without a kubeconfig,
	// $CONTROL_PLANE_ENDPOINT and $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT
	// are appended to the list.
	APIServer string
	// Servers dials the servers and records which of them answer; nil: a new Servers.
	Servers *Servers
	// QPS and Burst limit requests, not watch events; 0: client-go's defaults.
	QPS   float32
	Burst int
	// ContentType is the encoding of request bodies, AcceptContentTypes (separated by
	// commas) the accepted encodings of responses: application/vnd.kubernetes.protobuf
	// and application/json. Empty: protobuf; JSON is accepted as the second choice.
	ContentType, AcceptContentTypes string
	// UserAgent is "shunt" where it is empty.
	UserAgent string

	serviceAccount string // the directory; for tests
}

// NewClient returns a client that uses protobuf unless the options say otherwise, and
// its configuration. It reads files but does not connect: an API server that can't be
// reached shows with the first request.
func NewClient(o ClientOptions) (kubernetes.Interface, *rest.Config, error) {
	if o.APIServer == "" {
		o.APIServer = os.Getenv(EnvAPIServer)
	}
	if o.Servers == nil {
		o.Servers = NewServers(ServersOptions{})
	}
	var cfg *rest.Config
	var err error
	if o.Kubeconfig != "" {
		cfg, err = fromKubeconfig(o)
	} else {
		cfg, err = inCluster(o)
	}
	if err != nil {
		return nil, nil, err
	}
	tune(cfg, o)
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("make a client of the API server %s: %w", cfg.Host, err)
	}
	return client, cfg, nil
}

// tune sets the fields of cfg that do not depend on the API server's address. There is no
// timeout for a whole request, because it would end every watch; answerLimit bounds the time
// until the response's headers arrive. client-go's HTTP/2 pings close a connection to a
// server that hangs within 45 s (HTTP2_READ_IDLE_TIMEOUT_SECONDS,
// HTTP2_PING_TIMEOUT_SECONDS). TCP keepalive closes a connection to a server that has
// vanished (Servers.dialer).
func tune(cfg *rest.Config, o ClientOptions) {
	cfg.ContentType = runtime.ContentTypeProtobuf
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	if o.ContentType != "" {
		cfg.ContentType = o.ContentType
	}
	if o.AcceptContentTypes != "" {
		cfg.AcceptContentTypes = o.AcceptContentTypes
	}
	cfg.QPS, cfg.Burst = o.QPS, o.Burst
	cfg.UserAgent = o.UserAgent
	if cfg.UserAgent == "" {
		cfg.UserAgent = "shunt"
	}
	cfg.Timeout = 0
	cfg.WarningHandler = rest.NoWarnings{}
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return answerLimit{next, o.Servers.answer.watch, o.Servers.answer.request}
	})
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { return attempts{next} })
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { return failover{next, o.Servers} })
	cfg.Dial = o.Servers.DialContext
}

func fromKubeconfig(o ClientOptions) (*rest.Config, error) {
	file := o.Kubeconfig
	raw, err := clientcmd.LoadFromFile(file)
	if err != nil {
		return nil, fmt.Errorf("read --kubeconfig %s: %w", file, err)
	}
	if err := clientcmd.ResolveLocalPaths(raw); err != nil {
		return nil, fmt.Errorf("read --kubeconfig %s: %w", file, err)
	}
	overrides := &clientcmd.ConfigOverrides{}
	urls, err := ServerURLs(o.APIServer)
	if err != nil {
		return nil, err
	}
	if len(urls) > 0 {
		overrides.ClusterInfo.Server = urls[0].String()
	}
	cfg, err := clientcmd.NewDefaultClientConfig(*raw, overrides).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("use --kubeconfig %s: %w: does its current-context name a cluster with a server and a user?", file, err)
	}
	if len(urls) == 0 {
		if urls, err = ServerURLs(cfg.Host); err != nil {
			return nil, fmt.Errorf("use --kubeconfig %s: %w", file, err)
		}
	}
	o.Servers.setURLs(urls, false)
	return cfg, nil
}

// inCluster returns a configuration with the credentials of the pod's service account. The
// servers are o.APIServer and those of the environment variables.
func inCluster(o ClientOptions) (*rest.Config, error) {
	list := []string{o.APIServer, os.Getenv(envControlPlane)}
	service := list[0] == "" && list[1] == ""
	if host, p := os.Getenv(envServiceHost), os.Getenv(envServicePort); host != "" && p != "" {
		list = append(list, net.JoinHostPort(host, p))
	}
	list = slices.DeleteFunc(list, func(s string) bool { return s == "" })
	if len(list) == 0 {
		return nil, fmt.Errorf("no API server is known: give --kubeconfig FILE, --apiserver ADDRESS or $%s, or run in a pod", EnvAPIServer)
	}
	urls, err := ServerURLs(list[0])
	if err != nil {
		return nil, err
	}
	for _, more := range list[1:] {
		if others, err := ServerURLs(more); err == nil && others[0].Scheme == urls[0].Scheme {
			urls = append(urls, others...)
		}
	}
	o.Servers.setURLs(urls, service)
	u, dir := urls[0].String(), o.serviceAccount
	cfg := &rest.Config{Host: u}
	if strings.HasPrefix(u, "http://") {
		return cfg, nil // without TLS, no credentials are sent
	}
	if dir == "" {
		dir = serviceAccountDir
	}
	token, ca := filepath.Join(dir, "token"), filepath.Join(dir, "ca.crt")
	for _, file := range []string{token, ca} {
		if _, err := os.ReadFile(file); err != nil {
			return nil, fmt.Errorf("no credentials for the API server %s: %w: give --kubeconfig FILE, "+
				"or run in a pod with a service account", u, err)
		}
	}
	cfg.BearerTokenFile = token // read again when it is renewed
	cfg.CAFile = ca
	return cfg, nil
}

// ServerURLs returns the URLs of a comma-separated list of addresses in the forms of
// ServerURL; nil for an empty list. It returns an error if the schemes differ: credentials
// for https must not be sent to an http server.
func ServerURLs(list string) ([]*url.URL, error) {
	var urls []*url.URL
	for one := range strings.SplitSeq(list, ",") {
		if one = strings.TrimSpace(one); one == "" {
			continue
		}
		text, err := ServerURL(one)
		if err != nil {
			return nil, err
		}
		u, err := url.Parse(text)
		if err != nil {
			return nil, err
		}
		if len(urls) > 0 && u.Scheme != urls[0].Scheme {
			return nil, fmt.Errorf("the API server's addresses %q mix http and https: give addresses of one kind", list)
		}
		urls = append(urls, u)
	}
	return urls, nil
}

// ServerURL returns the URL for s, which is a URL, HOST:PORT or HOST. The default scheme is
// https. It returns an error for any other form, and for a URL with a user or password.
func ServerURL(s string) (string, error) {
	full := s
	if !strings.Contains(s, "://") {
		if ip := net.ParseIP(s); ip != nil && strings.Contains(s, ":") {
			s = "[" + s + "]"
		}
		full = "https://" + s
	}
	u, err := url.Parse(full)
	if err == nil && u.User != nil {
		return "", fmt.Errorf("the API server's address must not hold a user or password: give a kubeconfig with them")
	}
	if err != nil || u.Hostname() == "" || (u.Scheme != "https" && u.Scheme != "http") || !isPort(u.Port()) {
		return "", fmt.Errorf("the API server's address %q is not a URL, HOST:PORT or HOST: like https://192.0.2.1:6443", s)
	}
	return u.String(), nil
}

// isPort reports whether s is a port number from 1 to 65535, or empty.
func isPort(s string) bool {
	port, err := strconv.ParseUint(s, 10, 16)
	return s == "" || err == nil && port > 0
}
