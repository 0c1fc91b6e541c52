// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	stdmaps "maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"shunt/bpf"
	"shunt/maps"
)

// randomPackets is the number of random packets in all, sequenceLength in one sequence. A
// sequence begins with empty maps, and ends with a comparison of all of them.
const (
	randomPackets  = 1 << 20
	sequenceLength = 2048
)

// arena is the configuration of a rig and its model.
type arena struct {
	name  string
	ports uint32
	pod   bool
	// noKernCtx: the kernel's helpers compute checksums.
	noKernCtx bool
	flows     uint32 // room for confirmed entries
}

// Few ports and little room, so that both are exhausted; plenty of both; a pod's device.
var arenas = []arena{
	{name: "few ports", ports: 3, noKernCtx: true, flows: 32},
	{name: "plenty", ports: 500, flows: 8192},
	{name: "pod device", ports: 100, pod: true, flows: 8192},
}

func (a arena) rig(t testing.TB) *rig {
	sizes := smallSizes
	sizes.Services, sizes.Slots, sizes.Flows, sizes.Affinity = 256, 8192, a.flows, 4096
	return newRig(t, options(a.ports), bpf.PacketDevice{Pod: a.pod, NoKernCtx: a.noKernCtx}, sizes)
}

// TestRandomPackets runs random packets, valid, truncated and hostile, through the programs
// and through the model: verdicts, bytes, counts and state must be the same.
func TestRandomPackets(t *testing.T) {
	sequences := randomPackets / sequenceLength / len(arenas)
	if testing.Short() { // in VMs, where a system call takes ten times as long
		sequences /= 16
	}
	for i, a := range arenas {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			d := newDuel(t, a)
			for s := range sequences + 1 {
				d.check(newDice(uint64(i)<<32|uint64(s)), sequenceLength)
			}
		})
	}
}

// duel runs packets through a rig and its model.
type duel struct {
	t     testing.TB
	arena arena
	rig   *rig
	model *model
	// start is when the sequence began, on the programs' clock. It is 0 on the model's
	// clock, which stands still.
	start int64
	late  bool // the clocks are too far apart
	// backends are all addresses that backends in the rig's maps have or had.
	backends map[netip.Addr]bool
}

func newDuel(t testing.TB, a arena) *duel {
	d := &duel{t: t, arena: a, rig: a.rig(t), backends: map[netip.Addr]bool{}}
	d.rig.enter(t, newBare(t))
	return d
}

// begin clears both sides.
func (d *duel) begin(w *world) {
	d.rig.clear()
	d.model = newModel(d.arena.ports, d.arena.pod)
	d.model.backends = d.backends
	d.model.ifindex, d.model.mac, d.model.room = d.rig.netns.ifindex, d.rig.netns.mac, int(d.arena.flows)
	d.load(w)
	d.start = d.rig.now()
}

func (d *duel) load(w *world) {
	d.rig.load(w)
	d.model.serve(w)
}

// check runs one sequence. If the end differs, it runs the sequence again and compares
// after each packet, which takes longer. If this process had to wait so long that the
// clocks came apart, a difference means nothing, and the sequence is repeated.
func (d *duel) check(dice *dice, length int) {
	d.t.Helper()
	d.late = true
	for tries := 0; d.late; tries++ {
		if tries == 30 {
			d.t.Logf("sequence %#x is left out: this process is kept waiting all the time", dice.seed)
			return
		}
		d.late = false
		diff := d.sequence(dice.again(), length, length+1)
		if d.tick(); diff == "" || d.late {
			continue
		}
		if each := d.sequence(dice.again(), length, 1); each != "" && !d.late {
			diff = each
		}
		d.t.Fatalf("arena %s, seed %#x: %s", d.arena.name, dice.seed, diff)
	}
}

// ahead is how far the programs' clock may be ahead of the model's. tick sets it back at
// half of that. No age is nearer than that to a timeout.
const ahead = int64(800 * time.Millisecond)

// behind is one tick of the machine's clock, by which the programs' clock may lag: there
// are at least a hundred ticks a second.
const behind = int64(20 * time.Millisecond)

// tick keeps the clocks together.
func (d *duel) tick() {
	since := d.rig.now() - d.start
	if since < ahead/2 {
		return
	}
	d.late = d.late || since > ahead
	d.start += since
	d.rig.age(-time.Duration(since))
}

// sequence returns the first difference. It compares the state every `look` packets.
func (d *duel) sequence(dice *dice, length, look int) string {
	d.begin(dice.world())
	before := d.rig.counts()
	for i := range length {
		d.tick()
		diff := d.step(dice)
		if diff == "" && (i+1)%look == 0 {
			diff = d.compare()
		}
		if diff != "" {
			return fmt.Sprintf("packet %d: %s", i, diff)
		}
	}
	return d.compareAll(before)
}

// compareAll compares the state, and the counts since before.
func (d *duel) compareAll(before map[string]uint64) string {
	if got, want := since(before, d.rig.counts()), d.model.counts; !stdmaps.Equal(got, want) {
		return fmt.Sprintf("counted %v, want %v", got, want)
	}
	return d.compare()
}

// step runs one packet. Sometimes it first changes the services, lets time pass, or evicts
// an entry.
func (d *duel) step(dice *dice) string {
	if dice.one(300) {
		w := d.model.world.clone()
		if dice.one(4) {
			dice.move(w)
		} else {
			dice.change(w)
		}
		d.load(w)
	}
	if dice.one(300) {
		age := 2 * time.Second * time.Duration(1+dice.IntN(1+dice.IntN(13)))
		d.rig.age(age)
		d.model.age(age)
	}
	if dice.one(100) {
		d.lose(dice)
	}
	h, packet := dice.packet()
	return d.run(dice, h, packet)
}

// run runs one packet on both sides.
func (d *duel) run(dice *dice, h hook, packet []byte) string {
	if !d.rig.accepts(packet) {
		return ""
	}
	frame := d.rig.frame(h, packet)
	verdict, reason, want := d.model.run(h, frame)
	got := d.rig.run(h, frame)
	dice.saw(h, packet, got)
	switch {
	case got.verdict != verdict:
		return fmt.Sprintf("%s of %s %x: verdict %d, want %d (%s)", h, describe(packet), packet, int32(got.verdict),
			int32(verdict), reason)
	case verdict != shot && !bytes.Equal(got.data, want):
		return fmt.Sprintf("%s of %s %x\nis   %s %x\nwant %s %x (%s)", h, describe(packet), frame, describe(got.data[ethLen:]),
			got.data, describe(want[ethLen:]), want, reason)
	}
	return ""
}

// lose removes an entry of a flow on both sides.
func (d *duel) lose(dice *dice) {
	all, name := d.model.confirmed, confirmed
	if dice.one(2) {
		all, name = d.model.fresh, fresh
	}
	if len(all) == 0 {
		return
	}
	keys := slices.SortedFunc(stdmaps.Keys(all), flowKey.compare)
	k := keys[dice.IntN(len(keys))]
	delete(all, k)
	if err := d.rig.set.Map(name).Delete(k.write()); err != nil {
		d.t.Fatal(err)
	}
}

// age lets time pass.
func (m *model) age(d time.Duration) {
	for _, all := range []map[flowKey]flow{m.confirmed, m.fresh} {
		for k, f := range all {
			f.used -= int64(d)
			all[k] = f
		}
	}
	for k, p := range m.fragments {
		p.noted -= int64(d)
		m.fragments[k] = p
	}
	for k, noted := range m.directs {
		m.directs[k] = noted - int64(d)
	}
	if m.lastDirect != never {
		m.lastDirect -= int64(d)
	}
	for k, a := range m.affinity {
		a.used -= int64(d)
		m.affinity[k] = a
	}
}

// compare returns the differences between the state of both sides.
func (d *duel) compare() string {
	var diffs []string
	for name, want := range map[string]map[flowKey]flow{confirmed: d.model.confirmed, fresh: d.model.fresh} {
		got := d.rig.flows(name)
		for k, f := range got {
			if w, ok := want[k]; !ok {
				diffs = append(diffs, fmt.Sprintf("%s has %v: %v, and should not", name, k, f))
			} else if !d.near(f.used, w.used) || !sameBut(f, w) {
				diffs = append(diffs, fmt.Sprintf("%s has %v:\n     %+v\nwant %+v", name, k, f, w))
			}
		}
		for k, w := range want {
			if _, ok := got[k]; !ok {
				diffs = append(diffs, fmt.Sprintf("%s lacks %v: %v", name, k, w))
			}
		}
	}
	diffs = append(diffs, d.compareDirects()...)
	diffs = append(diffs, d.compareFragments()...)
	diffs = append(diffs, d.compareAffinity()...)
	return strings.Join(diffs, "\n")
}

func sameBut(f, w flow) bool {
	f.used, w.used = 0, 0
	return f == w
}

// near reports whether a time of the programs equals the model's, within the clocks'
// difference.
func (d *duel) near(got, want int64) bool {
	off := got - d.start - want
	return off >= -behind && off <= ahead
}

func (d *duel) compareDirects() (diffs []string) {
	got := d.rig.directs()
	for k, noted := range got {
		if want, ok := d.model.directs[k]; !ok || !d.near(noted, want) {
			diffs = append(diffs, fmt.Sprintf("directs has %v: %d, want %d (%v)", k, noted-d.start, want, ok))
		}
	}
	for k := range d.model.directs {
		if _, ok := got[k]; !ok {
			diffs = append(diffs, fmt.Sprintf("directs lacks %v", k))
		}
	}
	return diffs
}

func (d *duel) compareFragments() (diffs []string) {
	got := map[fragmentKey]fragment{}
	var k maps.FragmentKey
	var v maps.Fragment
	it := d.rig.set.Map("fragments").Iterate()
	for it.Next(&k, &v) {
		got[readFragmentKey(k)] = fragment{maps.HostPort(v.Sport), maps.HostPort(v.Dport), v.Protocol, int64(v.Noted)}
	}
	if err := it.Err(); err != nil {
		d.t.Fatal(err)
	}
	same := func(got, want fragment) bool {
		near := d.near(got.noted, want.noted)
		got.noted = want.noted
		return near && got == want
	}
	if !stdmaps.EqualFunc(got, d.model.fragments, same) {
		diffs = append(diffs, fmt.Sprintf("fragments has %v\nwant %v", got, d.model.fragments))
	}
	return diffs
}

func (d *duel) compareAffinity() (diffs []string) {
	n := 0
	var k maps.AffinityKey
	var v maps.AffinityValue
	it := d.rig.set.Map("affinity").Iterate()
	for it.Next(&k, &v) {
		n++
		want, ok := d.model.affinity[affinityKey{k.ServiceId, k.Client.B}]
		if !ok || want.backend != v.BackendId || !d.near(int64(v.LastUsed), want.used) {
			diffs = append(diffs, fmt.Sprintf("affinity of service %d, client %v: %+v, want %+v (%v)", k.ServiceId,
				netip.AddrFrom16(k.Client.B), v, want, ok))
		}
	}
	if err := it.Err(); err != nil {
		d.t.Fatal(err)
	}
	if n != len(d.model.affinity) {
		diffs = append(diffs, fmt.Sprintf("%d entries of affinity, want %d", n, len(d.model.affinity)))
	}
	return diffs
}

// readFragmentKey converts a key of map fragments to the model's.
func readFragmentKey(k maps.FragmentKey) fragmentKey {
	id := make([]byte, 4)
	binary.NativeEndian.PutUint32(id, k.Id)
	p := fragmentKey{src: k.Src.B, dst: k.Dst.B, id: binary.BigEndian.Uint32(id), proto: k.Protocol, hook: hook(k.Egress)}
	return p
}
