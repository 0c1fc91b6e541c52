package lb

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"shunt/maps"
)

func TestLoopSmoke(t *testing.T) {
	st := NewStore(time.Now)
	fake := maps.NewFake(maps.Sizes{Services: 100, Slots: 128, Backends: 100, Affinity: 16})
	l := NewLoop(LoopOptions{Store: st, Tables: fake, Log: zaptest.NewLogger(t), Now: time.Now, NodeName: "n1"})
	if _, err := l.Adopt(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go l.Run(ctx)
	n := ServiceName{"default", "web"}
	st.SetService(&Service{Name: n, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Ports: []ServicePort{{Name: "http", Protocol: TCP, Port: 80, NodePort: 30080}}})
	st.SetSlice(&EndpointSlice{Name: SliceName{"default", "web-1"}, Service: n, Ports: []EndpointPort{{"http", TCP, 8080}},
		Endpoints: []Endpoint{{Addr: netip.MustParseAddr("10.0.0.1"), Ready: true, Serving: true, Node: "n1"}, {Addr: netip.MustParseAddr("10.0.0.2"), Ready: true, Serving: true}}})
	st.SetNodeAddrs([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.168.0.1")})
	st.SetSynced()
	<-l.Synced()
	d, _ := fake.Dump()
	t.Log("\n" + d.Text())
}
