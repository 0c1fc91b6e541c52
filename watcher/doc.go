// SPDX-License-Identifier: Apache-2.0

// Package watcher reads Services, EndpointSlices, ServiceCIDRs and this node's Node from an
// API server or from manifest files, converts them to the model of package lb, and passes
// them to an lb.Sink. It decides nothing about traffic, makes no changes in the kernel and
// retains only the fields that the model needs. Start reading at Converter (pure), then API
// and Manifests, which call it.
package watcher
