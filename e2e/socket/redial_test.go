// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"shunt/e2e/rig"
)

// redialCommand makes this binary a process that makes a call on a UDP socket that the
// lab's sockets do not have: connect to AF_UNSPEC removes the peer.
const redialCommand = "redial"

// redialReport is the process's output.
type redialReport struct {
	// Peer is the errno of getpeername() after the disconnect.
	Peer unix.Errno
	// Heard has the server and the source address of the answer at each step: "server
	// address".
	Heard []string
	Error string
}

// redials is how often everything is repeated, each time with a new socket: with two
// endpoints, the right one could answer by chance.
const redials = 20

// redial connects to a service, asks, disconnects, asks by sendto, connects to another
// address and asks: redial SERVICE OTHER. With SERVICE alone it asks once over MPTCP.
func redial(args []string) int {
	if len(args) == 1 {
		return dialMPTCP(netip.MustParseAddrPort(args[0]))
	}
	all := make([]redialReport, redials)
	for i := range all {
		r := &all[i]
		if err := r.run(netip.MustParseAddrPort(args[0]), netip.MustParseAddrPort(args[1])); err != nil {
			r.Error = err.Error()
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(all); err != nil {
		return 1
	}
	return 0
}

func (r *redialReport) run(service, other netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return err
	}
	to := &unix.SockaddrInet4{Port: int(service.Port()), Addr: service.Addr().As4()}
	if err := r.ask(fd, "connect", unix.Connect(fd, to), nil); err != nil {
		return err
	}
	// A sockaddr of AF_UNSPEC, for which package unix has no type.
	none := [unix.SizeofSockaddrInet4]byte{}
	if err := connectRaw(fd, none[:]); err != nil {
		return fmt.Errorf("disconnect: %w", err)
	}
	_, err = unix.Getpeername(fd)
	_ = errors.As(err, &r.Peer) // 0 if it still has a peer
	if err := r.ask(fd, "sendto", nil, to); err != nil {
		return err
	}
	next := &unix.SockaddrInet4{Port: int(other.Port()), Addr: other.Addr().As4()}
	return r.ask(fd, "connect again", unix.Connect(fd, next), nil)
}

// ask makes one exchange, after a step that returned err.
func (r *redialReport) ask(fd int, step string, err error, to unix.Sockaddr) error {
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	if to == nil {
		_, err = unix.Write(fd, line(step))
	} else {
		err = unix.Sendto(fd, line(step), 0, to)
	}
	if err != nil {
		return fmt.Errorf("send after %s: %w", step, err)
	}
	buf := make([]byte, 512)
	n, from, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return fmt.Errorf("receive after %s: %w", step, err)
	}
	words := strings.Fields(strings.TrimPrefix(string(buf[:n]), step))
	sa := from.(*unix.SockaddrInet4)
	r.Heard = append(r.Heard, words[0]+" "+netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String())
	return nil
}

// disconnect: after the peer is removed, the socket is unconnected and keeps its endpoint.
// It may connect to a pod, and getpeername() then returns that pod.
func disconnect(t *testing.T, c *cluster) {
	pod := rig.At(c.web[1].Addr4(), rig.ServerPort)
	cmd := c.client.Command(t.Context(), rig.Self, redialCommand, rig.VIP(2, 4).String(), pod.String())
	var out rig.LogText
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	var all []redialReport
	if err := json.Unmarshal([]byte(out.String()), &all); err != nil || len(all) != redials {
		t.Fatalf("%v: %s", err, out.String())
	}
	for _, r := range all {
		if r.Error != "" || r.Peer != unix.ENOTCONN {
			t.Fatalf("%s; getpeername after the disconnect: %v, want ENOTCONN", r.Error, r.Peer)
		}
		first, _, _ := strings.Cut(r.Heard[0], " ")
		want := []string{first + " " + rig.VIP(2, 4).String(), first + " " + rig.VIP(2, 4).String(), "web-1 " + pod.String()}
		if fmt.Sprint(r.Heard) != fmt.Sprint(want) {
			t.Errorf("heard %q, want %q", r.Heard, want)
		}
	}
}

// notHere is the exit code of dialMPTCP if the kernel has no MPTCP.
const notHere = 4

// dialMPTCP connects to an IPv4 service over MPTCP, makes one exchange and prints the
// answer.
func dialMPTCP(service netip.AddrPort) int {
	const protocolMPTCP = 262 // IPPROTO_MPTCP
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocolMPTCP)
	if err != nil {
		return notHere
	}
	defer unix.Close(fd)
	buf := make([]byte, 512)
	n := 0
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(service.Port()), Addr: service.Addr().As4()})
	if err == nil {
		_, err = unix.Write(fd, line("mptcp"))
	}
	if err == nil {
		n, err = unix.Read(fd, buf)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Print(string(buf[:n]))
	return 0
}

// mptcp: an MPTCP socket first opens a TCP connection like any other.
func mptcp(t *testing.T, c *cluster) {
	cmd := c.client.Command(t.Context(), rig.Self, redialCommand, rig.VIP(1, 4).String())
	var out rig.LogText
	cmd.Stdout, cmd.Stderr = &out, &out
	switch code := rig.ExitCodeOf(t, cmd.Run()); {
	case code == notHere:
		t.Skip("this kernel has no MPTCP")
	case code != 0 || !strings.HasPrefix(out.String(), "mptcp web-"):
		t.Errorf("exit code %d: %s", code, out.String())
	}
}
