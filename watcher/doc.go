// SPDX-License-Identifier: Apache-2.0

// Package watcher turns what an API server or manifest files say into calls on
// an lb.Sink: Services, EndpointSlices and this node's Node, converted to the
// model of package lb. It decides nothing about traffic, never touches a kernel
// and keeps no object that the model does not need. Start reading at Converter
// (pure), then API and Manifests, which feed it.
package watcher
