// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"shunt/e2e/rig"
	"shunt/lab"
)

// talker is one UDP (or TCP) socket in a pod that makes exchanges with the lab's servers
// and checks the answers.
type talker struct {
	*lab.Socket
	t *testing.T
	w way
	n int // requests so far
	// own is the socket's port, once it has been answered.
	own uint16
}

// heard is one answer.
type heard struct {
	token, server string
	// seen is the client that the server saw; from is the source by recvfrom(2).
	seen, from netip.AddrPort
}

// open opens a socket, which is closed with the test.
func (w way) open(t *testing.T, pod *lab.Pod) *talker {
	t.Helper()
	k := &talker{Socket: pod.Socket(w.network), t: t, w: w}
	t.Cleanup(func() { _ = k.Close() }) // it may be closed already, or its pod gone
	return k
}

// openTo opens a socket and connects it.
func (w way) openTo(t *testing.T, pod *lab.Pod, dst netip.AddrPort) *talker {
	t.Helper()
	k := w.open(t, pod)
	if err := k.Connect(dst); err != nil {
		t.Fatalf("%s connects to %v: %v", pod.Name(), dst, err)
	}
	return k
}

func (k *talker) token() string {
	k.n++
	return fmt.Sprintf("%s-%d", k.w, k.n)
}

// hear receives one answer.
func (k *talker) hear() heard {
	k.t.Helper()
	data, from, err := k.Recv(5 * time.Second)
	if err != nil {
		k.t.Fatalf("%s: hear an answer: %v", k.w, err)
	}
	words := strings.Fields(string(data))
	if len(words) != 4 {
		k.t.Fatalf("%s: %q from %v is no answer", k.w, data, from)
	}
	seen, err := netip.ParseAddrPort(words[2])
	if err != nil {
		k.t.Fatalf("%s: %q: %v", k.w, data, err)
	}
	return heard{words[0], words[1], seen, from}
}

// askTo sends a request to dst, connected or not, and receives the answer, which must show
// dst as its source. It returns the server's name.
func (k *talker) askTo(dst netip.AddrPort) string {
	k.t.Helper()
	token := k.token()
	if err := k.SendTo(dst, []byte(token+"\n")); err != nil {
		k.t.Fatalf("%s: send to %v: %v", k.w, dst, err)
	}
	return k.check(k.hear(), token, dst)
}

// ask is askTo on a connected socket, by send(2).
func (k *talker) ask(dst netip.AddrPort) string {
	k.t.Helper()
	token := k.token()
	if err := k.Send([]byte(token + "\n")); err != nil {
		k.t.Fatalf("%s: send, connected to %v: %v", k.w, dst, err)
	}
	return k.check(k.hear(), token, dst)
}

func (k *talker) check(h heard, token string, dst netip.AddrPort) string {
	k.t.Helper()
	if h.token != token {
		k.t.Fatalf("%s: asked %v with %q, heard %q", k.w, dst, token, h.token)
	}
	if strings.HasPrefix(k.w.network, "udp") && h.from != k.w.asked(dst) {
		k.t.Fatalf("%s: asked %v, %s answered as %v", k.w, dst, h.server, h.from)
	}
	if k.own != 0 && h.seen.Port() != k.own {
		k.t.Fatalf("%s: the server saw port %d, before it was %d", k.w, h.seen.Port(), k.own)
	}
	k.own = h.seen.Port()
	return h.server
}

// wantPeer checks getpeername.
func (k *talker) wantPeer(dst netip.AddrPort) {
	k.t.Helper()
	if peer, err := k.PeerName(); err != nil || peer != k.w.asked(dst) {
		k.t.Errorf("%s: getpeername gives %v (%v), want %v", k.w, peer, err, k.w.asked(dst))
	}
}

// woken reports whether poll(2) reports an error or a hang-up within the time, and after
// how long.
func (k *talker) woken(within time.Duration) (bool, time.Duration) {
	k.t.Helper()
	start := time.Now()
	events, err := k.Poll(lab.PollIn, within)
	if err != nil {
		k.t.Fatalf("%s: poll: %v", k.w, err)
	}
	return events&(lab.PollErr|lab.PollHup) != 0, time.Since(start)
}

// quiet is how long a test waits for an event that must not happen: several sweeps.
const quiet = 300 * time.Millisecond

// wantKept checks that the socket still reaches the same server, connected to dst.
func (k *talker) wantKept(dst netip.AddrPort, server string) {
	k.t.Helper()
	if woken, _ := k.woken(time.Millisecond); woken {
		errno, _ := k.SockError()
		k.t.Fatalf("%s: the socket to %v (%s) got %v", k.w, dst, server, errno)
	}
	if got := k.ask(dst); got != server {
		k.t.Fatalf("%s: %s answers at %v, before it was %s", k.w, got, dst, server)
	}
	k.wantPeer(dst)
}

// wantDestroyed checks that the socket was destroyed: it is woken, and has an error
// (SO_ERROR).
func (k *talker) wantDestroyed() {
	k.t.Helper()
	if woken, _ := k.woken(rig.Patience); !woken {
		k.t.Fatalf("%s: the socket was not woken within %v", k.w, rig.Patience)
	}
	if errno, err := k.SockError(); errno == 0 {
		k.t.Errorf("%s: the woken socket has no error (%v)", k.w, err)
	}
}

// line returns the bytes of a request.
func line(token string) []byte { return append(bytes.Clone([]byte(token)), '\n') }
