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

// What a holder is called, as a table of nftables or a chain of iptables' table nat.
const (
	keepTable = "shunt-keep-nat"
	keepChain = "SHUNT-KEEP-NAT"
)

// holder keeps translations alive. A connection that kube-proxy had set up is
// translated by its conntrack entry, not by rules. But the kernel takes conntrack and
// NAT out of a network namespace with the last rule that needs them, and those can
// have been kube-proxy's: such connections would hang from one packet to the next. So
// where there are any, and no other NAT rule, one rule of ours stays that does
// nothing but need both. A later clean-up, or a reboot, takes it away.
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

// joinUnlessNil forgets earlier failures where the last way led there.
func joinUnlessNil(before, now error) error {
	if now == nil {
		return nil
	}
	return errors.Join(before, now)
}

// release takes away every holder that is not needed any more, and says which are.
func (h *holder) release(ctx context.Context) (held []string, err error) {
	nft, err := readNFT()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, family := range families {
		legacy, err := legacyNAT(ctx, family)
		if err != nil && !errors.Is(err, errNoLegacy) { // then it was not made there either
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

// place is where a holder is.
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

// isNeeded tells whether translated connections have nothing but a holder.
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

// translated tells whether conntrack translates a connection of the family: then the
// answers' addresses are not the question's, turned round.
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
	// Half of a large and busy table is better than none: it is only to find one.
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return false, fmt.Errorf("list conntrack's %s entries: %w", family, err)
	}
	return slices.ContainsFunc(flows, isTranslated), nil
}

func isTranslated(f *netlink.ConntrackFlow) bool {
	return !f.Forward.DstIP.Equal(f.Reverse.SrcIP) || !f.Forward.SrcIP.Equal(f.Reverse.DstIP) ||
		f.Forward.DstPort != f.Reverse.SrcPort || f.Forward.SrcPort != f.Reverse.DstPort
}
