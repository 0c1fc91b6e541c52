// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// kubeProxyFlags are kube-proxy's flags for which its configuration file has no field.
// kube-proxy has removed some of these flags, but operators' manifests still contain them.
// All are hidden in the help.
type kubeProxyFlags struct {
	master      string
	cleanup     bool
	initOnly    bool
	version     string
	writeTo     string
	healthzPort int32
	metricsPort int32
	udpTimeout  time.Duration
}

func (k *kubeProxyFlags) add(f *pflag.FlagSet) {
	f.StringVar(&k.master, "master", "", "kube-proxy's name of --apiserver")
	f.BoolVar(&k.cleanup, "cleanup", false, "refused: use `shunt cleanup`")
	f.BoolVar(&k.initOnly, "init-only", false, "refused: there is nothing to initialise apart")
	f.StringVar(&k.version, "version", "false", "print the version and quit")
	f.Lookup("version").NoOptDefVal = "true"
	f.StringVar(&k.writeTo, "write-config-to", "", "write the configuration to this `file` and quit")
	f.Int32Var(&k.healthzPort, "healthz-port", 10256, "port of /healthz where --healthz-bind-address has none; 0: don't serve it")
	f.Int32Var(&k.metricsPort, "metrics-port", 10249, "port of /metrics where --metrics-bind-address has none; 0: don't serve it")
	f.DurationVar(&k.udpTimeout, "udp-timeout", 0, "of kube-proxy's userspace mode")
	for _, name := range []string{"master", "cleanup", "init-only", "version", "write-config-to",
		"healthz-port", "metrics-port", "udp-timeout"} {
		_ = f.MarkHidden(name) // it was added just now
	}
}

// validate refuses flags that shunt can't follow, and malformed values.
func (k *kubeProxyFlags) validate() error {
	switch {
	case k.cleanup:
		return usageErrorf("--cleanup: use the command `shunt cleanup`")
	case k.initOnly:
		return usageErrorf("--init-only: nothing has to be initialised before `shunt run`: leave that container out")
	case k.healthzPort < 0 || k.healthzPort > 65535:
		return usageErrorf("--healthz-port %d: give 0 to 65535", k.healthzPort)
	case k.metricsPort < 0 || k.metricsPort > 65535:
		return usageErrorf("--metrics-port %d: give 0 to 65535", k.metricsPort)
	case k.udpTimeout < 0:
		return usageErrorf("--udp-timeout %v is negative", k.udpTimeout)
	}
	return nil
}

// wantsVersion reports whether --version requests the version. kube-proxy's flag can also set
// the version that kube-proxy reports; shunt's flag can't.
func (k *kubeProxyFlags) wantsVersion() (bool, error) {
	if k.version == "raw" {
		return true, nil
	}
	wants, err := strconv.ParseBool(k.version)
	if err != nil {
		return false, usageErrorf("--version=%s: give true, false or raw", k.version)
	}
	return wants, nil
}

// atPort returns the address of a server with the port of the server's port flag. The port
// flag is used if the address was not given or has no port. Port 0 disables the server.
func atPort(address string, port int32, addressGiven, portGiven bool) string {
	if !portGiven || address == "" {
		return address
	}
	host, _, err := net.SplitHostPort(address)
	switch {
	case err == nil && addressGiven:
		return address
	case port == 0:
		return ""
	case err != nil:
		host = strings.Trim(address, "[]")
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// pairs parses NAME=VALUE,NAME=VALUE and calls each for every pair.
func pairs(text string, each func(name, value string) error) error {
	for pair := range strings.SplitSeq(text, ",") {
		if pair == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return fmt.Errorf("%q: want NAME=VALUE", pair)
		}
		if err := each(strings.TrimSpace(name), strings.TrimSpace(value)); err != nil {
			return err
		}
	}
	return nil
}
