// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	stdmaps "maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"go.uber.org/zap/zaptest"

	"shunt/maps"
)

// newHooksRig attaches the programs to the test's own cgroup. The test calls its scans.
func newHooksRig(t testing.TB) (h *Hooks, root, cg string, repaired map[string]int) {
	t.Helper()
	root, cg = filepath.Join(bpffs(t), "shunt"), cgroup(t)
	if err := RequireBPFFS(root, false); err != nil {
		t.Fatal(err)
	}
	lock, err := TakeLock(root)
	if err != nil {
		t.Fatal(err)
	}
	set, k := openMaps(t, root)
	memory, err := maps.OpenMemory(root)
	if err != nil {
		t.Fatal(err)
	}
	programs, err := Load(set)
	if err != nil {
		t.Fatal(err)
	}
	seed, err := FlowSeed(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(programs.Close(), memory.Close(), lock.Release()); err != nil {
			t.Error(err)
		}
	})
	repaired = map[string]int{}
	h = NewHooks(HooksOptions{Root: root, Lock: lock, Set: set, Maps: k, Programs: programs, FlowSeed: seed, Memory: memory,
		FindCgroup: func() (string, error) { return FindCgroupRoot(cg) }, Packets: &PacketPath{}, Log: zaptest.NewLogger(t),
		Repaired: func(name string) { repaired[name]++ }, Lost: func() { repaired["lost"]++ }})
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return h, root, cg, repaired
}

// TestHooksRepair: Now and a scan find every change of links, pins and the cgroup, and the scan
// repairs it.
func TestHooksRepair(t *testing.T) {
	h, root, cg, repaired := newHooksRig(t)
	pin := func(name string) string { return filepath.Join(root, linkDir, name) }
	for _, test := range []struct {
		name    string
		spoil   func() error
		wrong   []string // what Now reports
		repairs []string
	}{
		{"nothing", func() error { return nil }, nil, nil},
		{"a pin removed", func() error { return os.Remove(pin("connect4")) }, []string{EffectPins}, []string{EffectPins}},
		{"a link detached", func() error {
			l, err := link.LoadPinnedLink(pin("sendmsg6"), nil)
			if err != nil {
				return err
			}
			return errors.Join(l.Detach(), l.Close())
		}, []string{"sendmsg6"}, []string{"sendmsg6", "lost"}},
		{"a link detached and its pin removed", func() error {
			l, err := link.LoadPinnedLink(pin("recvmsg4"), nil)
			if err != nil {
				return err
			}
			return errors.Join(l.Detach(), l.Close(), os.Remove(pin("recvmsg4")))
		}, []string{"recvmsg4"}, []string{"recvmsg4", "lost"}},
		{"a program replaced", func() error {
			l, err := link.LoadPinnedLink(pin("connect6"), nil)
			if err != nil {
				return err
			}
			other, err := ebpf.NewProgram(passing(ebpf.AttachCGroupInet6Connect))
			if err != nil {
				return err
			}
			return errors.Join(l.Update(other), l.Close(), other.Close())
		}, []string{"connect6"}, []string{"connect6", "lost"}},
		{"all links removed", func() error { return os.RemoveAll(filepath.Join(root, linkDir)) }, []string{EffectPins}, []string{EffectPins}},
		{"a map's pin removed", func() error { return os.Remove(filepath.Join(root, "maps", "services")) }, nil, []string{EffectPins}},
		{"the seed's pin removed", func() error { return os.Remove(filepath.Join(root, seedPin)) }, nil, []string{EffectPins}},
		{"the directory renamed", func() error { return os.Rename(root, root+"-away") }, []string{EffectPins}, []string{EffectPins}},
		{"the directory removed", func() error { return os.RemoveAll(root) }, []string{EffectPins}, []string{EffectPins}},
		{"the cgroup made anew", func() error { return errors.Join(os.Remove(cg), os.Mkdir(cg, 0o755)) },
			[]string{"connect4", "connect6", "getpeername4", "getpeername6", "recvmsg4", "recvmsg6", "sendmsg4", "sendmsg6"},
			[]string{"connect4", "connect6", "getpeername4", "getpeername6", "recvmsg4", "recvmsg6", "sendmsg4", "sendmsg6", "lost"}},
	} {
		clear(repaired)
		if err := test.spoil(); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		wantWrong(t, test.name+", a look", h.Now(), test.wrong...)
		wantWrong(t, test.name+", a pass", h.pass(t.Context()))
		want := map[string]int{}
		for _, name := range test.repairs {
			want[name] = 1
		}
		if !stdmaps.Equal(repaired, want) {
			t.Errorf("%s: repaired %v, want %v", test.name, repaired, want)
		}
		wantWrong(t, test.name+", a look after it", h.Now())
		for _, a := range Attachments(root, h.opts.Set) {
			if !a.Attached {
				t.Errorf("%s: hook %s: %s", test.name, a.Hook, a.Problem)
			}
		}
		if _, err := os.Stat(filepath.Join(root, "maps", "services")); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if !IsLocked(root) {
			t.Errorf("%s: the directory is not locked", test.name)
		}
	}
}

// wantWrong checks that exactly these names have problems.
func wantWrong(t *testing.T, what string, problems map[string]string, names ...string) {
	t.Helper()
	want := map[string]bool{}
	for _, name := range names {
		want[name] = true
	}
	if len(problems) != 12 {
		t.Errorf("%s: %d states: %v", what, len(problems), problems)
	}
	for name, text := range problems {
		if want[name] != (text != "") {
			t.Errorf("%s: %s has the problem %q", what, name, text)
		}
	}
}

// TestHooksSay: problems that can't be repaired are reported, and repaired as soon as that is
// possible.
func TestHooksSay(t *testing.T) {
	h, root, cg, repaired := newHooksRig(t)
	all := []string{EffectCgroup, "connect4", "connect6", "getpeername4", "getpeername6", "recvmsg4", "recvmsg6", "sendmsg4", "sendmsg6"}
	if err := os.Remove(cg); err != nil {
		t.Fatal(err)
	}
	// The kernel detaches some time later.
	for deadline := time.Now().Add(10 * time.Second); h.pass(t.Context())["connect4"] == "" && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	wantWrong(t, "the cgroup is gone, a look", h.Now(), all...)
	wantWrong(t, "the cgroup is gone", h.pass(t.Context()), all...)
	if len(repaired) != 0 {
		t.Errorf("repaired %v", repaired)
	}
	if err := os.Mkdir(cg, 0o755); err != nil {
		t.Fatal(err)
	}
	wantWrong(t, "the cgroup is back", h.pass(t.Context()))
	if repaired["connect4"] != 1 || repaired[EffectCgroup] != 1 || repaired["lost"] != 1 {
		t.Errorf("repaired %v", repaired)
	}
	// Something else is at the directory's path, and it is not shunt's to remove.
	if err := errors.Join(os.Rename(root, root+"-away"), os.Mkdir(root, 0o700)); err != nil {
		t.Fatal(err)
	}
	other, err := TakeLock(root)
	if err != nil {
		t.Fatal(err)
	}
	wantWrong(t, "another daemon's directory", h.pass(t.Context()), EffectPins)
	if err := other.Release(); err != nil {
		t.Fatal(err)
	}
	wantWrong(t, "it is free", h.pass(t.Context()))
	// Something else is at the path of the links' directory. The links stay in effect.
	links := filepath.Join(root, linkDir)
	if err := os.RemoveAll(links); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "somebodys", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(links); err != nil {
		t.Fatal(err)
	}
	wantWrong(t, "no place for links, a look", h.Now(), EffectPins)
	wantWrong(t, "no place for links", h.pass(t.Context()), EffectPins)
	if err := m.Unpin(); err != nil {
		t.Fatal(err)
	}
	wantWrong(t, "there is a place again", h.pass(t.Context()))
}

// TestHooksNamesNoPod: the health endpoints, which anybody who reaches the node can read, name
// no pod.
func TestHooksNamesNoPod(t *testing.T) {
	h, _, _, _ := newHooksRig(t)
	h.podCgroup = fmt.Sprintf("pods-of-test-%d", os.Getpid())
	pod := sleepIn(t, cgroup(t), h.podCgroup)
	wantWrong(t, "a pod elsewhere", h.pass(t.Context()), EffectCgroup)
	text := h.Last()[EffectCgroup]
	if !strings.Contains(text, "1 of the 1 processes of pods") || strings.Contains(text, h.podCgroup) || strings.Contains(text, pod) {
		t.Errorf("it says %q", text)
	}
}

// passing returns a program for a hook that lets every call pass.
func passing(at ebpf.AttachType) *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{Name: "foreign", Type: ebpf.CGroupSockAddr, AttachType: at, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}}
}

// BenchmarkHooksScan measures a scan where nothing is wrong, and Now, as at a scrape. The
// cgroup is not the root of the hierarchy; the processes are this machine's.
func BenchmarkHooksScan(b *testing.B) {
	h, _, _, _ := newHooksRig(b)
	b.Run("pass", func(b *testing.B) {
		for b.Loop() {
			h.pass(b.Context())
		}
	})
	b.Run("look", func(b *testing.B) {
		for b.Loop() {
			h.Now()
		}
	})
	b.Run("connects", func(b *testing.B) {
		for b.Loop() {
			hookCheck()
		}
	})
	b.Run("processes", func(b *testing.B) {
		for b.Loop() {
			if _, err := scopeProblem(h.cgroup, podCgroup); err != nil {
				b.Fatal(err)
			}
		}
	})
}
