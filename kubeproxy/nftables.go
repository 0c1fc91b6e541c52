// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"sigs.k8s.io/knftables"
)

func nftFamily(family Family) knftables.Family {
	if family == IPv6 {
		return knftables.IPv6Family
	}
	return knftables.IPv4Family
}

// lookNFTables finds the tables of nftables mode. Rules of other tables can't jump into them,
// so each table is removed as a whole.
func (c *cleaner) lookNFTables(nft *nftState) {
	for _, family := range families {
		if !nft.hasTable(family, NFTable) {
			continue
		}
		f := Finding{By: "nftables", Family: family, Table: NFTable, Chains: len(nft.chainsOf(family, NFTable))}
		table, err := knftables.New(nftFamily(family), NFTable)
		if err != nil {
			err = fmt.Errorf("nft can't be used: %w: install it (package nftables), version 1.0.1 or newer", err)
			c.unseen(fmt.Sprintf("nftables %s table %s, which is there", family, NFTable), err)
			c.found(f, nil)
			continue
		}
		c.found(f, func(ctx context.Context) error { return deleteTable(ctx, table, NFTable) })
	}
}

func deleteTable(ctx context.Context, nft knftables.Interface, name string) error {
	tx := nft.NewTransaction()
	tx.Delete(&knftables.Table{})
	if err := nft.Run(ctx, tx); err != nil && !knftables.IsNotFound(err) {
		return fmt.Errorf("delete nftables table %s: %w", name, err)
	}
	return nil
}

// holdByNFT creates the table keepTable, whose only effect is that it needs conntrack and NAT.
func holdByNFT(ctx context.Context, family Family) error {
	nft, err := knftables.New(nftFamily(family), keepTable)
	if err != nil {
		return err
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Chain{
		Name: "established", Type: knftables.PtrTo(knftables.NATType),
		Hook: knftables.PtrTo(knftables.PostroutingHook), Priority: knftables.PtrTo(knftables.SNATPriority),
	})
	tx.Flush(&knftables.Chain{Name: "established"})
	tx.Add(&knftables.Rule{Chain: "established", Rule: "ct state established accept"})
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("make nftables table %s: %w", keepTable, err)
	}
	return nil
}

func releaseByNFT(ctx context.Context, family Family) error {
	nft, err := knftables.New(nftFamily(family), keepTable)
	if err != nil {
		return fmt.Errorf("delete nftables table %s: %w", keepTable, err)
	}
	return deleteTable(ctx, nft, keepTable)
}

// holdByIPTables creates the chain keepChain, to which no rule jumps. The kernel nevertheless
// counts the chain's rule as a user of conntrack, and its table as a user of NAT.
func holdByIPTables(ctx context.Context, variant string, family Family) error {
	x, err := findXTables(ctx, variant, family)
	if err != nil {
		return err
	}
	return x.apply(ctx, "*nat\n:"+keepChain+" - [0:0]\n-A "+keepChain+" -m conntrack --ctstate ESTABLISHED -j RETURN\nCOMMIT\n")
}

func releaseByIPTables(ctx context.Context, variant string, family Family) error {
	x, err := findXTables(ctx, variant, family)
	if err != nil {
		return err
	}
	return x.apply(ctx, "*nat\n-F "+keepChain+"\n-X "+keepChain+"\nCOMMIT\n")
}

// legacyNAT reads the legacy table nat, nil if there is none. The error is errNoLegacy if
// iptables-legacy is not installed.
func legacyNAT(ctx context.Context, family Family) (*table, error) {
	tables, err := legacyTables(family)
	if err != nil || !slices.Contains(tables, "nat") {
		return nil, err
	}
	x, err := findXTables(ctx, variantLegacy, family)
	if err != nil {
		return nil, errors.Join(errNoLegacy, err)
	}
	return x.read(ctx, "nat")
}

var errNoLegacy = errors.New("table nat of iptables-legacy can't be read")
