// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// TestConfigFileChanges: other content ends the daemon, unless it could not start with it.
// The same content, and a file that is missing for a time, do not.
func TestConfigFileChanges(t *testing.T) {
	const head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
	path := filepath.Join(t.TempDir(), "config.conf")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	put(head)
	var c Config
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	c.addFlags(flags)
	if err := flags.Parse([]string{"--config", path, "--node-name", "n1"}); err != nil {
		t.Fatal(err)
	}
	if err := c.validate(flags); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.ErrorLevel)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.file.follow(ctx, time.Millisecond, zap.New(core)) }()
	running := func(what string) {
		t.Helper()
		select {
		case err := <-done:
			t.Fatalf("%s: it ended: %v", what, err)
		case <-time.After(50 * time.Millisecond): // the file is read several times
		}
	}
	running("nothing changed")
	put(head)
	running("written again")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	running("gone")
	put(head + "nodePortAddresses: [nonsense]\n")
	for deadline := time.Now().Add(10 * time.Second); logs.Len() == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	running("refused")
	if logs.Len() != 1 || !strings.Contains(logs.All()[0].ContextMap()["error"].(string), "nodePortAddresses") {
		t.Errorf("the log: %v", logs.All())
	}
	put(head + "mode: nftables\n")
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("other content does not end it")
	}
	if err := (followedFile{}).follow(ctx, time.Hour, zap.NewNop()); err != nil {
		t.Errorf("without a file: %v", err)
	}
}

// TestConfigFileThatFlagsForbid: content is also refused if it is valid alone, but a daemon
// with these flags could not start with it.
func TestConfigFileThatFlagsForbid(t *testing.T) {
	const head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
	path := filepath.Join(t.TempDir(), "config.conf")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(head+text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("")
	var c Config
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	c.addFlags(flags)
	if err := flags.Parse([]string{"--config", path, "--node-name", "n1", "--probe-bind-address", "127.0.0.1:10300", "--nodeport-addresses", "10.0.0.0/8,primary",
		"--devices", "eth0", "--devices", "eth1", "--external-ips=false", "--feature-gates", "AllowServiceExternalIPs=false", "--services-map-size", "4096",
		"--udp-timeout", "1s", "--service-cidr", "10.96.0.0/12", "-v", "2"}); err != nil {
		t.Fatal(err)
	}
	if err := c.validate(flags); err != nil {
		t.Fatal(err)
	}
	before := fmt.Sprintf("%+v", c)
	for text, says := range map[string]string{
		"": "", "mode: nftables\n": "", "clusterCIDR: 10.1.0.0/16\n": "", "featureGates: {AllowServiceExternalIPs: false}\n": "",
		"healthzBindAddress: 0.0.0.0:10300\n": "two servers can't have one port",
		"healthzBindAddress: 0.0.0.0:10249\n": "two servers can't have one port",
		"clusterCIDR: nonsense\n":             "clusterCIDR",
	} {
		put(text)
		if err := canStart(flags); (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
	if after := fmt.Sprintf("%+v", c); after != before {
		t.Errorf("the running configuration was changed from\n%s to\n%s", before, after)
	}
	put("healthzBindAddress: 0.0.0.0:10300\n")
	core, logs := observer.New(zap.ErrorLevel)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.file.follow(ctx, time.Millisecond, zap.New(core)) }()
	for deadline := time.Now().Add(10 * time.Second); logs.Len() == 0 && len(done) == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	cancel()
	if err := <-done; err != nil || logs.Len() != 1 {
		t.Errorf("it ended with %v; the log: %v", err, logs.All())
	}
}

// TestNodeNameOfEnvironment: $NODE_NAME is converted to a Node's name, like the flag.
func TestNodeNameOfEnvironment(t *testing.T) {
	t.Setenv("NODE_NAME", " Node-1.Example ")
	c, err := parseRun()
	if err != nil || c.NodeName != "node-1.example" {
		t.Errorf("%q, %v", c.NodeName, err)
	}
}
