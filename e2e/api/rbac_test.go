// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"shunt/e2e/kube"
)

const (
	namespace = "kube-system"
	account   = "shunt"
)

// right is one verb on one resource.
type right struct{ group, resource, verb string }

// rights are all that the daemon needs: what it lists and watches in all namespaces, and
// the Events that it writes in any.
var rights = []right{
	{"", "services", "list"},
	{"", "services", "watch"},
	{"", "nodes", "list"},
	{"", "nodes", "watch"},
	{"discovery.k8s.io", "endpointslices", "list"},
	{"discovery.k8s.io", "endpointslices", "watch"},
	{"networking.k8s.io", "servicecidrs", "list"},
	{"networking.k8s.io", "servicecidrs", "watch"},
	{"events.k8s.io", "events", "create"},
	{"events.k8s.io", "events", "patch"},
}

func TestServiceAccountMayDoExactlyWhatTheDaemonDoes(t *testing.T) {
	t.Parallel()
	cluster := kube.ForTest(t)
	for _, object := range read(t, "rbac.yaml") {
		if _, err := cluster.Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	// Every account has some rights, such as to ask for its own rights. They are those of
	// an account without roles.
	nobody := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "nobody"}}
	if _, err := cluster.Client().CoreV1().ServiceAccounts(namespace).Create(t.Context(), nobody, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	everybodys := ownRules(t, asServiceAccount(t, cluster, nobody.Name))
	client := asServiceAccount(t, cluster, account)

	t.Run("as it asks itself", func(t *testing.T) { checkOwnRules(t, client, everybodys) })
	t.Run("over all resources of the API", func(t *testing.T) { checkAllResources(t, cluster, client, everybodys) })
	t.Run("in practice", func(t *testing.T) { checkInPractice(t, client) })
}

// asServiceAccount returns a client with an account's token, as a pod has it.
func asServiceAccount(t *testing.T, cluster *kube.Cluster, account string) kubernetes.Interface {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := cluster.TokenKubeconfig(t.Context(), namespace, account, path); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// ownRules returns the rules that apply to the client, outside its own namespace.
func ownRules(t *testing.T, client kubernetes.Interface) []right {
	t.Helper()
	review := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "default"}}
	answer, err := client.AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(), review, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if answer.Status.Incomplete {
		t.Fatalf("the list of rules is incomplete: %s", answer.Status.EvaluationError)
	}
	var rules []right
	for _, rule := range answer.Status.ResourceRules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					rules = append(rules, right{group, resource, verb})
				}
			}
		}
	}
	return rules
}

// checkOwnRules compares the rules that apply to the account with rights and those of every
// account.
func checkOwnRules(t *testing.T, client kubernetes.Interface, everybodys []right) {
	got := ownRules(t, client)
	for _, r := range rights {
		if !slices.Contains(got, r) {
			t.Errorf("%v is missing", r)
		}
		if slices.Contains(everybodys, r) {
			t.Errorf("%v need not be given: everybody has it", r)
		}
	}
	for _, r := range got {
		if !slices.Contains(rights, r) && !slices.Contains(everybodys, r) {
			t.Errorf("%v is given but not needed", r)
		}
	}
}

// checkAllResources checks each verb on each resource and subresource of the API server, in
// all namespaces at once and on named objects.
func checkAllResources(t *testing.T, cluster *kube.Cluster, client kubernetes.Interface, everybodys []right) {
	_, lists, err := cluster.Client().Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	asked, allowed := 0, 0
	for _, list := range lists {
		group, _, ok := strings.Cut(list.GroupVersion, "/")
		if !ok {
			group = ""
		}
		for _, resource := range list.APIResources {
			for _, verb := range resource.Verbs {
				r := right{group, resource.Name, verb}
				if slices.Contains(everybodys, r) {
					continue
				}
				got := may(t, client, r, "", "")
				if want := slices.Contains(rights, r); got != want {
					t.Errorf("%v is allowed: %t, want %t", r, got, want)
				}
				asked++
				if got {
					allowed++
				}
			}
		}
	}
	if allowed != len(rights) {
		t.Errorf("%d of %d verbs are allowed, want %d", allowed, asked, len(rights))
	}
	if asked < 200 {
		t.Errorf("only %d verbs were asked for: is this the whole API?", asked)
	}
}

// checkInPractice has the rights that an attacker with the account's token would try first,
// and those that a wider role would include.
func checkInPractice(t *testing.T, client kubernetes.Interface) {
	for _, test := range []struct {
		right
		namespace, name string
		want            bool
	}{
		{right{"", "services", "list"}, "", "", true},
		{right{"", "services", "watch"}, "default", "", true},
		{right{"discovery.k8s.io", "endpointslices", "watch"}, "", "", true},
		{right{"", "nodes", "watch"}, "", "node-1", true},
		{right{"events.k8s.io", "events", "create"}, "default", "", true},
		{right{"events.k8s.io", "events", "patch"}, "some-namespace", "an-event", true},

		{right{"", "secrets", "get"}, namespace, "any", false},
		{right{"", "secrets", "list"}, namespace, "", false},
		{right{"", "configmaps", "get"}, namespace, account, false},
		{right{"", "pods", "list"}, "", "", false},
		{right{"", "pods", "create"}, namespace, "", false},
		{right{"", "pods/exec", "create"}, namespace, "any", false},
		{right{"", "endpoints", "list"}, "", "", false},
		{right{"", "services", "get"}, "default", "kubernetes", false},
		{right{"", "services", "create"}, "default", "", false},
		{right{"", "services", "update"}, "default", "kubernetes", false},
		{right{"", "services", "delete"}, "default", "kubernetes", false},
		{right{"", "services/status", "patch"}, "default", "kubernetes", false},
		{right{"discovery.k8s.io", "endpointslices", "update"}, "default", "any", false},
		{right{"discovery.k8s.io", "endpointslices", "delete"}, "default", "any", false},
		{right{"", "nodes", "update"}, "", "node-1", false},
		{right{"", "nodes", "patch"}, "", "node-1", false},
		{right{"", "nodes/status", "patch"}, "", "node-1", false},
		{right{"", "nodes/proxy", "get"}, "", "node-1", false},
		{right{"events.k8s.io", "events", "delete"}, "default", "any", false},
		{right{"events.k8s.io", "events", "list"}, "", "", false},
		{right{"", "events", "create"}, "default", "", false},
		{right{"", "serviceaccounts/token", "create"}, namespace, account, false},
		{right{"", "serviceaccounts", "impersonate"}, namespace, "default", false},
		{right{"apps", "daemonsets", "update"}, namespace, account, false},
		{right{"rbac.authorization.k8s.io", "clusterroles", "escalate"}, "", account, false},
		{right{"rbac.authorization.k8s.io", "clusterrolebindings", "create"}, "", "", false},
		{right{"coordination.k8s.io", "leases", "create"}, namespace, "", false},
	} {
		if got := may(t, client, test.right, test.namespace, test.name); got != test.want {
			t.Errorf("%v in %q of %q is allowed: %t, want %t", test.right, test.namespace, test.name, got, test.want)
		}
	}
}

// may asks the API server, as the account itself, whether it has a right. An empty
// namespace means all of them, an empty name every object.
func may(t *testing.T, client kubernetes.Interface, r right, namespace, name string) bool {
	t.Helper()
	resource, subresource, _ := strings.Cut(r.resource, "/")
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Group: r.group, Resource: resource, Subresource: subresource, Verb: r.verb, Namespace: namespace, Name: name,
		},
	}}
	answer, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), review, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if answer.Status.EvaluationError != "" {
		t.Fatalf("%v: %s", r, answer.Status.EvaluationError)
	}
	return answer.Status.Allowed
}
