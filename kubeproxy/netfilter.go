// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// nftState contains the tables and chains of the kernel's nftables, including those of
// iptables-nft. It is read by netlink, without nft or iptables. A nil nftState is empty.
type nftState struct {
	tables map[Family]map[string][]string // chains by table
}

func (s *nftState) hasTable(family Family, table string) bool {
	if s == nil {
		return false
	}
	_, ok := s.tables[family][table]
	return ok
}

func (s *nftState) chainsOf(family Family, table string) []string {
	if s == nil {
		return nil
	}
	return s.tables[family][table]
}

// nfProtocols are the nftables families in which kube-proxy has tables.
var nfProtocols = map[Family]uint8{IPv4: unix.NFPROTO_IPV4, IPv6: unix.NFPROTO_IPV6}

// readNFT reads tables and chains (NFT_MSG_GETTABLE, NFT_MSG_GETCHAIN).
func readNFT() (*nftState, error) {
	s := &nftState{tables: map[Family]map[string][]string{}}
	for family, protocol := range nfProtocols {
		names := map[string][]string{}
		s.tables[family] = names
		err := dumpNFT(unix.NFT_MSG_GETTABLE, protocol, func(a attrs) {
			names[a.text(unix.NFTA_TABLE_NAME)] = nil
		})
		if err != nil {
			return s, fmt.Errorf("list tables of nftables: %w", err)
		}
		err = dumpNFT(unix.NFT_MSG_GETCHAIN, protocol, func(a attrs) {
			table := a.text(unix.NFTA_CHAIN_TABLE)
			names[table] = append(names[table], a.text(unix.NFTA_CHAIN_NAME))
		})
		if err != nil {
			return s, fmt.Errorf("list chains of nftables: %w", err)
		}
	}
	return s, nil
}

// natByNFT reports whether a rule of nftables, or of iptables-nft, translates addresses of
// the family. As long as there is such a rule, NAT and conntrack remain active.
func natByNFT(family Family) (bool, error) {
	found := false
	for _, protocol := range []uint8{nfProtocols[family], unix.NFPROTO_INET} {
		err := dumpNFT(unix.NFT_MSG_GETRULE, protocol, func(a attrs) {
			for _, e := range a.list(unix.NFTA_RULE_EXPRESSIONS) {
				found = found || isNATExpression(e)
			}
		})
		if err != nil {
			return false, fmt.Errorf("list rules of nftables: %w", err)
		}
	}
	return found, nil
}

func isNATExpression(e attrs) bool {
	switch e.text(unix.NFTA_EXPR_NAME) {
	case "nat", "masq", "redir":
		return true
	case "target": // an extension of iptables
		return natTargets[parseAttrs(e[unix.NFTA_EXPR_DATA]).text(unix.NFTA_TARGET_NAME)]
	}
	return false
}

// natTargets are the extensions of iptables that translate addresses.
var natTargets = map[string]bool{"MASQUERADE": true, "DNAT": true, "SNAT": true, "REDIRECT": true, "NETMAP": true}

// dumpTries bounds the attempts at a dump, which a concurrent change interrupts.
const dumpTries = 5

// dumpNFT requests all objects of a kind from nfnetlink
// (include/uapi/linux/netfilter/nf_tables.h), and calls each with the attributes of each
// object. In a kernel without nftables there are no objects.
func dumpNFT(message int, protocol uint8, each func(attrs)) error {
	var replies [][]byte
	var err error = netlink.ErrDumpInterrupted
	for try := 0; errors.Is(err, netlink.ErrDumpInterrupted) && try < dumpTries; try++ {
		request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|message, unix.NLM_F_DUMP)
		request.AddData(&nl.Nfgenmsg{NfgenFamily: protocol, Version: nl.NFNETLINK_V0})
		replies, err = request.Execute(unix.NETLINK_NETFILTER, 0)
	}
	if isAbsent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, reply := range replies {
		if len(reply) >= nl.SizeofNfgenmsg {
			each(parseAttrs(reply[nl.SizeofNfgenmsg:]))
		}
	}
	return nil
}

// isAbsent reports whether an error means that the kernel does not have a netlink
// subsystem: nfnetlink returns EINVAL then, and without nfnetlink there is no such socket.
func isAbsent(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) ||
		errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT)
}

// attrs are netlink attributes by type.
type attrs map[uint16][]byte

// parseAttrs parses attributes up to the first malformed one.
func parseAttrs(b []byte) attrs {
	a := attrs{}
	list, _ := nl.ParseRouteAttr(b) // with an error it also returns the attributes before the malformed one
	for _, attr := range list {
		a[attr.Attr.Type&nl.NLA_TYPE_MASK] = attr.Value
	}
	return a
}

// list returns the elements of a nested attribute, which all have the same type.
func (a attrs) list(kind uint16) []attrs {
	elements, _ := nl.ParseRouteAttr(a[kind])
	var all []attrs
	for _, e := range elements {
		all = append(all, parseAttrs(e.Value))
	}
	return all
}

func (a attrs) text(kind uint16) string {
	text, _, _ := strings.Cut(string(a[kind]), "\x00")
	return text
}
