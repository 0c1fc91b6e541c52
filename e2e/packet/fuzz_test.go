// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
	"testing"
)

// FuzzPackets lets the fuzzer control the dice of TestRandomPackets in one arena, and add a
// packet of its own at the end, to both hooks. Its coverage is that of the model. Longer
// runs, as root, and without the minute that the fuzzer otherwise spends to minimize each
// input:
//
//	go test ./e2e/packet -run '^$' -fuzz FuzzPackets -fuzztime 10m -fuzzminimizetime 1x
func FuzzPackets(f *testing.F) {
	for s := range uint64(4) {
		f.Add(throws(newDice(s), 600), universes[s%2].opening(s).bytes())
	}
	n := newBare(f)
	duels := make([]*duel, len(arenas))
	for i, a := range arenas {
		duels[i] = &duel{t: f, arena: a, rig: a.rig(f), backends: map[netip.Addr]bool{}}
	}
	f.Fuzz(func(t *testing.T, throws, last []byte) {
		if len(throws) > 1<<12 || len(last) > 2048 {
			t.Skip("what is shorter shows as much")
		}
		d := duels[len(throws)%len(duels)]
		d.t = t
		d.rig.enter(t, n)
		d.tape(throws, last)
	})
}

// throws returns a tape of n random bytes.
func throws(d *dice, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(d.Uint32())
	}
	return b
}

// opening returns a first packet of a flow.
func (u universe) opening(n uint64) pkt {
	if n < 2 {
		return tcp(u.clients[0], u.frontends[0], syn)
	}
	return udp(u.clients[0], u.frontends[0], "question")
}

// tape runs the packets of a tape, and one more packet.
func (d *duel) tape(throws, last []byte) {
	for range 30 { // as in check
		d.late = false
		diff := d.play(newTapeDice(throws), last)
		if d.tick(); d.late {
			continue
		}
		if diff != "" {
			d.t.Fatalf("arena %s: %s", d.arena.name, diff)
		}
		return
	}
}

func (d *duel) play(dice *dice, last []byte) string {
	d.begin(dice.world())
	before := d.rig.counts()
	for len(dice.tape.left) > 0 {
		d.tick()
		if diff := d.step(dice); diff != "" {
			return diff
		}
	}
	for _, h := range []hook{ingress, egress} {
		if diff := d.run(dice, h, last); diff != "" {
			return diff
		}
	}
	return d.compareAll(before)
}
