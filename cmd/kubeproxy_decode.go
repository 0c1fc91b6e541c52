// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	logsapi "k8s.io/component-base/logs/api/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
	"sigs.k8s.io/yaml"
)

const (
	kubeProxyAPIVersion = "kubeproxy.config.k8s.io/v1alpha1"
	kubeProxyKind       = "KubeProxyConfiguration"
)

// readKubeProxyConfig reads a KubeProxyConfiguration, in YAML or JSON. set contains the paths
// of the fields that are set to a value (see saysNothing). It returns an error for a file of
// another kind or version, and for unknown and malformed fields: one error lists all such
// fields with their paths.
func readKubeProxyConfig(file string) (conf kubeproxy.KubeProxyConfiguration, set map[string]bool, err error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return conf, nil, fmt.Errorf("--config: %w", err)
	}
	if conf, set, err = decodeKubeProxyConfig(content); err != nil {
		return conf, nil, fmt.Errorf("--config %s: %w", file, err)
	}
	return conf, set, nil
}

func decodeKubeProxyConfig(content []byte) (conf kubeproxy.KubeProxyConfiguration, set map[string]bool, err error) {
	doc, err := onlyDocument(content)
	if err != nil {
		return conf, nil, err
	}
	raw, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		// The message of err has a line for each mistake: join them to one line.
		return conf, nil, fmt.Errorf("neither YAML nor JSON: %s", strings.Join(strings.Fields(err.Error()), " "))
	}
	var kind metav1.TypeMeta
	if err := json.Unmarshal(raw, &kind); err != nil {
		return conf, nil, fmt.Errorf("want an object of apiVersion %s and kind %s: %w", kubeProxyAPIVersion, kubeProxyKind, err)
	}
	if kind.Kind != kubeProxyKind {
		return conf, nil, fmt.Errorf("kind: %q: want %s", kind.Kind, kubeProxyKind)
	}
	if kind.APIVersion != kubeProxyAPIVersion {
		return conf, nil, fmt.Errorf("apiVersion: %q: want %s, the only version that is known", kind.APIVersion, kubeProxyAPIVersion)
	}
	d := decoder{set: map[string]bool{}}
	d.decode("", raw, reflect.ValueOf(&conf).Elem())
	return conf, d.set, oneError(d.errs)
}

// onlyDocument returns the only YAML document that has content.
func onlyDocument(content []byte) ([]byte, error) {
	var found []byte
	r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	for {
		doc, err := r.Read()
		switch {
		case errors.Is(err, io.EOF) && found == nil:
			return nil, errors.New("the file is empty")
		case errors.Is(err, io.EOF):
			return found, nil
		case err != nil:
			return nil, err
		}
		if raw, err := yaml.YAMLToJSON(doc); err == nil && string(raw) == "null" {
			continue // only comments
		}
		if found != nil {
			return nil, fmt.Errorf("more than one document: give the %s alone", kubeProxyKind)
		}
		found = doc
	}
}

// decoder decodes JSON to a value, field by field, so that each error has the path of its
// field. encoding/json names the field only in some errors.
type decoder struct {
	// set contains the paths of the fields that are set to a value (see saysNothing).
	set  map[string]bool
	errs []error
}

func (d *decoder) fail(path, format string, args ...any) {
	d.errs = append(d.errs, named(path, fmt.Errorf(format, args...)))
}

// named adds the name of a field or flag to an error that begins with the value:
// `field: "value" is wrong`, `--flag "value" is wrong`.
func named(name string, err error) error {
	if !strings.HasPrefix(name, "--") {
		name += ":"
	}
	return fmt.Errorf("%s %w", name, err)
}

// oneError joins all errors in one line; nil if there is none.
func oneError(errs []error) error {
	var all []string
	for _, err := range errs {
		if err != nil {
			all = append(all, err.Error())
		}
	}
	if all == nil {
		return nil
	}
	return errors.New(strings.Join(all, "; "))
}

func (d *decoder) decode(path string, raw json.RawMessage, v reflect.Value) {
	raw = bytes.TrimSpace(raw)
	if string(raw) == "null" {
		return
	}
	if !saysNothing(raw) {
		d.set[path] = true
	}
	if u, ok := v.Addr().Interface().(json.Unmarshaler); ok {
		if err := u.UnmarshalJSON(raw); err != nil {
			d.fail(path, "%s: want %s", raw, wanted(v.Type()))
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.decode(path, raw, v.Elem())
	case reflect.Struct:
		d.object(path, raw, v)
	case reflect.Slice:
		d.list(path, raw, v)
	case reflect.Map:
		d.mapping(path, raw, v)
	default:
		if err := json.Unmarshal(raw, v.Addr().Interface()); err != nil {
			d.fail(path, "%s: want %s", raw, wanted(v.Type()))
		}
	}
}

func (d *decoder) object(path string, raw json.RawMessage, v reflect.Value) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		d.fail(path, "%s: want an object", raw)
		return
	}
	for _, name := range sortedKeys(members) {
		member, ok := jsonField(v, name)
		if !ok {
			d.fail(join(path, name), "there is no such field")
			continue
		}
		d.decode(join(path, name), members[name], member)
	}
}

func (d *decoder) list(path string, raw json.RawMessage, v reflect.Value) {
	var elements []json.RawMessage
	if err := json.Unmarshal(raw, &elements); err != nil {
		d.fail(path, "%s: want a list", raw)
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(elements), len(elements)))
	for i, e := range elements {
		d.decode(fmt.Sprintf("%s[%d]", path, i), e, v.Index(i))
	}
}

func (d *decoder) mapping(path string, raw json.RawMessage, v reflect.Value) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		d.fail(path, "%s: want an object", raw)
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for _, name := range sortedKeys(members) {
		member := reflect.New(v.Type().Elem()).Elem()
		d.decode(join(path, name), members[name], member)
		v.SetMapIndex(reflect.ValueOf(name), member)
	}
}

// saysNothing reports whether a value means that the field is not set. kubeadm writes such
// values, among them the unspecified address.
func saysNothing(raw json.RawMessage) bool {
	switch string(raw) {
	case `null`, `""`, `0`, `"0"`, `"0s"`, `false`, `[]`, `{}`, `"0.0.0.0"`, `"::"`:
		return true
	}
	return false
}

// jsonField finds a field of a struct, or of a struct embedded in it, by its JSON name.
func jsonField(v reflect.Value, name string) (reflect.Value, bool) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == name {
			return v.Field(i), true
		}
		if f.Anonymous && tag == "" {
			if inner, ok := jsonField(v.Field(i), name); ok {
				return inner, true
			}
		}
	}
	return reflect.Value{}, false
}

// fieldAt finds a field by its path, which must exist.
func fieldAt(conf *kubeproxy.KubeProxyConfiguration, path string) reflect.Value {
	v := reflect.ValueOf(conf).Elem()
	for name := range strings.SplitSeq(path, ".") {
		v, _ = jsonField(v, name)
	}
	return v
}

func wanted(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[metav1.Duration](), reflect.TypeFor[logsapi.TimeOrMetaDuration]():
		return `a duration, like "30s"`
	case reflect.TypeFor[resource.QuantityValue]():
		return `a quantity, like "64Ki"`
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Float32, reflect.Float64:
		return "a number"
	}
	return "a whole number (" + t.Kind().String() + ")"
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
