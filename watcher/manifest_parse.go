// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// maxListDepth is the maximum nesting of Lists within Lists.
const maxListDepth = 4

// objectKey identifies an object in manifest files.
type objectKey struct{ kind, namespace, name string }

func (k objectKey) String() string {
	return Warning{Kind: k.kind, Namespace: k.namespace, Name: k.name}.Object()
}

// object is the object in one document, or in one item of its List.
type object struct {
	key  objectKey
	line int // the first line of its document, from 1
	// model is *lb.Service, *lb.EndpointSlice or *lb.Node; nil where nothing of
	// the object is programmed.
	model    any
	warnings []Warning
}

// ours reports whether the object is of a kind that shunt reads.
func (o *object) ours() bool {
	return o.key.kind == kindService || o.key.kind == kindSlice || o.key.kind == kindNode
}

// failure is a document, or an item of its List, that could not be used.
type failure struct {
	key objectKey // zero: which object it holds is not known
	err error
}

// parsed is the result of reading one document.
type parsed struct {
	objects  []*object
	failures []failure
}

// document is one document of a file.
type document struct {
	index, line int // both from 1
	text        []byte
}

// splitDocuments splits a file at its document markers ("---" and "..." at the start of a
// line: YAML 1.2.2, 9.1.2). It retains documents without content, so that the index matches
// the position in the file.
func splitDocuments(data []byte) []document {
	var out []document
	cur := document{index: 1, line: 1}
	for n := 1; len(data) > 0; n++ {
		line := data
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			line = data[:i+1]
		}
		data = data[len(line):]
		body, starts := marker(line, "---")
		_, ends := marker(line, "...")
		switch {
		case starts && len(bytes.TrimSpace(cur.text)) == 0 && len(out) == 0:
			cur = document{index: 1, line: n, text: body} // a file may begin with a marker
		case starts:
			out = append(out, cur)
			cur = document{index: cur.index + 1, line: n, text: body}
		case ends:
		default:
			cur.text = append(cur.text, line...)
		}
	}
	return append(out, cur)
}

// marker reports whether a line begins with the document marker mark, and returns the rest
// of the line.
func marker(line []byte, mark string) ([]byte, bool) {
	rest, ok := bytes.CutPrefix(line, []byte(mark))
	if !ok || (len(rest) > 0 && !bytes.ContainsRune([]byte(" \t\r\n"), rune(rest[0]))) {
		return nil, false
	}
	return bytes.Clone(rest), true
}

// parse reads a document. The result shares no memory with the text.
func (c *Converter) parse(d document) *parsed {
	out := &parsed{}
	data, duplicate, err := toJSON(d)
	if err != nil {
		out.failures = append(out.failures, failure{err: err})
		return out
	}
	c.parseObject(out, d.line, data, head{}, 0)
	if duplicate != nil && len(out.objects) > 0 {
		o := out.objects[0]
		o.warnings = append(o.warnings, Warning{Kind: o.key.kind, Namespace: o.key.namespace, Name: o.key.name, Problem: duplicate.Error()})
	}
	return out
}

var yamlLine = regexp.MustCompile(`\bline (\d+)\b`)

// toJSON converts a document to JSON. strict is an error that only a strict parser
// returns, such as a duplicate key. Line numbers in errors are those of the file.
func toJSON(d document) (data []byte, strict, err error) {
	if t := bytes.TrimSpace(d.text); len(t) > 0 && t[0] == '{' && json.Valid(t) {
		return t, nil, nil
	}
	data, strict = yaml.YAMLToJSONStrict(d.text)
	if strict != nil {
		if data, err = yaml.YAMLToJSON(d.text); err != nil {
			return nil, nil, inFile(err, d.line)
		}
		strict = inFile(strict, d.line)
	}
	return data, strict, nil
}

// inFile converts the line numbers in an error of a document to those of the file.
func inFile(err error, first int) error {
	return errors.New(yamlLine.ReplaceAllStringFunc(err.Error(), func(s string) string {
		n, _ := strconv.Atoi(strings.TrimPrefix(s, "line "))
		return "line " + strconv.Itoa(n+first-1)
	}))
}

// head has the fields of any API object, and the items of a List.
type head struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
	Items []json.RawMessage `json:"items"`
}

// parseObject reads an object, or the items of a List. The parameter of contains the defaults
// for apiVersion and kind, since the items of a typed list need not repeat them.
func (c *Converter) parseObject(out *parsed, line int, data []byte, of head, depth int) {
	if t := bytes.TrimSpace(data); len(t) == 0 || bytes.Equal(t, []byte("null")) {
		return
	}
	h := of
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &h); err != nil {
		out.failures = append(out.failures, failure{err: fmt.Errorf("is not an object of the API: %w", err)})
		return
	}
	item := head{APIVersion: h.APIVersion}
	switch h.APIVersion + " " + h.Kind {
	case "v1 Service":
		c.parseService(out, line, data, h)
		return
	case "discovery.k8s.io/v1 EndpointSlice":
		c.parseSlice(out, line, data, h)
		return
	case "v1 Node":
		c.parseNode(out, line, data, h)
		return
	case "v1 List":
		item = head{}
	case "v1 ServiceList", "discovery.k8s.io/v1 EndpointSliceList", "v1 NodeList":
		item.Kind = strings.TrimSuffix(h.Kind, "List")
	default:
		out.unknown(line, h)
		return
	}
	if depth == maxListDepth {
		out.failures = append(out.failures, failure{err: fmt.Errorf("items: Lists within Lists are nested deeper than %d", maxListDepth)})
		return
	}
	for i, raw := range h.Items {
		before := len(out.failures)
		c.parseObject(out, line, raw, item, depth+1)
		for j := range out.failures[before:] {
			fail := &out.failures[before+j]
			fail.err = fmt.Errorf("items[%d]: %w", i, fail.err)
		}
	}
}

// unknown handles a kind or version that shunt does not read. An object without a kind,
// or a known kind in an unknown version, is a failure. Any other kind is ignored with a
// warning.
func (p *parsed) unknown(line int, h head) {
	switch h.Kind {
	case "":
		p.failures = append(p.failures, failure{err: errors.New("kind: is missing")})
	case kindService, kindSlice, kindNode:
		want := "v1"
		if h.Kind == kindSlice {
			want = discoveryv1.SchemeGroupVersion.String()
		}
		err := fmt.Errorf("apiVersion: %s is not supported: use %s", show(h.APIVersion), want)
		p.failures = append(p.failures, failure{key: h.key(h.Kind), err: err})
	default:
		o := &object{key: h.key(h.Kind), line: line}
		o.warnings = []Warning{{
			Kind: o.key.kind, Namespace: o.key.namespace, Name: o.key.name,
			Field: "kind", Problem: "is not Service, EndpointSlice or Node: ignored",
		}}
		p.objects = append(p.objects, o)
	}
}

// key returns the object's key. A missing namespace is "default"; a Node has none.
func (h head) key(kind string) objectKey {
	k := objectKey{kind, h.Metadata.Namespace, h.Metadata.Name}
	if kind == kindNode {
		k.namespace = ""
	} else if k.namespace == "" {
		k.namespace = v1.NamespaceDefault
	}
	return k
}

func (c *Converter) parseService(out *parsed, line int, data []byte, h head) {
	s, o := &v1.Service{}, &object{key: h.key(kindService), line: line}
	if !out.decode(o, data, s, func() any { return &v1.Service{} }) {
		return
	}
	s.Namespace = o.key.namespace
	// The API server would set these defaults.
	if s.Spec.Type == "" {
		s.Spec.Type = v1.ServiceTypeClusterIP
	}
	if s.Spec.ClusterIP == "" && len(s.Spec.ClusterIPs) > 0 {
		s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	}
	if s.Spec.ClusterIP == "" && s.Spec.Type != v1.ServiceTypeExternalName && !ofAnotherProxy(s.Labels) {
		o.warn("spec.clusterIP", "is missing: service ignored (there is no API server to allocate one)")
	}
	m, w := c.Service(s)
	o.warnings = append(o.warnings, w...)
	if m != nil {
		o.model = m
	}
	out.objects = append(out.objects, o)
}

func (c *Converter) parseSlice(out *parsed, line int, data []byte, h head) {
	s, o := &discoveryv1.EndpointSlice{}, &object{key: h.key(kindSlice), line: line}
	if !out.decode(o, data, s, func() any { return &discoveryv1.EndpointSlice{} }) || ignored(s.Labels) {
		return
	}
	s.Namespace = o.key.namespace
	m, w := c.Slice(s)
	o.warnings = append(o.warnings, w...)
	if m != nil {
		o.model = m
	} else if s.Labels[discoveryv1.LabelServiceName] == "" {
		o.warn("metadata.labels", "%s is missing: slice ignored", discoveryv1.LabelServiceName)
	}
	out.objects = append(out.objects, o)
}

func (c *Converter) parseNode(out *parsed, line int, data []byte, h head) {
	n, o := &v1.Node{}, &object{key: h.key(kindNode), line: line}
	if !out.decode(o, data, n, func() any { return &v1.Node{} }) {
		return
	}
	m, w := c.Node(n)
	o.model, o.warnings = m, append(o.warnings, w...)
	out.objects = append(out.objects, o)
}

func (o *object) warn(field, format string, args ...any) {
	p := warnings{of: Warning{Kind: o.key.kind, Namespace: o.key.namespace, Name: o.key.name}}
	p.add(field, format, args...)
	o.warnings = append(o.warnings, p.list...)
}
