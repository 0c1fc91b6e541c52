// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	v1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"shunt/e2e/kube"
	"shunt/lab"
)

// account is a service account of deploy/rbac.yaml with its cluster role.
type account struct {
	namespace, name string
	role            *rbacv1.ClusterRole
}

// deployedAccount creates the objects of deploy/rbac.yaml in the API server, as kubectl
// apply does.
func (w *world) deployedAccount() account {
	w.t.Helper()
	objects, err := kube.ReadManifests("../../deploy/rbac.yaml")
	check(w.t, err)
	var a account
	for _, o := range objects {
		if _, err := w.kube.Create(w.t.Context(), o, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
			check(w.t, err)
		}
		switch o.GetKind() {
		case "ServiceAccount":
			a.namespace, a.name = o.GetNamespace(), o.GetName()
		case "ClusterRole":
			a.role = &rbacv1.ClusterRole{}
			check(w.t, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, a.role))
		}
	}
	if a.name == "" || a.role == nil {
		w.t.Fatal("deploy/rbac.yaml has no ServiceAccount or no ClusterRole")
	}
	w.awaitRights(a)
	return a
}

// right is one verb on one resource.
type right struct{ group, resource, verb string }

func (r right) String() string { return r.verb + " " + r.resource }

func rights(role *rbacv1.ClusterRole) (all []right) {
	for _, rule := range role.Rules {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				all = append(all, right{rule.APIGroups[0], resource, verb})
			}
		}
	}
	return all
}

// awaitRights waits until the API server grants an account the rights of its role.
func (w *world) awaitRights(a account) {
	w.t.Helper()
	user := fmt.Sprintf("system:serviceaccount:%s:%s", a.namespace, a.name)
	for _, r := range rights(a.role) {
		eventually(w.t, fmt.Sprintf("%s may %v", user, r), func() error {
			review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: user,
				ResourceAttributes: &authorizationv1.ResourceAttributes{Group: r.group, Resource: r.resource, Verb: r.verb}}}
			answer, err := w.api.AuthorizationV1().SubjectAccessReviews().Create(w.t.Context(), review, metav1.CreateOptions{})
			if err == nil && !answer.Status.Allowed {
				err = errors.New(answer.Status.Reason + ": not allowed")
			}
			return err
		})
	}
}

// without makes an account with the same role except for one right.
func (w *world) without(a account, missing right) account {
	w.t.Helper()
	ctx := w.t.Context()
	b := account{w.namespace, fmt.Sprintf("no-%s-%s", missing.verb, missing.resource), a.role.DeepCopy()}
	b.role.ObjectMeta = metav1.ObjectMeta{Name: b.name}
	for i := range b.role.Rules {
		rule := &b.role.Rules[i]
		if slices.Contains(rule.Resources, missing.resource) {
			rule.Verbs = slices.DeleteFunc(rule.Verbs, func(v string) bool { return v == missing.verb })
		}
	}
	_, err := w.api.CoreV1().ServiceAccounts(b.namespace).Create(ctx, &v1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: b.name}}, metav1.CreateOptions{})
	check(w.t, err)
	_, err = w.api.RbacV1().ClusterRoles().Create(ctx, b.role, metav1.CreateOptions{})
	check(w.t, err)
	_, err = w.api.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: b.name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: b.name},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: b.namespace, Name: b.name}},
	}, metav1.CreateOptions{})
	check(w.t, err)
	w.t.Cleanup(func() {
		err := errors.Join(w.api.RbacV1().ClusterRoles().Delete(context.Background(), b.name, metav1.DeleteOptions{}),
			w.api.RbacV1().ClusterRoleBindings().Delete(context.Background(), b.name, metav1.DeleteOptions{}))
		if err != nil {
			w.t.Error(err)
		}
	})
	w.awaitRights(b)
	return b
}

// runAs runs a daemon on a node of the test with the rights of an account. Several can run
// on one node, each with its own cgroup and client.
func (w *world) runAs(a account, n *node) (*daemon, *lab.Pod) {
	w.t.Helper()
	kubeconfig := filepath.Join(w.t.TempDir(), a.name)
	check(w.t, w.kube.TokenKubeconfig(w.t.Context(), a.namespace, a.name, kubeconfig))
	client := n.HostPod("client-" + a.name)
	check(w.t, w.lab.Err())
	return w.runFor(w.t, daemonOptions{name: a.name, node: n, kubeconfig: kubeconfig, cgroup: client.Cgroup()}), client
}

// TestDeployedRights runs the daemon with the service account of deploy/: with all its
// rights everything works; with one right less the daemon reports the missing one.
func TestDeployedRights(t *testing.T) {
	t.Parallel()
	w := setUp(t).in(t, "rights")
	a := w.deployedAccount()
	n := w.testNode(t, "rights")
	w.register(t, n)
	mistake := func(s *v1.Service) { s.Spec.ExternalIPs = []string{"fd00:198:51:100::99"} }
	ip := w.create("web", []v1.ServicePort{tcp("", 80)}, mistake).Spec.ClusterIP
	w.createSlice("web", "web-1", onePort, v4(w.pods[0], w.pods[5]))
	works := func(d *daemon, client *lab.Pod) {
		t.Helper()
		d.await(t, `"in effect"`)
		w.expectOf(t, d.o.root, w.namespace, fmt.Sprintf("web ClusterIP %s:80/TCP Cluster p0:8000 p5:8000", ip))
		w.reach(client, "tcp", addr(ip, 80), "p0", "p5")
	}

	d, client := w.runAs(a, n)
	works(d, client)
	w.event(v1.EventTypeNormal, "Starting", "Node", n.Name())
	w.event(v1.EventTypeWarning, "KubeProxyIncorrectIPVersion", "Service", "web")
	w.again(d, "web", mistake)
	eventually(t, "the event that came twice is a series", func() error {
		list, err := w.api.EventsV1().Events(w.namespace).List(t.Context(), metav1.ListOptions{})
		for _, e := range list.Items {
			if e.Series != nil {
				return nil
			}
		}
		return errors.Join(errors.New("no event is"), err)
	})
	for _, word := range []string{"forbidden", "cannot", "reject"} {
		if lines := d.log.with(word); len(lines) > 0 {
			t.Errorf("with all rights the daemon says %q", lines)
		}
	}
	d.stop(t)

	for _, missing := range rights(a.role) {
		t.Run("without "+missing.String(), func(t *testing.T) {
			w := &world{w.fixture, t, w.namespace}
			d, client := w.runAs(w.without(a, missing), n)
			w.lacks(d, missing, works, client, mistake)
		})
	}
}

// again makes the daemon log a problem of a service twice.
func (w *world) again(d *daemon, service string, mistake func(*v1.Service)) {
	w.t.Helper()
	said := d.log.count("WARN") + d.log.count(`"warn"`)
	w.update(service, func(s *v1.Service) { s.Spec.ExternalIPs = nil })
	w.update(service, mistake)
	eventually(w.t, "the daemon says it twice", func() error {
		if d.log.count(`"warn"`) <= said {
			return fmt.Errorf("it has %d lines", said)
		}
		return nil
	})
}

// lacks checks that a daemon without a right reports it, and that the rest works.
func (w *world) lacks(d *daemon, missing right, works func(*daemon, *lab.Pod), client *lab.Pod, mistake func(*v1.Service)) {
	w.t.Helper()
	named := fmt.Sprintf(`cannot %s resource \"%s\"`, missing.verb, missing.resource)
	switch {
	case missing.resource == "events":
		works(d, client)
		if missing.verb == "patch" {
			w.again(d, "web", mistake)
		}
	case missing.verb == "list":
		// A streamed list is a watch. The right to list is for API servers without streamed
		// lists.
		works(d, client)
		return
	default: // the daemon lists instead of watching, at growing intervals
		works(d, client)
	}
	d.await(w.t, named)
	if missing.verb == "watch" {
		d.await(w.t, fmt.Sprintf("cannot watch %s: the account may not; grant it list and watch on %[1]s", missing.resource))
	}
	if n := d.log.count(named, "cannot watch "); n > 1 {
		w.t.Errorf("%d lines say so at once", n)
	}
	check(w.t, d.alive())
}
