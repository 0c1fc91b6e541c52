// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// TestCleanDevice: kube-proxy's device is removed, one with a similar name stays.
func TestCleanDevice(t *testing.T) {
	inNetns(t)
	makeDummy(t, ipvsDevice)
	makeDummy(t, "kube-dummy")
	if _, err := Clean(t.Context(), Options{}); err != nil {
		t.Fatalf("clean: %v", err)
	}
	if _, err := netlink.LinkByName(ipvsDevice); err == nil {
		t.Errorf("device %s is there", ipvsDevice)
	}
	if _, err := netlink.LinkByName("kube-dummy"); err != nil {
		t.Errorf("somebody else's device: %v", err)
	}
	expectNothing(t)
}

// TestCleanOtherDevice: a device of that name stays if it is not a dummy device.
func TestCleanOtherDevice(t *testing.T) {
	inNetns(t)
	run(t, "", "ip", "link", "add", ipvsDevice, "type", "bridge")
	expectNothing(t)
	if _, err := netlink.LinkByName(ipvsDevice); err != nil {
		t.Errorf("somebody else's device: %v", err)
	}
}

// TestCleanIPVS removes what IPVS mode leaves, except virtual servers and the device.
func TestCleanIPVS(t *testing.T) {
	needLegacy(t)
	inNetns(t)
	for _, set := range []string{"KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP", "KUBE-LOOP-BACK", "KUBE-SRC-ABC", "admin"} {
		makeSet(t, set)
	}
	const rules = `*nat
:KUBE-FIREWALL - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A POSTROUTING -m set --match-set admin src -j MASQUERADE
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m set --match-set KUBE-LOOP-BACK dst -j MASQUERADE
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst -j KUBE-MARK-MASQ
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-NODE-PORT - [0:0]
-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-A INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
-A INPUT -j KUBE-FIREWALL
-A KUBE-IPVS-FILTER -m set --match-set KUBE-CLUSTER-IP dst -j RETURN
COMMIT
`
	run(t, rules, "iptables-legacy-restore", "--noflush")

	report, err := Clean(t.Context(), Options{})
	if err != nil {
		t.Fatalf("clean: %v\n%+v", err, report)
	}
	saved := run(t, "", "iptables-legacy-save")
	for _, line := range strings.Split(saved, "\n") {
		if strings.Contains(line, "KUBE-") && !strings.Contains(line, "KUBE-FIREWALL") {
			t.Errorf("left: %s", line)
		}
	}
	for _, line := range []string{"-A INPUT -j KUBE-FIREWALL", "-A POSTROUTING -m set --match-set admin src -j MASQUERADE"} {
		if !strings.Contains(saved, line) {
			t.Errorf("gone: %s", line)
		}
	}
	if got, want := setNames(t), []string{"KUBE-SRC-ABC", "admin"}; !slices.Equal(got, want) {
		t.Errorf("ipsets %v, want %v", got, want)
	}
	expectNothing(t)
}

// TestCleanSetInUse: an ipset that another program's rule uses stays, and the error says so.
func TestCleanSetInUse(t *testing.T) {
	needLegacy(t)
	inNetns(t)
	makeSet(t, "KUBE-CLUSTER-IP")
	run(t, "", "iptables-legacy", "-A", "INPUT", "-m", "set", "--match-set", "KUBE-CLUSTER-IP", "dst", "-j", "ACCEPT")
	report, err := Clean(t.Context(), Options{})
	if err == nil || !strings.Contains(err.Error(), "not kube-proxy's uses it") {
		t.Errorf("clean: %v", err)
	}
	if len(report.Found) != 1 || report.Found[0].Removed {
		t.Errorf("found %+v", report.Found)
	}
	if got := setNames(t); !slices.Equal(got, []string{"KUBE-CLUSTER-IP"}) {
		t.Errorf("ipsets %v", got)
	}
}

// TestCleanVirtualServers needs a kernel with IPVS.
func TestCleanVirtualServers(t *testing.T) {
	inNetns(t)
	if _, err := netlink.GenlFamilyGet(ipvsFamily); err != nil { // this loads the module if there is one
		t.Skipf("this kernel has no IPVS: %v", err)
	}
	makeDummy(t, ipvsDevice)
	run(t, "", "ip", "addr", "add", "10.96.0.10/32", "dev", ipvsDevice)
	for _, addr := range []string{"10.96.0.10", "192.0.2.1"} {
		s := server{addr: netip.MustParseAddr(addr), protocol: unix.IPPROTO_TCP, port: 80}
		attr := s.attr()
		attr.AddRtAttr(6, nl.ZeroTerminated("rr"))                    // IPVS_SVC_ATTR_SCHED_NAME
		attr.AddRtAttr(7, []byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}) // IPVS_SVC_ATTR_FLAGS
		attr.AddRtAttr(8, nl.Uint32Attr(0))                           // IPVS_SVC_ATTR_TIMEOUT
		attr.AddRtAttr(9, nl.Uint32Attr(0xffffffff))                  // IPVS_SVC_ATTR_NETMASK
		request, err := ipvsRequest(1, unix.NLM_F_ACK)                // IPVS_CMD_NEW_SERVICE
		if err != nil {
			t.Fatal(err)
		}
		request.AddData(attr)
		if _, err := request.Execute(unix.NETLINK_GENERIC, 0); err != nil {
			t.Fatalf("make %s: %v", s, err)
		}
	}
	report, err := Clean(t.Context(), Options{})
	if err != nil {
		t.Fatalf("clean: %v", err)
	}
	left, err := listServers()
	if err != nil || len(left) != 1 || left[0].addr.String() != "192.0.2.1" {
		t.Errorf("left %v (%v), want the one of 192.0.2.1; %+v", left, err, report)
	}
}

// TestServerAttributes: parseServer returns the server that attr encodes.
func TestServerAttributes(t *testing.T) {
	for _, want := range []server{
		{addr: netip.MustParseAddr("10.96.0.10"), protocol: unix.IPPROTO_TCP, port: 53},
		{addr: netip.MustParseAddr("fd00::10"), protocol: unix.IPPROTO_UDP, port: 65535},
	} {
		got, err := parseServer(append(make([]byte, genlHeader), want.attr().Serialize()...))
		if err != nil || got != want {
			t.Errorf("got %v (%v), want %v", got, err, want)
		}
	}
	if _, err := parseServer([]byte{1}); err == nil {
		t.Error("an answer of one byte is taken")
	}
	if _, err := parseServer(make([]byte, 8)); err == nil {
		t.Error("an answer without attributes is taken")
	}
}

func TestSetNames(t *testing.T) {
	for name, ours := range map[string]bool{
		"KUBE-CLUSTER-IP": true, "KUBE-6-NODE-PORT-TCP": true, "KUBE-6-LOAD-BALANCER-SOURCE-CID": true, // cut at 31
		"KUBE-DST-ABC": false, "KUBE-6-": false, "KUBE-CLUSTER-IPS": false,
	} {
		if isSet(name) != ours {
			t.Errorf("%s: %v", name, !ours)
		}
	}
}

// inNetns moves the test to a network namespace of its own. The thread is never unlocked:
// it ends with the test, and the namespace with it.
func inNetns(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root: skipped")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	run(t, "", "ip", "link", "set", "lo", "up")
}

// needLegacy skips the test without iptables-legacy, which not every distribution has.
func needLegacy(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("iptables-legacy-restore"); err != nil {
		t.Skipf("iptables-legacy is not installed: %v", err)
	}
}

func run(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}

func makeDummy(t *testing.T, name string) {
	t.Helper()
	err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: name}})
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("this kernel has no dummy devices: skipped")
	}
	if err != nil {
		t.Fatal(err)
	}
}

func makeSet(t *testing.T, name string) {
	t.Helper()
	if err := netlink.IpsetCreate(name, "hash:ip", netlink.IpsetCreateOptions{Family: unix.AF_INET}); err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, nl.IPSetError(nl.IPSET_ERR_FIND_TYPE)) {
			t.Skipf("this kernel has no ipsets: %v", err)
		}
		t.Fatalf("make ipset %s: %v", name, err)
	}
	if err := netlink.IpsetAdd(name, &netlink.IPSetEntry{IP: net.IPv4(10, 96, 0, 10)}); err != nil {
		t.Fatal(err)
	}
}

func setNames(t *testing.T) []string {
	t.Helper()
	sets, err := netlink.IpsetListAll()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range sets {
		names = append(names, s.SetName)
	}
	slices.Sort(names)
	return names
}

// expectNothing checks that another run finds nothing.
func expectNothing(t *testing.T) {
	t.Helper()
	report, err := Clean(t.Context(), Options{})
	if err != nil || len(report.Found)+len(report.Kept)+len(report.Held) > 0 {
		t.Errorf("a second run: %v\n%+v", err, report)
	}
}
