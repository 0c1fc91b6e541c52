// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The names of a holder: a table of nftables, or a chain of iptables' table nat.
const (
	keepTable = "shunt-keep-nat"
	keepChain = "SHUNT-KEEP-NAT"
)

// holder is a rule that makes the kernel continue to translate established connections. Their
// conntrack entries translate them, not kube-proxy's rules. But the kernel stops conntrack
// and NAT in a network namespace when the last rule that needs them is removed. If that is a
// rule of kube-proxy, the connections hang from one packet to the next. So if there are
// translated connections and no other NAT rule, Clean leaves one rule of shunt, whose only
// effect is that it needs conntrack and NAT. A later Clean, or a reboot, removes the rule.
type holder struct {
	made []Family // by this run
}

// hold makes a holder for every family with translated connections.
func (h *holder) hold(ctx context.Context) error {
	for _, family := range families {
		live, err := translated(family)
		if err != nil {
			return err
		}
		if !live {
			continue
		}
		err = holdByNFT(ctx, family)
		for _, variant := range []string{variantNFT, variantLegacy} {
			if err != nil {
				err = joinUnlessNil(err, holdByIPTables(ctx, variant, family))
			}
		}
		if err != nil {
			return err
		}
		h.made = append(h.made, family)
	}
	return nil
}

// joinUnlessNil returns nil if the last attempt succeeded, else the errors of all attempts.
func joinUnlessNil(before, now error) error {
	if now == nil {
		return nil
	}
	return errors.Join(before, now)
}

// release removes every holder that is no longer needed, and returns the descriptions of
// those that are needed.
func (h *holder) release(ctx context.Context) (held []string, err error) {
	nft, err := readNFT()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, family := range families {
		legacy, err := legacyNAT(ctx, family)
		if err != nil && !errors.Is(err, errNoLegacy) { // errNoLegacy: no holder was made there either
			errs = append(errs, err)
			continue
		}
		places := holders(nft, legacy, family)
		if len(places) == 0 {
			continue
		}
		needed, err := isNeeded(family, legacy)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, p := range places {
			if needed {
				held = append(held, p.text)
			} else {
				errs = append(errs, p.release(ctx))
			}
		}
	}
	return held, errors.Join(errs...)
}

// place is a holder that exists: its description, and the function that removes it.
type place struct {
	text    string
	release func(context.Context) error
}

func holders(nft *nftState, legacy *table, family Family) []place {
	var places []place
	if nft.hasTable(family, keepTable) {
		places = append(places, place{
			fmt.Sprintf("nftables %s table %s", family, keepTable),
			func(ctx context.Context) error { return releaseByNFT(ctx, family) },
		})
	}
	chainIn := func(variant string) place {
		return place{
			fmt.Sprintf("%s %s table nat, chain %s", variant, family, keepChain),
			func(ctx context.Context) error { return releaseByIPTables(ctx, variant, family) },
		}
	}
	if slices.Contains(nft.chainsOf(family, "nat"), keepChain) {
		places = append(places, chainIn(variantNFT))
	}
	if legacy != nil && slices.Contains(legacy.chains, keepChain) {
		places = append(places, chainIn(variantLegacy))
	}
	return places
}

// isNeeded reports whether there are translated connections and no NAT rule other than a
// holder.
func isNeeded(family Family, legacy *table) (bool, error) {
	live, err := translated(family)
	if err != nil || !live {
		return false, err
	}
	if legacy != nil {
		for _, r := range legacy.rules {
			if natTargets[r.target] {
				return false, nil
			}
		}
	}
	others, err := natByNFT(family)
	return !others, err
}

// translated reports whether conntrack translates a connection of the family: whether there
// is an entry whose reply tuple differs from its reversed original tuple.
func translated(family Family) (bool, error) {
	af := netlink.InetFamily(unix.AF_INET)
	if family == IPv6 {
		af = unix.AF_INET6
	}
	var flows []*netlink.ConntrackFlow
	var err error = netlink.ErrDumpInterrupted
	for try := 0; errors.Is(err, netlink.ErrDumpInterrupted) && try < dumpTries; try++ {
		flows, err = netlink.ConntrackTableList(netlink.ConntrackTable, af)
	}
	if isAbsent(err) {
		return false, nil
	}
	// A dump that changes interrupted is sufficient: one translated entry is enough.
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return false, fmt.Errorf("list conntrack's %s entries: %w", family, err)
	}
	return slices.ContainsFunc(flows, isTranslated), nil
}

func isTranslated(f *netlink.ConntrackFlow) bool {
	return !f.Forward.DstIP.Equal(f.Reverse.SrcIP) || !f.Forward.SrcIP.Equal(f.Reverse.DstIP) ||
		f.Forward.DstPort != f.Reverse.SrcPort || f.Forward.SrcPort != f.Reverse.DstPort
}
