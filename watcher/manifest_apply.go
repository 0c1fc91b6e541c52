// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"cmp"
	stdmaps "maps"
	"path/filepath"
	"slices"

	"go.uber.org/zap"

	"shunt/lb"
)

// fileKey identifies an object within one file.
type fileKey struct {
	file string
	objectKey
}

// apply passes to the Sink the difference between the objects that are valid now and those
// that were applied before. It sets new objects before it removes old ones: an endpoint that
// moves from one slice to another is never missing from both.
func (m *Manifests) apply() {
	desired, node := m.winners()
	m.usable = len(desired)
	if m.applied == nil {
		m.applied = make(map[objectKey]any)
	}
	set := 0
	for _, key := range sorted(desired) {
		if m.set(key, desired[key]) {
			set++
		}
	}
	removed := 0
	for _, key := range sorted(m.applied) {
		if _, ok := desired[key]; !ok {
			removed++
			delete(m.applied, key)
			m.remove(key)
		}
	}
	m.setNode(node)
	m.Log.Info("manifests were read", zap.Int("files", len(m.files)), zap.Int("objects", len(desired)),
		zap.Int("set", set), zap.Int("removed", removed))
}

// winners returns the models to apply: of several objects with the same name, the model of
// the first. node is this node's Node, or nil. winners reports the warnings of every object.
func (m *Manifests) winners() (desired map[objectKey]any, node *lb.Node) {
	desired = make(map[objectKey]any)
	first := make(map[objectKey]string)
	there := make(map[fileKey]bool)
	for _, path := range m.sortedFiles() {
		for _, o := range m.files[path].objects {
			key, warnings := fileKey{path, o.key}, o.warnings
			if winner, taken := first[o.key]; taken && o.ours() {
				warnings = append(slices.Clip(warnings), Warning{
					Kind: o.key.kind, Namespace: o.key.namespace, Name: o.key.name,
					Problem: "is ignored: " + filepath.Base(winner) + " has it already",
				})
				if winner == path {
					key.file += "#2" // the first object has the key without "#2"
				}
			} else {
				first[o.key] = path
				switch model := o.model.(type) {
				case nil:
				case *lb.Node:
					if node == nil && (m.NodeName == "" || model.Name == m.NodeName) {
						node = model
					}
				default:
					desired[o.key] = model
				}
			}
			there[key] = true
			m.reports.report(key, warnings, zap.String("file", path), zap.Int("line", o.line))
		}
	}
	m.reports.retain(func(k fileKey) bool { return there[k] })
	return desired, node
}

// set passes a model to the Sink unless an equal model is applied already. It reports whether
// it called the Sink.
func (m *Manifests) set(key objectKey, model any) bool {
	old := m.applied[key]
	switch n := model.(type) {
	case *lb.Service:
		if o, ok := old.(*lb.Service); ok && equalService(o, n) {
			return false
		}
		m.Sink.SetService(n)
	case *lb.EndpointSlice:
		if o, ok := old.(*lb.EndpointSlice); ok && equalSlice(o, n) {
			return false
		}
		m.Sink.SetSlice(n)
	}
	m.applied[key] = model
	return true
}

func (m *Manifests) remove(key objectKey) {
	switch key.kind {
	case kindService:
		m.Sink.DeleteService(lb.ServiceName{Namespace: key.namespace, Name: key.name})
	case kindSlice:
		m.Sink.DeleteSlice(lb.SliceName{Namespace: key.namespace, Name: key.name})
	}
}

// setNode passes this node's Node to the Sink. If no file contains that Node, it passes a Node
// that has only the configured name.
func (m *Manifests) setNode(node *lb.Node) {
	if node == nil && m.NodeName != "" {
		node = &lb.Node{Name: m.NodeName}
	}
	if old := m.node; node == old || (node != nil && old != nil && equalNode(node, old)) {
		return
	}
	m.node = node
	m.Sink.SetNode(node)
}

// sorted returns the keys of objects in a fixed order: services, then slices.
func sorted(objects map[objectKey]any) []objectKey {
	return slices.SortedFunc(stdmaps.Keys(objects), func(a, b objectKey) int {
		return cmp.Or(-cmp.Compare(a.kind, b.kind), cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
}
