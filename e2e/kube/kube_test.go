// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// within bounds every wait here.
const within = 30 * time.Second

func TestServiceGetsAddressesOfBothFamilies(t *testing.T) {
	t.Parallel()
	c := ForTest(t)
	service := createService(t, c, "dual")
	if len(service.Spec.ClusterIPs) != 2 {
		t.Fatalf("cluster IPs %q, want two", service.Spec.ClusterIPs)
	}
	for i, cidr := range strings.Split(defaultServiceCIDRs, ",") {
		_, want, err := net.ParseCIDR(cidr)
		if err != nil {
			t.Fatal(err)
		}
		if ip := net.ParseIP(service.Spec.ClusterIPs[i]); !want.Contains(ip) {
			t.Errorf("cluster IP %d is %s, want one of %s", i, ip, want)
		}
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "dual-1", Labels: map[string]string{discoveryv1.LabelServiceName: "dual"}},
		AddressType: discoveryv1.AddressTypeIPv6,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"fd00:10:244::5"}}},
	}
	if _, err := c.Client().DiscoveryV1().EndpointSlices("default").Create(t.Context(), slice, metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
}

func TestObjectsOutliveTheAPIServer(t *testing.T) {
	t.Parallel()
	c := ForTest(t)
	addr, pid := c.Addr(), c.apiServer.pid
	createService(t, c, "kept")

	c.KillAPIServer()
	gone(t, pid)
	if conn, err := net.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial %s after the kill: %v (%v), want a refusal", addr, conn, err)
	}
	if err := c.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	expectService(t, throughProxy(t, c), "kept")

	pid = c.apiServer.pid
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := c.StopAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
	if err := c.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	expectService(t, throughProxy(t, c), "kept")
	if c.Addr() != addr {
		t.Errorf("the address became %s, it was %s", c.Addr(), addr)
	}
	if err := c.StartAPIServer(t.Context()); err == nil {
		t.Error("a second start of a running API server succeeded")
	}
}

func TestWatchIsCutAndConnectionsRefused(t *testing.T) {
	t.Parallel()
	c := ForTest(t)
	client := throughProxy(t, c)
	createService(t, c, "before")
	watch, err := client.CoreV1().Services("default").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	seen := func() (names []string, open bool) {
		for {
			select {
			case event, ok := <-watch.ResultChan():
				if !ok {
					return names, false
				}
				names = append(names, event.Object.(*corev1.Service).Name)
				if names[len(names)-1] == "before" {
					return names, true
				}
			case <-time.After(within):
				t.Fatal("no event and no end of the watch")
			}
		}
	}
	if names, open := seen(); !open {
		t.Fatalf("the watch ended before it was cut, after %q", names)
	}
	c.CutWatches()
	if names, open := seen(); open {
		t.Fatalf("the watch goes on after the cut: %q", names)
	}
	expectService(t, client, "before") // the client reconnects by itself

	c.Proxy().Refuse()
	createService(t, c, "while-away") // the test's own client is not cut off
	if _, err := client.CoreV1().Services("default").Get(t.Context(), "before", metav1.GetOptions{}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a request while connections are refused: %v, want a refusal", err)
	}
	if err := c.Proxy().Accept(); err != nil {
		t.Fatal(err)
	}
	expectService(t, client, "while-away")
}

func TestServiceAccountHasItsOwnRightsOnly(t *testing.T) {
	t.Parallel()
	c := ForTest(t)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "nobody"}}
	if _, err := c.Client().CoreV1().ServiceAccounts("default").Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token, admin := filepath.Join(t.TempDir(), "token"), filepath.Join(t.TempDir(), "admin")
	if err := errors.Join(c.TokenKubeconfig(t.Context(), "default", "nobody", token), c.Kubeconfig(admin)); err != nil {
		t.Fatal(err)
	}
	for path, allowed := range map[string]bool{token: false, admin: true} {
		config, err := clientcmd.BuildConfigFromFlags("", path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = kubernetes.NewForConfigOrDie(config).CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
		if allowed && err != nil {
			t.Errorf("%s: list services: %v", filepath.Base(path), err)
		}
		if !allowed && !apierrors.IsForbidden(err) {
			t.Errorf("%s: list services: %v, want it to be forbidden", filepath.Base(path), err)
		}
	}
	if err := c.TokenKubeconfig(t.Context(), "default", "missing", token); !apierrors.IsNotFound(err) {
		t.Errorf("a token of a missing service account: %v", err)
	}
	checkCreate(t, c)
}

// checkCreate checks that Create rejects a field that a kind does not have.
func checkCreate(t *testing.T, c *Cluster) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "manifest.yaml")
	text := "# nothing\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: default}\n---\n" +
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b, namespace: default}\ndatas: {}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	objects, err := ReadManifests(path)
	if err != nil || len(objects) != 2 {
		t.Fatalf("read %d objects (%v), want 2", len(objects), err)
	}
	create := func(object *unstructured.Unstructured) error {
		_, err := c.Create(t.Context(), object, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	if err := create(objects[0]); err != nil {
		t.Error(err)
	}
	if err := create(objects[1]); err == nil || !strings.Contains(err.Error(), "datas") {
		t.Errorf("create with an unknown field: %v, want an error that names it", err)
	}
	_, err = c.Client().CoreV1().ConfigMaps("default").Get(t.Context(), "a", metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		t.Errorf("after a dry run the object is there (%v)", err)
	}
}

func TestNothingIsLeftAfterStop(t *testing.T) {
	t.Parallel()
	c := ForTest(t)
	pids, dir := []int{c.apiServer.pid, c.etcd.pid}, c.Dir()
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		gone(t, pid)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory %s is still there (%v)", dir, err)
	}
	for _, addr := range []string{c.Addr(), c.proxy.upstream} {
		if _, err := net.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial %s: %v, want a refusal", addr, err)
		}
	}
	if err := errors.Join(c.Stop(), c.StopAPIServer(t.Context())); err != nil {
		t.Errorf("to stop it again: %v", err)
	}
	if err := c.StartAPIServer(t.Context()); err == nil {
		t.Error("the API server could be started in a stopped cluster")
	}
}

func TestFailedStartSaysWhyAndLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		options Options
		want    string
	}{
		"no IP address":     {Options{Address: "localhost"}, "is not an IP address"},
		"an unknown flag":   {Options{APIServerFlags: []string{"--no-such-flag"}}, "no-such-flag"},
		"too little time":   {Options{StartTimeout: time.Millisecond}, "deadline"},
		"no such netns":     {Options{Netns: "/nonexistent/netns"}, "/nonexistent/netns"},
		"a foreign address": {Options{Address: "192.0.2.1"}, "192.0.2.1"},
	} {
		c := &Cluster{options: test.options.withDefaults()}
		err := c.start(t.Context())
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, test.want)
		}
		if err := c.Stop(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if c.etcd.alive() || c.apiServer.alive() {
			t.Errorf("%s: a process is left", name)
		}
		if _, err := os.Stat(c.dir.path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the directory is left (%v)", name, err)
		}
	}
}

func createService(t *testing.T, c *Cluster, name string) *corev1.Service {
	t.Helper()
	dual := corev1.IPFamilyPolicyRequireDualStack
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{IPFamilyPolicy: &dual, Ports: []corev1.ServicePort{{Port: 80}}},
	}
	created, err := c.Client().CoreV1().Services("default").Create(t.Context(), service, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return created
}

// throughProxy returns a client that uses the proxy, as shunt's does.
func throughProxy(t *testing.T, c *Cluster) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(c.Config())
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// expectService waits for a service. The first request after a cut can fail.
func expectService(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	eventually(t, "the service "+name, func() error {
		_, err := client.CoreV1().Services("default").Get(t.Context(), name, metav1.GetOptions{})
		return err
	})
}

// gone checks that a process that was waited for does not exist any more.
func gone(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is still there (%v)", pid, err)
	}
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v after %s", what, err, within)
		}
		time.Sleep(pollInterval)
	}
}
