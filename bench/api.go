// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// apiServer writes the workload as objects to an API server, for contenders that watch it.
type apiServer struct {
	client   kubernetes.Interface
	config   *clientcmdapi.Config // with one context, and the content of all files it names
	cluster  *clientcmdapi.Cluster
	upstream string // HOST:PORT
	// there holds what was created, by the service's number, as text to compare.
	there map[int]string
}

// apiParallel is how many objects are written at once.
const apiParallel = 32

// leaveDeadline bounds the removal of all objects.
const leaveDeadline = 5 * time.Minute

// openAPI connects to the API server of a kubeconfig file.
func openAPI(kubeconfig string) (*apiServer, error) {
	a := &apiServer{there: map[int]string{}}
	fail := func(err error) (*apiServer, error) {
		return nil, fmt.Errorf("use the API server of %s: %w", kubeconfig, err)
	}
	config, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		return fail(err)
	}
	if err := clientcmdapi.MinifyConfig(config); err != nil {
		return fail(err)
	}
	if err := clientcmdapi.FlattenConfig(config); err != nil {
		return fail(err)
	}
	a.config, a.cluster = config, config.Clusters[config.Contexts[config.CurrentContext].Cluster]
	if a.upstream, err = hostPort(a.cluster); err != nil {
		return fail(err)
	}
	rest, err := clientcmd.NewDefaultClientConfig(*config, nil).ClientConfig()
	if err != nil {
		return fail(err)
	}
	rest.QPS = -1 // no client-side rate limit
	rest.ContentType = runtime.ContentTypeProtobuf
	rest.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	if a.client, err = kubernetes.NewForConfig(rest); err != nil {
		return fail(err)
	}
	return a, nil
}

// hostPort returns the HOST:PORT of a cluster's API server, and sets the TLS server name.
func hostPort(c *clientcmdapi.Cluster) (string, error) {
	u, err := url.Parse(c.Server)
	if err != nil {
		return "", err
	}
	if u.Scheme != "https" || u.Hostname() == "" {
		return "", fmt.Errorf("its server %q is no https:// address", c.Server)
	}
	if c.TLSServerName == "" {
		c.TLSServerName = u.Hostname()
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// kubeconfig writes a file for processes that reach the API server at addr (HOST:PORT).
func (a *apiServer) kubeconfig(path, addr string) error {
	config := a.config.DeepCopy()
	config.Clusters[config.Contexts[config.CurrentContext].Cluster].Server = "https://" + addr
	data, err := clientcmd.Write(*config)
	if err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}

// idle returns an error if the API server is in use: the benchmark creates thousands of
// services with fixed addresses.
func (a *apiServer) idle(ctx context.Context) error {
	nodes, err := a.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("look whether the API server is at work: %w", err)
	}
	for _, n := range nodes.Items {
		if n.Name != nodeName {
			return fmt.Errorf("no benchmark with an API server at work: it has the node %s, and thousands of services would be put "+
				"into it: `make bench` starts one for the benchmark alone", n.Name)
		}
	}
	services, err := a.client.CoreV1().Services("").List(ctx, metav1.ListOptions{Limit: 100})
	if err != nil {
		return fmt.Errorf("look whether the API server is at work: %w", err)
	}
	for _, s := range services.Items {
		if s.Namespace != namespace && s.Name != "kubernetes" {
			return fmt.Errorf("no benchmark with an API server at work: it has the service %s/%s, and thousands would be put beside "+
				"it: `make bench` starts one for the benchmark alone", s.Namespace, s.Name)
		}
	}
	return nil
}

// prepare removes the objects of an earlier run, and creates the node and the namespace.
func (a *apiServer) prepare(ctx context.Context) error {
	if err := a.idle(ctx); err != nil {
		return err
	}
	if err := a.clear(ctx); err != nil {
		return err
	}
	_, err := a.client.CoreV1().Namespaces().Create(ctx, &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
		metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("prepare the API server: %w", err)
	}
	node := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}, Status: v1.NodeStatus{Addresses: []v1.NodeAddress{
		// An address of no contender: their node ports are at the addresses of
		// --nodeport-addresses.
		{Type: v1.NodeInternalIP, Address: "192.0.2.1"}}}}
	if _, err := a.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("prepare the API server: %w", err)
	}
	return nil
}

// clear removes all objects of the benchmark except the empty namespace: without a
// controller, a deleted namespace stays terminating and accepts no objects.
func (a *apiServer) clear(ctx context.Context) error {
	services := a.client.CoreV1().Services(namespace)
	list, err := services.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("clear the API server: %w", err)
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(apiParallel)
	for _, s := range list.Items {
		group.Go(func() error { return services.Delete(groupCtx, s.Name, metav1.DeleteOptions{}) })
	}
	err = errors.Join(group.Wait(),
		a.client.DiscoveryV1().EndpointSlices(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}))
	if nodeErr := a.client.CoreV1().Nodes().Delete(ctx, nodeName, metav1.DeleteOptions{}); !apierrors.IsNotFound(nodeErr) {
		err = errors.Join(err, nodeErr)
	}
	if err != nil {
		return fmt.Errorf("clear the API server: %w", err)
	}
	clear(a.there)
	return nil
}

// leave clears the API server at the end of a run, also of an interrupted run.
func (a *apiServer) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveDeadline)
	defer cancel()
	return a.clear(ctx)
}

// fill creates the objects of the workload that the API server does not have yet. The workload
// has at least as many services as the API server. Services whose role changed are created
// anew.
func (a *apiServer) fill(ctx context.Context, w *workload, done func(int)) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(apiParallel)
	for i := range w.Services {
		text := fmt.Sprint(w.frontends(i))
		before, there := a.there[i]
		if before == text {
			continue
		}
		svc, slice := apiObjects(w, i)
		group.Go(func() error { return a.replace(ctx, svc, slice, there) })
		a.there[i] = text
		done(i)
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("fill the API server: %w", err)
	}
	return nil
}

func (a *apiServer) replace(ctx context.Context, svc *v1.Service, slice *discoveryv1.EndpointSlice, there bool) error {
	services, slices := a.client.CoreV1().Services(namespace), a.client.DiscoveryV1().EndpointSlices(namespace)
	if there {
		err := errors.Join(services.Delete(ctx, svc.Name, metav1.DeleteOptions{}), slices.Delete(ctx, slice.Name, metav1.DeleteOptions{}))
		if err != nil {
			return err
		}
	}
	if _, err := services.Create(ctx, svc, metav1.CreateOptions{}); err != nil {
		return err
	}
	_, err := slices.Create(ctx, slice, metav1.CreateOptions{})
	return err
}

// move writes the slice of the moving service in its state in w.
func (a *apiServer) move(ctx context.Context, w *workload) error {
	_, slice := apiObjects(w, w.moving())
	a.there[w.moving()] = fmt.Sprint(w.frontends(w.moving()))
	_, err := a.client.DiscoveryV1().EndpointSlices(namespace).Update(ctx, slice, metav1.UpdateOptions{})
	return err
}

// apiObjects returns a service and its slice as API objects.
func apiObjects(w *workload, i int) (*v1.Service, *discoveryv1.EndpointSlice) {
	name := nameOf(i).Name
	svc := &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: v1.ServiceSpec{Type: v1.ServiceTypeClusterIP, ClusterIP: clusterIP(i).String()}}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name + "-1", Namespace: namespace, Labels: map[string]string{
			discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: namespace}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	all := w.frontends(i)
	for _, f := range all {
		protocol, port := v1.Protocol(f.Protocol.String()), strings.ToLower(f.Protocol.String())
		svc.Spec.Ports = append(svc.Spec.Ports, v1.ServicePort{Name: port, Protocol: protocol, Port: servicePort,
			NodePort: int32(f.NodePort)})
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: new(port), Protocol: new(protocol),
			Port: new(int32(backendPort))})
		if f.NodePort != 0 {
			svc.Spec.Type = v1.ServiceTypeNodePort
		}
	}
	for _, b := range all[0].Backends {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{b.Addr().String()},
			NodeName: new(all[0].Node), Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true)}})
	}
	return svc, slice
}
