// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
)

// fakeServer returns a TLS server that answers with a list of services in protobuf, if the
// request has the right token.
func fakeServer(t *testing.T) (server *httptest.Server, ca []byte) {
	t.Helper()
	server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || r.Header.Get("Authorization") != "Bearer secret" || r.UserAgent() != "shunt" ||
			r.Header.Get("Accept") != "application/vnd.kubernetes.protobuf,application/json" {
			http.Error(w, r.Proto+" "+r.UserAgent()+" "+r.Header.Get("Accept"), http.StatusUnauthorized)
			return
		}
		list := &v1.ServiceList{Items: []v1.Service{*webService()}}
		list.APIVersion, list.Kind = "v1", "ServiceList"
		w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
		if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(list, w); err != nil {
			t.Error(err)
		}
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	return server, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
}

func write(t *testing.T, path, content string) string {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(content), 0o644))
	return path
}

func kubeconfig(t *testing.T, dir, server string) string {
	return write(t, filepath.Join(dir, "kubeconfig"), `
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: k, user: u}}]
clusters: [{name: k, cluster: {server: "`+server+`", certificate-authority: ca.crt}}]
users: [{name: u, user: {token: secret}}]
`)
}

// noEnvironment clears the environment variables that name an API server.
func noEnvironment(t *testing.T) {
	for _, name := range []string{EnvAPIServer, envControlPlane, envServiceHost, envServicePort} {
		t.Setenv(name, "")
	}
}

// TestClientReaches sends a request with each source of the server's address.
func TestClientReaches(t *testing.T) {
	server, ca := fakeServer(t)
	hostPort := strings.TrimPrefix(server.URL, "https://")
	host, port, _ := strings.Cut(hostPort, ":")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ca.crt"), string(ca))
	write(t, filepath.Join(dir, "token"), "secret")
	const nowhere = "https://192.0.2.1:6443"
	for _, c := range []struct {
		name string
		o    ClientOptions
		env  map[string]string
	}{
		{name: "kubeconfig", o: ClientOptions{Kubeconfig: kubeconfig(t, t.TempDir(), server.URL)}},
		{name: "kubeconfig, overridden by URL", o: ClientOptions{Kubeconfig: kubeconfig(t, t.TempDir(), nowhere), APIServer: server.URL}},
		{name: "kubeconfig, overridden by HOST:PORT", o: ClientOptions{Kubeconfig: kubeconfig(t, t.TempDir(), nowhere), APIServer: hostPort}},
		{name: "kubeconfig, overridden by SHUNT_APISERVER", o: ClientOptions{Kubeconfig: kubeconfig(t, t.TempDir(), nowhere)}, env: map[string]string{EnvAPIServer: hostPort}},
		{name: "kubeconfig, not by the pod's environment", o: ClientOptions{Kubeconfig: kubeconfig(t, t.TempDir(), server.URL)}, env: map[string]string{envControlPlane: "192.0.2.1:1", envServiceHost: "192.0.2.1", envServicePort: "1"}},
		{name: "pod", env: map[string]string{envServiceHost: host, envServicePort: port}},
		{name: "pod, SHUNT_APISERVER first", env: map[string]string{EnvAPIServer: server.URL, envControlPlane: "192.0.2.1:1", envServiceHost: "192.0.2.1", envServicePort: "1"}},
		{name: "pod, CONTROL_PLANE_ENDPOINT second", env: map[string]string{envControlPlane: hostPort, envServiceHost: "192.0.2.1", envServicePort: "1"}},
		{name: "pod, by the option before all", o: ClientOptions{APIServer: hostPort}, env: map[string]string{EnvAPIServer: nowhere}},
	} {
		t.Run(c.name, func(t *testing.T) {
			noEnvironment(t)
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			if c.o.Kubeconfig != "" {
				write(t, filepath.Join(filepath.Dir(c.o.Kubeconfig), "ca.crt"), string(ca))
			}
			c.o.serviceAccount = dir
			client, cfg, err := NewClient(c.o)
			must(t, err)
			if cfg.Timeout != 0 {
				t.Error("a timeout of whole requests would cut watches")
			}
			list, err := client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
			must(t, err)
			if len(list.Items) != 1 || list.Items[0].Name != "web" {
				t.Errorf("got %v", list.Items)
			}
		})
	}
}

// TestClientContentTypes: requests and accepted responses are protobuf unless the options
// say otherwise.
func TestClientContentTypes(t *testing.T) {
	noEnvironment(t)
	const address = "http://192.0.2.1:8080"
	_, cfg, err := NewClient(ClientOptions{APIServer: address})
	must(t, err)
	if cfg.ContentType != runtime.ContentTypeProtobuf || cfg.AcceptContentTypes != runtime.ContentTypeProtobuf+",application/json" {
		t.Errorf("by itself: %q, %q", cfg.ContentType, cfg.AcceptContentTypes)
	}
	_, cfg, err = NewClient(ClientOptions{APIServer: address, ContentType: "application/json", AcceptContentTypes: "application/json",
		QPS: 7, Burst: 8})
	must(t, err)
	if cfg.ContentType != "application/json" || cfg.AcceptContentTypes != "application/json" || cfg.QPS != 7 || cfg.Burst != 8 {
		t.Errorf("as told: %q, %q, %v, %d", cfg.ContentType, cfg.AcceptContentTypes, cfg.QPS, cfg.Burst)
	}
}

// TestClientRefuses: the error is one line that says what is missing and what to do.
func TestClientRefuses(t *testing.T) {
	noEnvironment(t)
	empty := t.TempDir()
	withToken := t.TempDir()
	write(t, filepath.Join(withToken, "token"), "secret")
	for _, c := range []struct {
		name string
		o    ClientOptions
		want string
	}{
		{"nothing", ClientOptions{}, "no API server is known: give --kubeconfig"},
		{"no such kubeconfig", ClientOptions{Kubeconfig: filepath.Join(empty, "none")}, "no such file"},
		{"no kubeconfig", ClientOptions{Kubeconfig: write(t, filepath.Join(empty, "bad"), "a: [")}, "read --kubeconfig"},
		{"empty kubeconfig", ClientOptions{Kubeconfig: write(t, filepath.Join(empty, "empty"), "")}, "current-context"},
		{"no token", ClientOptions{APIServer: "192.0.2.1:6443", serviceAccount: empty}, "no credentials for the API server https://192.0.2.1:6443"},
		{"no CA", ClientOptions{APIServer: "192.0.2.1:6443", serviceAccount: withToken}, "ca.crt"},
		{"bad scheme", ClientOptions{APIServer: "ftp://192.0.2.1"}, "is not a URL, HOST:PORT or HOST"},
		{"no host", ClientOptions{APIServer: "https://:6443"}, "is not a URL, HOST:PORT or HOST"},
		{"password in the URL", ClientOptions{APIServer: "https://a:b@192.0.2.1"}, "must not hold a user or password"},
		{"nonsense", ClientOptions{APIServer: "a b:1"}, "is not a URL, HOST:PORT or HOST"},
		{"http and https", ClientOptions{APIServer: "https://192.0.2.1,http://192.0.2.2"}, "mix http and https"},
		{"nonsense at the end", ClientOptions{APIServer: "192.0.2.1,a b"}, "is not a URL, HOST:PORT or HOST"},
		{"nonsense beside a kubeconfig", ClientOptions{APIServer: "a b:1", Kubeconfig: kubeconfig(t, t.TempDir(), "https://192.0.2.1")}, "is not a URL, HOST:PORT or HOST"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := NewClient(c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error: %v\nwant one line with %q", err, c.want)
			}
		})
	}
}

func TestServerURL(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1":               "https://192.0.2.1",
		"192.0.2.1:6443":          "https://192.0.2.1:6443",
		"fd00::1":                 "https://[fd00::1]",
		"[fd00::1]:6443":          "https://[fd00::1]:6443",
		"api.example:6443":        "https://api.example:6443",
		"http://127.0.0.1:8001":   "http://127.0.0.1:8001",
		"https://api.example/k8s": "https://api.example/k8s",
	} {
		if got, err := ServerURL(in); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", in, got, err, want)
		}
	}
}
