// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"shunt/maps"
	"shunt/maps/mapstest"
)

func numberedProblem(i int) maps.Problem {
	return maps.Problem{
		Service: maps.Name{Namespace: "default", Name: "web", Port: "http", Protocol: 6, Family: 4},
		Kind:    maps.Conflict, Frontend: maps.NewFrontendKey(netip.MustParseAddr("1.1.1.1"), uint16(1000+i), 6),
		OwnerNamespace: "other", Owner: "older", Text: "text", Since: time.Unix(int64(i), 5).UTC(), Attempts: uint32(i), More: 7,
	}
}

// What the daemon writes can be read through another opening of the pins. Problems that do not
// fit are cut or counted, and a shorter list leaves no element of a longer one.
func TestProblems(t *testing.T) {
	root := mapstest.BPFFS(t)
	k, _ := mapstest.Open(t, root, small)
	read := func() ([]maps.Problem, int) {
		t.Helper()
		other, _ := mapstest.Open(t, root, small)
		return other.Problems()
	}
	if list, total := read(); len(list) != 0 || total != 0 {
		t.Errorf("new maps have %d of %d problems", len(list), total)
	}
	room := k.ProblemRoom()
	many := make([]maps.Problem, 2*room)
	for i := range many {
		many[i] = numberedProblem(i)
	}
	k.SetProblems(many, 5000)
	list, total := read()
	if len(list) != room || total != 5000 {
		t.Fatalf("%d problems of %d, want %d of 5000", len(list), total, room)
	}
	for i, got := range list {
		if got != numberedProblem(i) {
			t.Fatalf("problem %d is %+v, want %+v", i, got, numberedProblem(i))
		}
	}
	long := maps.Problem{Service: maps.Name{Namespace: "default", Name: strings.Repeat("n", 253)}, Kind: maps.Failed,
		Text: strings.Repeat("ä", 500), Since: time.Unix(1, 0).UTC()}
	k.SetProblems([]maps.Problem{long}, 1)
	list, total = read()
	if len(list) != 1 || total != 1 {
		t.Fatalf("%d problems of %d, want one", len(list), total)
	}
	if n := list[0].Service.Name; len(n) != 63 || !strings.HasSuffix(n, "n…") {
		t.Errorf("a long name is %q", n)
	}
	if s := list[0].Text; len(s) > 256 || !strings.HasSuffix(s, "ä…") {
		t.Errorf("a long text is %q", s)
	}
	k.SetProblems(nil, 0)
	if list, total := read(); len(list) != 0 || total != 0 {
		t.Errorf("%d problems of %d are left", len(list), total)
	}
}

// A reader never gets a mixture of two lists, and does not wait forever for a writer that died.
func TestProblemsWhileWritten(t *testing.T) {
	root := mapstest.BPFFS(t)
	writer, _ := mapstest.Open(t, root, small)
	reader, _ := mapstest.Open(t, root, small)
	lists := [][]maps.Problem{make([]maps.Problem, 200), make([]maps.Problem, 100)}
	for n, list := range lists {
		for i := range list {
			list[i] = numberedProblem(i)
			list[i].Attempts = uint32(n)
		}
	}
	writer.SetProblems(lists[0], 200)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 1; ; i++ {
			select {
			case <-stop:
				return
			default:
				writer.SetProblems(lists[i%2], len(lists[i%2]))
				time.Sleep(200 * time.Microsecond)
			}
		}
	})
	for range 300 {
		got, total := reader.Problems()
		if len(got) != total || len(got) == 0 {
			t.Fatalf("%d problems of %d", len(got), total)
		}
		for _, p := range got {
			if int(p.Attempts) != 2-len(got)/100 {
				t.Fatalf("of %d problems one is of the other list", len(got))
			}
		}
	}
	close(stop)
	wg.Wait()

	changeMeta(t, root, func(m *maps.Meta) { m.ProblemsVersion |= 1 })
	if got, _ := reader.Problems(); len(got) == 0 {
		t.Error("nothing of what a daemon that died in the middle has written")
	}
	writer.SetProblems(lists[1], 100)
	if reader.Meta().ProblemsVersion%2 != 0 {
		t.Error("the next daemon does not say that it is done")
	}
}
