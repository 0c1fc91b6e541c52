// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// keys are a cluster's secrets: files for the API server, and the credentials of clients.
type keys struct {
	caPEM      []byte // the certificate authority that signed the serving certificate
	adminToken string // bearer token of a member of system:masters

	servingCert, servingKey string // paths, PEM
	serviceAccountKey       string // path, PEM; signs and verifies service account tokens
	tokenFile               string // path, CSV
}

// backendAddress is the address on which kube-apiserver itself listens. It differs from the
// default address of the proxy, so that both can use the same port.
const backendAddress = "127.0.0.2"

// newKeys makes new keys in dir, for a server that clients reach by address, by "localhost"
// or by the names of the kubernetes Service.
func newKeys(dir, address string) (*keys, error) {
	k := &keys{
		adminToken:        rand.Text(),
		servingCert:       filepath.Join(dir, "serving.crt"),
		servingKey:        filepath.Join(dir, "serving.key"),
		serviceAccountKey: filepath.Join(dir, "service-account.key"),
		tokenFile:         filepath.Join(dir, "tokens.csv"),
	}
	ip := net.ParseIP(address)
	if ip == nil {
		return nil, fmt.Errorf("the address %q of the API server is not an IP address", address)
	}
	err := errors.Join(
		k.makeServing(ip),
		makeKey(k.serviceAccountKey),
		os.WriteFile(k.tokenFile, []byte(k.adminToken+",admin,admin,system:masters\n"), 0o600),
	)
	if err != nil {
		return nil, fmt.Errorf("make the keys of a control plane: %w", err)
	}
	return k, nil
}

// makeServing makes a certificate authority, whose key is not kept, and the serving
// certificate that it signs.
func (k *keys) makeServing(address net.IP) error {
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "shunt test CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	serving := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{address, net.ParseIP(backendAddress), net.ParseIP("127.0.0.1"), net.ParseIP("::1")},
		DNSNames: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local"},
	}
	servingKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	servingDER, err := x509.CreateCertificate(rand.Reader, serving, ca, servingKey.Public(), caKey)
	if err != nil {
		return err
	}
	k.caPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: servingDER})
	return errors.Join(os.WriteFile(k.servingCert, certPEM, 0o600), writeKey(k.servingKey, servingKey))
}

func makeKey(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	return writeKey(path, key)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}
