// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"shunt/cmd"
	"shunt/e2e/kube"
)

const deployDir = "../../deploy"

// notObjects are the files of deploy/ for other programs.
var notObjects = []string{"kustomization.yaml", "kind/cluster.yaml"}

// manifestFiles returns the files of objects below deploy/, relative to it.
func manifestFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	for _, pattern := range []string{"*.yaml", "*/*.yaml"} {
		found, err := filepath.Glob(filepath.Join(deployDir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			file, err := filepath.Rel(deployDir, path)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(notObjects, file) {
				files = append(files, file)
			}
		}
	}
	return files
}

func read(t *testing.T, file string) []*unstructured.Unstructured {
	t.Helper()
	objects, err := kube.ReadManifests(filepath.Join(deployDir, file))
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// TestManifestsAreTaken: every object of deploy/ passes all checks of the API server,
// admission included, and none has a field that its kind does not have.
func TestManifestsAreTaken(t *testing.T) {
	t.Parallel()
	cluster := kube.ForTest(t)
	kinds := map[string]int{}
	for _, file := range manifestFiles(t) {
		for _, object := range read(t, file) {
			// A dry run stores nothing: objects that others depend on must be created.
			options := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
			if object.GetKind() == "Namespace" {
				options.DryRun = nil
			}
			if object.GetKind() == "Pod" {
				createDefaultAccount(t, cluster, object.GetNamespace())
			}
			if _, err := cluster.Create(t.Context(), object, options); err != nil {
				t.Errorf("%s: %v", file, err)
			}
			kinds[object.GetKind()]++
		}
	}
	for _, kind := range []string{"DaemonSet", "ConfigMap", "ServiceAccount", "ClusterRole", "ClusterRoleBinding"} {
		if kinds[kind] == 0 {
			t.Errorf("no %s was found in %s", kind, deployDir)
		}
	}
}

// createDefaultAccount does the controller manager's work: a pod is not admitted without
// it.
func createDefaultAccount(t *testing.T, cluster *kube.Cluster, namespace string) {
	t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	_, err := cluster.Client().CoreV1().ServiceAccounts(namespace).Create(t.Context(), account, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// TestKustomizationListsEveryManifest: `kubectl apply -k deploy/` applies what
// kustomization.yaml lists, so it must list everything, and its images must be in use.
func TestKustomizationListsEveryManifest(t *testing.T) {
	t.Parallel()
	kustomization := read(t, "kustomization.yaml")[0].Object
	listed, _, err := unstructured.NestedStringSlice(kustomization, "resources")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, file := range manifestFiles(t) {
		if !strings.Contains(file, "/") {
			want = append(want, file)
		}
	}
	slices.Sort(listed)
	if !slices.Equal(listed, want) {
		t.Errorf("kustomization.yaml lists %q, there are %q", listed, want)
	}
	images, _, err := unstructured.NestedSlice(kustomization, "images")
	if err != nil || len(images) != 1 {
		t.Fatalf("images of kustomization.yaml: %v (%v), want one", images, err)
	}
	if name := images[0].(map[string]any)["name"]; name != daemonSet(t).Spec.Template.Spec.Containers[0].Image {
		t.Errorf("kustomization.yaml sets an image %v that the DaemonSet does not use", name)
	}
}

// TestKindClusterHasNoOtherProxy: the kind cluster must leave Services to shunt.
func TestKindClusterHasNoOtherProxy(t *testing.T) {
	t.Parallel()
	cluster := read(t, "kind/cluster.yaml")[0].Object
	mode, _, err := unstructured.NestedString(cluster, "networking", "kubeProxyMode")
	if err != nil || mode != "none" {
		t.Errorf("kubeProxyMode is %q (%v), want none", mode, err)
	}
	workers := 0
	nodes, _, _ := unstructured.NestedSlice(cluster, "nodes")
	for _, node := range nodes {
		if node.(map[string]any)["role"] == "worker" {
			workers++
		}
	}
	if workers != 2 {
		t.Errorf("%d workers, want 2", workers)
	}
}

// TestDaemonSetArgumentsAreFlagsOfRun: the arguments of the DaemonSet, with the values of
// the ConfigMap, are flags of `shunt run` with values of the right kind.
func TestDaemonSetArgumentsAreFlagsOfRun(t *testing.T) {
	container := daemonSet(t).Spec.Template.Spec.Containers[0]
	env := map[string]string{}
	settings := configMap(t).Data
	for _, variable := range container.Env {
		switch from := variable.ValueFrom; {
		case from == nil:
			env[variable.Name] = variable.Value
		case from.ConfigMapKeyRef != nil:
			value, ok := settings[from.ConfigMapKeyRef.Key]
			if !ok {
				t.Errorf("%s comes from the key %q that the ConfigMap does not have", variable.Name, from.ConfigMapKeyRef.Key)
			}
			env[variable.Name] = value
			delete(settings, from.ConfigMapKeyRef.Key)
		default:
			env[variable.Name] = "node-1" // from the downward API
		}
	}
	for key := range settings {
		t.Errorf("nothing reads the ConfigMap's key %q", key)
	}
	var args []string
	for _, arg := range container.Args {
		for name, value := range env {
			arg = strings.ReplaceAll(arg, fmt.Sprintf("$(%s)", name), value)
		}
		if strings.Contains(arg, "$(") {
			t.Errorf("%s: the container has no such variable", arg)
		}
		args = append(args, arg)
	}
	// --help ends it once all flags before it were parsed.
	if code := cmd.Main(append(args, "--help")); code != 0 {
		t.Errorf("shunt %s: exit code %d", strings.Join(args, " "), code)
	}
	if code := cmd.Main(append(args, "--no-such-flag", "--help")); code == 0 {
		t.Error("an unknown flag is not found this way")
	}
}

func daemonSet(t *testing.T) *appsv1.DaemonSet {
	t.Helper()
	d := &appsv1.DaemonSet{}
	into(t, "daemonset.yaml", d)
	return d
}

func configMap(t *testing.T) *corev1.ConfigMap {
	t.Helper()
	c := &corev1.ConfigMap{}
	into(t, "config.yaml", c)
	return c
}

// into decodes a file's only object.
func into(t *testing.T, file string, object any) {
	t.Helper()
	objects := read(t, file)
	if len(objects) != 1 {
		t.Fatalf("%s has %d objects, want one", file, len(objects))
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(objects[0].Object, object); err != nil {
		t.Fatal(err)
	}
}
