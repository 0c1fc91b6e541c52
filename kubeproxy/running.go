// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Sign is a sign of a kube-proxy that runs in this network namespace.
type Sign struct {
	// PID is 0 if only the HTTP answer is known: the kube-proxy can be part of another
	// process (k3s), or be invisible in /proc.
	PID int `json:"pid,omitempty"`
	// Address is the address at which the kube-proxy answers /proxyMode, Mode its answer.
	Address string `json:"address,omitempty"`
	Mode    string `json:"mode,omitempty"`
}

// String returns what was found.
func (s Sign) String() string {
	if s.PID != 0 {
		return fmt.Sprintf("process kube-proxy, pid %d", s.PID)
	}
	return fmt.Sprintf("a kube-proxy that answers at %s, mode %s", s.Address, s.Mode)
}

// metricsAddress is the default address at which a kube-proxy answers /proxyMode.
const metricsAddress = "127.0.0.1:10249"

// modes are kube-proxy's answers at /proxyMode. shunt's answer is health.ProxyMode.
var modes = []string{"iptables", "ipvs", "nftables", "userspace"}

// probeTimeout bounds the request to a local port.
const probeTimeout = time.Second

// Running returns the signs of kube-proxies in the network namespace of the calling thread:
// processes named kube-proxy, and a kube-proxy that answers /proxyMode at metricsAddress.
func Running(ctx context.Context) []Sign {
	signs := processes()
	if mode := askMode(ctx, metricsAddress); slices.Contains(modes, mode) {
		signs = append(signs, Sign{Address: metricsAddress, Mode: mode})
	}
	return signs
}

// processes returns the kube-proxies that are visible in /proc. It leaves out a process that
// can't be read, for example because it has ended.
func processes() []Sign {
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return []Sign{}
	}
	names, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is well-formed
	signs := []Sign{}
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(comm)) != "kube-proxy" {
			continue
		}
		dir := filepath.Dir(name)
		there, err := os.Readlink(filepath.Join(dir, "ns/net"))
		pid, numErr := strconv.Atoi(filepath.Base(dir))
		if err == nil && numErr == nil && there == here {
			signs = append(signs, Sign{PID: pid})
		}
	}
	return signs
}

// askMode returns the answer of GET /proxyMode, "" if there is none.
func askMode(ctx context.Context, address string) string {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	// Dial on this thread: the transport would dial on another thread, which can be in
	// another network namespace.
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return ""
	}
	defer conn.Close()
	transport := &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives: true,
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/proxyMode", nil)
	if err != nil {
		return ""
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return ""
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 64))
	if err != nil || response.StatusCode != http.StatusOK {
		return ""
	}
	return strings.TrimSpace(string(body))
}
