// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// TestWatchWithoutAnswer checks that a watch of which the request is never answered ends with an
// error and is not up, and that an open watch is not limited.
func TestWatchWithoutAnswer(t *testing.T) {
	noEnvironment(t)
	const limit = 300 * time.Millisecond
	var swallow atomic.Bool
	event := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if swallow.Load() {
			<-r.Context().Done()
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		select {
		case <-event:
			fmt.Fprintln(w, `{"type":"ADDED","object":{"kind":"Node","apiVersion":"v1","metadata":{"name":"n1"}}}`)
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
		}
		<-r.Context().Done()
	}))
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	servers := NewServers(ServersOptions{})
	servers.answer = answerLimit{watch: limit, request: time.Minute}
	client, _, err := NewClient(ClientOptions{APIServer: srv.URL, Servers: servers})
	must(t, err)
	log, _ := testLog(0)
	l := &link{resource: "nodes", log: log}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	lw := cache.ToWatcherWithContext(listWatch(client.CoreV1().Nodes(), func(*metav1.ListOptions) {}, l, client))
	w, err := lw.WatchWithContext(ctx, metav1.ListOptions{Watch: true})
	must(t, err)
	if !l.state().Up {
		t.Fatal("an open watch is not up")
	}
	time.Sleep(3 * limit) // an open watch lasts longer than the limit
	close(event)
	select {
	case e, open := <-w.ResultChan():
		if !open || e.Object == nil {
			t.Error("the open watch ended at the limit")
		}
	case <-ctx.Done():
		t.Fatal("the open watch has no event")
	}
	w.Stop()
	swallow.Store(true)
	_, err = lw.WatchWithContext(ctx, metav1.ListOptions{Watch: true})
	if err == nil || ctx.Err() != nil {
		t.Fatalf("a watch without an answer: %v, after 20 s: %v", err, ctx.Err())
	}
	if s := l.state(); s.Up || !strings.Contains(s.Error, "has not answered the request within 300ms") {
		t.Errorf("the watch is up: %t, its error: %q", s.Up, s.Error)
	}
}
