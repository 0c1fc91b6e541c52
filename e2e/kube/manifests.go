// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"
)

// ReadManifests decodes the objects of YAML files, in order. An unknown or duplicate key of
// YAML is an error here; the API server checks for unknown fields.
func ReadManifests(paths ...string) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
		for n := 1; ; n++ {
			document, err := documents.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			object := &unstructured.Unstructured{}
			if err == nil {
				err = yaml.UnmarshalStrict(document, &object.Object)
			}
			if err != nil {
				return nil, fmt.Errorf("read document %d of %s: %w", n, path, err)
			}
			if len(object.Object) > 0 { // a document with only comments is empty
				objects = append(objects, object)
			}
		}
	}
	return objects, nil
}

// Create creates an object of any kind, as the administrator. Fields that its kind
// does not have are an error.
func (c *Cluster) Create(ctx context.Context, object *unstructured.Unstructured, options metav1.CreateOptions,
) (*unstructured.Unstructured, error) {
	kind := object.GroupVersionKind()
	what := fmt.Sprintf("create the %s %s/%s", kind.Kind, object.GetNamespace(), object.GetName())
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(c.client.Discovery()))
	mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	config := c.Config()
	config.Host = "https://" + c.proxy.upstream
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	options.FieldValidation = metav1.FieldValidationStrict
	created, err := client.Resource(mapping.Resource).Namespace(object.GetNamespace()).Create(ctx, object, options)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return created, nil
}
