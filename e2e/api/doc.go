// SPDX-License-Identifier: Apache-2.0

// Package api checks deploy/ against a real API server: it must accept every manifest, and
// shunt's service account must have exactly the rights it needs. It has only tests; start
// reading at TestManifestsAreTaken.
package api
