// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shunt/e2e/kube"
)

// withExternalIPs returns a Service with external IPs.
func withExternalIPs(name string, ips ...string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}, ExternalIPs: ips},
	}
}

// TestExternalIPsPolicy: the policy of deploy/policies lets a namespace's Services have the
// external IPs that the ConfigMap lists for it, in both families, and no others; what a Service had
// before stays.
func TestExternalIPsPolicy(t *testing.T) {
	t.Parallel()
	cluster := kube.ForTest(t)
	client := cluster.Client()
	for _, name := range []string{"web", "other"} {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if _, err := client.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	old, err := client.CoreV1().Services("other").Create(t.Context(), withExternalIPs("old", "203.0.113.5"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range read(t, "policies/external-ips.yaml") {
		if _, err := cluster.Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	// The API server learns of policies and their parameters by watches.
	await(t, func() bool { return denied(t, tried(t, client, "web", "198.51.100.10")) })
	setAllowed(t, client, map[string]string{"web": "198.51.100.10, 2001:db8::10"})
	await(t, func() bool { return !denied(t, tried(t, client, "web", "198.51.100.10")) })

	for _, c := range []struct {
		namespace string
		ips       []string
		denied    bool
	}{
		{"web", nil, false},
		{"other", nil, false},
		{"web", []string{"2001:db8::10"}, false},
		{"web", []string{"198.51.100.10", "2001:db8::10"}, false},
		{"web", []string{"198.51.100.10", "198.51.100.11"}, true},
		{"web", []string{"198.51.100.1"}, true},
		{"other", []string{"198.51.100.10"}, true},
	} {
		if got := denied(t, tried(t, client, c.namespace, c.ips...)); got != c.denied {
			t.Errorf("%s with %q: denied is %v, want %v", c.namespace, c.ips, got, c.denied)
		}
	}
	old.Labels = map[string]string{"changed": "yes"}
	if old, err = client.CoreV1().Services("other").Update(t.Context(), old, metav1.UpdateOptions{}); err != nil {
		t.Errorf("a Service that keeps its external IP: %v", err)
	}
	old.Spec.ExternalIPs = []string{"203.0.113.5", "203.0.113.6"}
	if _, err = client.CoreV1().Services("other").Update(t.Context(), old, metav1.UpdateOptions{}); !denied(t, err) {
		t.Error("a Service got one more external IP")
	}
	if err := client.CoreV1().ConfigMaps("kube-system").Delete(t.Context(), "shunt-external-ips", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool { return denied(t, tried(t, client, "web", "198.51.100.10")) })
}

// tried returns the error of a dry run that creates a Service.
func tried(t *testing.T, client kubernetes.Interface, namespace string, ips ...string) error {
	options := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	_, err := client.CoreV1().Services(namespace).Create(t.Context(), withExternalIPs("new", ips...), options)
	return err
}

// denied reports whether err is a refusal by the policy. Any other error fails the test.
func denied(t *testing.T, err error) bool {
	t.Helper()
	if err == nil {
		return false
	}
	if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "shunt-external-ips") {
		t.Fatalf("neither accepted nor denied by the policy: %v", err)
	}
	return true
}

func setAllowed(t *testing.T, client kubernetes.Interface, allowed map[string]string) {
	t.Helper()
	configMaps := client.CoreV1().ConfigMaps("kube-system")
	c, err := configMaps.Get(t.Context(), "shunt-external-ips", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.Data = allowed
	if _, err := configMaps.Update(t.Context(), c, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// await waits until a condition holds, for half a minute at most.
func await(t *testing.T, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !condition(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing changed in 30 s")
		}
	}
}
