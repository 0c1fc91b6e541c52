// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"shunt/e2e/kube"
	"shunt/lab"
)

// freed bounds the time until shunt serves a port that kube-proxy has released.
const freed = 2 * time.Second

// httpGet makes a request from a node.
func httpGet(n *node, at, path string) (code int, header http.Header, body string, err error) {
	transport := &http.Transport{DialContext: n.DialContext, DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Get("http://" + at + path)
	if err != nil {
		return 0, nil, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, strings.TrimSpace(string(text)), err
}

// keys returns the paths of the fields of a JSON object.
func keys(t *testing.T, body string) map[string]bool {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	all := map[string]bool{}
	var walk func(prefix string, v any)
	walk = func(prefix string, v any) {
		m, is := v.(map[string]any)
		if !is {
			all[prefix] = true
			return
		}
		for k, inner := range m {
			walk(prefix+"."+k, inner)
		}
	}
	walk("", v)
	return all
}

// startKubeProxy runs the real kube-proxy on a node until the test ends.
func (w *world) startKubeProxy(t *testing.T, n *node) *lab.Cmd {
	t.Helper()
	tools, err := kube.Tools(t.Context(), "kube-proxy")
	check(t, err)
	pod := n.HostPod("kube-proxy")
	var log logBuffer
	proxy := pod.Command(context.Background(), tools[0], "--kubeconfig", w.kubeconfig(), "--hostname-override", n.Name(),
		"--proxy-mode=nftables", "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0",
		"--conntrack-tcp-timeout-close-wait=0", "--oom-score-adj=0")
	proxy.Stdout, proxy.Stderr = &log, &log
	check(t, proxy.Start())
	t.Cleanup(func() {
		_ = proxy.Signal(syscall.SIGKILL)
		<-proxy.Done()
		if t.Failed() {
			t.Logf("kube-proxy's log ends with:\n%s", log.tail(20))
		}
	})
	return proxy
}

// TestKubeProxyHandsOver runs the real kube-proxy on a node, asks its health servers,
// starts shunt beside it, and ends kube-proxy: shunt must have the ports within 2 s, and
// answer with the fields that users of kube-proxy read.
func TestKubeProxyHandsOver(t *testing.T) {
	w := setUp(t).in(t, "handover")
	n := w.testNode(t, "handover")
	w.register(t, n)
	local := n.Pod("local")
	w.names[local.Addr4()] = "local"
	const port = checkNodePort + 5
	w.create("web", []v1.ServicePort{tcp("", 80)}, localService(port), func(s *v1.Service) {
		s.Spec.IPFamilyPolicy = ptr(v1.IPFamilyPolicyRequireDualStack)
	})
	w.createSlice("web", "web-1", onePort, v4(local))
	w.createSlice("web", "web-2", []discoveryv1.EndpointPort{target("", v1.ProtocolTCP, 8000)}, v6(w.pods[5]))

	proxy := w.startKubeProxy(t, n)
	type question struct{ at, path string }
	at4 := netip.AddrPortFrom(n.Addr4(), port).String()
	at6 := netip.AddrPortFrom(n.Addr6(), port).String()
	questions := []question{{"127.0.0.1:10256", "/healthz"}, {"127.0.0.1:10256", "/livez"}, {"127.0.0.1:10249", "/healthz"},
		{at4, "/"}, {at6, "/"}}
	type reply struct {
		code int
		body string
	}
	theirs := map[question]reply{}
	for _, q := range questions {
		eventually(t, "kube-proxy answers at "+q.at, func() error {
			code, _, body, err := httpGet(n, q.at, q.path)
			if err == nil && code != http.StatusOK && q.at != at6 {
				err = fmt.Errorf("%d %s", code, body)
			}
			theirs[q] = reply{code, body}
			return err
		})
		t.Logf("kube-proxy: %v: %d %s", q, theirs[q].code, theirs[q].body)
	}

	taint := func(taints ...v1.Taint) {
		t.Helper()
		w.updateNode(n.Name(), func(n *v1.Node) { n.Spec.Taints = taints })
	}
	leaving := v1.Taint{Key: "ToBeDeletedByClusterAutoscaler", Value: "1", Effect: v1.TaintEffectNoSchedule}
	drained := func(what string) (words map[string]any) {
		t.Helper()
		taint(leaving)
		eventually(t, what+" hears of the taint", func() error {
			code, _, body, err := httpGet(n, "127.0.0.1:10256", "/healthz")
			if err == nil && code != http.StatusServiceUnavailable {
				err = fmt.Errorf("%d %s", code, body)
			}
			return errors.Join(err, json.Unmarshal([]byte(body), &words))
		})
		taint()
		delete(words, "lastUpdated")
		delete(words, "currentTime")
		delete(words, "status")
		return words
	}
	theirWords := drained("kube-proxy")
	t.Logf("kube-proxy on a node that leaves: %v", theirWords)

	d := w.runFor(t, daemonOptions{name: "handover", node: n,
		healthz: "0.0.0.0:10256", metrics: "127.0.0.1:10249", probes: "127.0.0.1:10266"})
	d.await(t, `"in effect"`)
	d.await(t, "cannot serve healthz")
	for _, path := range []string{"/livez", "/readyz"} {
		if code, _, body, err := httpGet(n, "127.0.0.1:10266", path); err != nil || code != http.StatusOK {
			t.Errorf("our own probe beside kube-proxy: %s: %d %s, %v", path, code, body, err)
		}
	}
	if code, _, _, err := httpGet(n, "127.0.0.1:10256", "/readyz"); err == nil && code == http.StatusOK {
		t.Error("10256 is shunt's already: nothing is handed over")
	}
	// So long that a doubling backoff would exceed the limit.
	time.Sleep(5 * time.Second)
	check(t, proxy.Signal(syscall.SIGKILL))
	<-proxy.Done()
	gone := time.Now()
	for _, q := range questions {
		var ours reply
		eventually(t, "shunt answers at "+q.at, func() (err error) {
			ours.code, _, ours.body, err = httpGet(n, q.at, q.path)
			return err
		})
		if took := time.Since(gone); took > freed {
			t.Errorf("%v was served %v after kube-proxy's end", q, took)
		}
		t.Logf("shunt: %v: %d %s", q, ours.code, ours.body)
		if ours.code != theirs[q].code {
			t.Errorf("%v: %d, kube-proxy says %d", q, ours.code, theirs[q].code)
		}
		if !strings.HasPrefix(theirs[q].body, "{") {
			if ours.body != theirs[q].body {
				t.Errorf("%v: %q, kube-proxy says %q", q, ours.body, theirs[q].body)
			}
			continue
		}
		has := keys(t, ours.body)
		for k := range keys(t, theirs[q].body) {
			if !has[k] {
				t.Errorf("%v: no field %s in %s", q, k, ours.body)
			}
		}
	}
	for k, v := range drained("shunt") {
		if there, is := theirWords[k]; is && there != v {
			t.Errorf("on a node that leaves %s is %v, kube-proxy says %v", k, v, there)
		}
	}
}
