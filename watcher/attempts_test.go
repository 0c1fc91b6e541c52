// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	clienttesting "k8s.io/client-go/testing"
)

// TestResetIsSaid resets every connection, like a load balancer without an API server
// behind it. client-go takes that for a watch that has ended; the failure is logged all
// the same.
func TestResetIsSaid(t *testing.T) {
	noEnvironment(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { must(t, listener.Close()) })
	dir := t.TempDir()
	_, ca := fakeServer(t)
	write(t, dir+"/ca.crt", string(ca))
	client, _, err := NewClient(ClientOptions{Kubeconfig: kubeconfig(t, dir, "https://"+listener.Addr().String())})
	must(t, err)
	log, logs := testLog(zap.InfoLevel)
	api, err := NewAPI(APIOptions{Client: client, NodeName: "n1", Sink: newSink(t), Log: log})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Run(ctx) }()
	for _, resource := range []string{"services", "endpointslices", "nodes"} {
		line := "cannot watch " + resource + ": is the API server's address right, and can this node reach it?"
		for end := time.Now().Add(deadline); said(logs, line) == 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("nothing is said of %s: %v", resource, logs.All())
			}
		}
	}
	cancel()
	must(t, <-done)
	if said(logs, "answers again") > 0 {
		t.Errorf("a reset is taken for an answer: %v", logs.All())
	}
}

// TestWatchForbidden: an account that may list but not watch is logged once, although the
// lists, which are repeated in place of the watch, succeed.
func TestWatchForbidden(t *testing.T) {
	c := newCluster(webService(), slice("a"), node("n1"))
	var mu sync.Mutex
	tries, allowed := 0, false
	c.PrependWatchReactor("services", func(clienttesting.Action) (bool, watch.Interface, error) {
		mu.Lock()
		defer mu.Unlock()
		tries++
		return !allowed, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "", errors.New("RBAC"))
	})
	log, logs := testLog(zap.InfoLevel)
	s, _ := runAPI(t, c, log)
	s.next("set node n1", "set service shop/web", "set slice shop/a", "synced")
	eventually(t, "a few tries", func() bool { mu.Lock(); defer mu.Unlock(); return tries >= 3 })
	if n := said(logs, "cannot watch services: the account may not; grant it list and watch on services"); n != 1 || said(logs, "answers again") > 0 {
		t.Errorf("said %d times: %v", n, logs.All())
	}
	mu.Lock()
	allowed = true
	mu.Unlock()
	eventually(t, "the end of the failure is said", func() bool { return said(logs, "answers again") == 1 })
}
