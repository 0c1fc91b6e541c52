// SPDX-License-Identifier: Apache-2.0

// Package api checks what lies in deploy/ against a real API server: that it takes
// every manifest, and that shunt's service account may do exactly what it has to.
// There is only a test in it; start reading at TestManifestsAreTaken.
package api
