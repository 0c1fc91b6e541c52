// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shunt/bench"
	"shunt/bench/benchtest"
	"shunt/bpf"
	"shunt/cmd"
	"shunt/e2e/kube"
	"shunt/lab"
)

// TestMain lets the test binary be shunt itself, and the agent of a lab's pod.
func TestMain(m *testing.M) {
	bpf.MaybeProbe()
	lab.MaybeAgent()
	bench.MaybeProxy()
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		os.Exit(cmd.Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// TestBenchWithAPI runs the whole benchmark with a real API server, in small. Nothing of it
// is left in the API server, also after an interrupt. It refuses an API server that is in
// use.
func TestBenchWithAPI(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces, cgroups and eBPF need root: skipped")
	}
	tools, err := kube.Tools(t.Context(), "kube-proxy")
	if err != nil {
		t.Fatal(err)
	}
	cluster := kube.ForTest(t)
	o := bench.Options{Services: []int{5}, Endpoints: []int{1, 2}, Rounds: 7, Exchanges: 5, Burst: 20 * time.Millisecond, Updates: 1, Loads: 1,
		Logf: t.Logf, Kubeconfig: filepath.Join(t.TempDir(), "kubeconfig"), KubeProxy: tools[0]}
	if err := cluster.Kubeconfig(o.Kubeconfig); err != nil {
		t.Fatal(err)
	}
	r, err := bench.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	benchtest.Check(t, r, bench.Defaults(true))
	nothingLeft(t, cluster.Client())

	ctx, cancel := context.WithCancel(t.Context())
	o.Progress = func(_ float64, what string) {
		if strings.Contains(what, "load ") {
			cancel()
		}
	}
	if _, err := bench.Run(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	nothingLeft(t, cluster.Client())
	atWork(t, cluster, o)
}

// nothingLeft checks that no object of the benchmark is left.
func nothingLeft(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	services, err := client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	slices, err := client.DiscoveryV1().EndpointSlices("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(services.Items) != 1 || len(slices.Items) > 1 || len(nodes.Items) != 0 { // the Service is kubernetes
		t.Errorf("left: %d services, %d slices, %d nodes", len(services.Items), len(slices.Items), len(nodes.Items))
	}
}

func atWork(t *testing.T, cluster *kube.Cluster, o bench.Options) {
	t.Helper()
	svc := &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: v1.ServiceSpec{Ports: []v1.ServicePort{{Port: 80}}}}
	if _, err := cluster.Client().CoreV1().Services("default").Create(t.Context(), svc, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := bench.Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "at work: it has the service default/web") {
		t.Errorf("%v", err)
	}
}

// TestFillIn: only known words in braces are replaced.
func TestFillIn(t *testing.T) {
	cluster := kube.ForTest(t)
	got, err := fillIn(t.Context(), cluster, []string{"x", "{kubeconfig}", "{", "{kube-proxy}", "{{}}x"})
	if err != nil {
		t.Fatal(err)
	}
	if got[0] != "x" || got[2] != "{" || got[4] != "{{}}x" {
		t.Errorf("%q", got)
	}
	for i, what := range map[int]string{1: "kubeconfig", 3: "kube-proxy"} {
		if info, err := os.Stat(got[i]); err != nil || filepath.Base(got[i]) != what || info.Size() == 0 {
			t.Errorf("%q: %v", got[i], err)
		}
	}
}
