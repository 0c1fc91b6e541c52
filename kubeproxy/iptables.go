// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// The two variants of iptables. Their rules are in different subsystems of the kernel, and
// both variants can have rules at the same time.
const (
	variantNFT    = "iptables-nft"
	variantLegacy = "iptables-legacy"
)

// toolTimeout bounds one run of a tool. The largest rule sets take seconds.
const toolTimeout = 2 * time.Minute

// lockSeconds is how long iptables-restore waits for iptables' own lock.
const lockSeconds = "30"

// xtables are the programs of one variant and family.
type xtables struct {
	variant       string
	family        Family
	save, restore string // paths
}

// findXTables finds the programs of a variant by the variant's names (iptables-nft-save), or
// by the plain names (iptables-save) if these programs are of the variant.
func findXTables(ctx context.Context, variant string, family Family) (*xtables, error) {
	x := &xtables{variant: variant, family: family}
	plain := "iptables"
	if family == IPv6 {
		plain = "ip6tables"
	}
	for _, name := range []string{plain + strings.TrimPrefix(variant, "iptables"), plain} {
		var saveErr, restoreErr error
		x.save, saveErr = exec.LookPath(name + "-save")
		x.restore, restoreErr = exec.LookPath(name + "-restore")
		if saveErr == nil && restoreErr == nil && (name != plain || isVariant(ctx, plain, variant)) {
			return x, nil
		}
	}
	return nil, fmt.Errorf("%s-save and -restore of %s are not installed: run this where they are (package iptables)", plain, variant)
}

// isVariant reports whether the plain program is of the variant, by its --version. Before 1.8
// there was only the legacy variant, and the version did not name it.
func isVariant(ctx context.Context, plain, variant string) bool {
	out, err := runTool(ctx, "", plain, "--version")
	return err == nil && strings.Contains(out, "(nf_tables)") == (variant == variantNFT)
}

// read reads a table. The table must exist, since older versions of iptables-save create a
// missing table.
func (x *xtables) read(ctx context.Context, name string) (*table, error) {
	out, err := runTool(ctx, "", x.save, "-t", name)
	if err != nil {
		return nil, err
	}
	return parseTable(name, out)
}

// apply runs a script as one transaction.
func (x *xtables) apply(ctx context.Context, script string) error {
	_, err := runTool(ctx, script, x.restore, "--noflush", "--wait", lockSeconds)
	return err
}

// runTool runs a program and returns its stdout. An error contains its stderr.
func runTool(ctx context.Context, stdin, path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s: %w: %s", cmd, errors.Join(err, ctx.Err()), strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// lookIPTables looks for kube-proxy's chains in both variants and families. It runs the
// programs of a variant only if the kernel has chains of kube-proxy, or legacy tables, which
// may contain such chains.
func (c *cleaner) lookIPTables(ctx context.Context, nft *nftState) {
	for _, family := range families {
		var tables []string
		for _, name := range xtTables {
			if slices.ContainsFunc(nft.chainsOf(family, name), func(chain string) bool { return isChain(name, chain) }) {
				tables = append(tables, name)
			}
		}
		c.lookVariant(ctx, variantNFT, family, tables)
		legacy, err := legacyTables(family)
		if err != nil {
			c.unseen(fmt.Sprintf("%s %s", variantLegacy, family), err)
		}
		c.lookVariant(ctx, variantLegacy, family, legacy)
	}
}

func (c *cleaner) lookVariant(ctx context.Context, variant string, family Family, tables []string) {
	if len(tables) == 0 {
		return
	}
	x, err := findXTables(ctx, variant, family)
	for _, name := range tables {
		var t *table
		readErr := err
		if readErr == nil {
			t, readErr = x.read(ctx, name)
		}
		if readErr != nil {
			c.unseen(fmt.Sprintf("%s %s table %s", variant, family, name), readErr)
			continue
		}
		c.addPlan(x, makePlan(t))
	}
}

func (c *cleaner) addPlan(x *xtables, p *plan) {
	if len(p.kept) > 0 {
		c.report.Kept = append(c.report.Kept, Kept{By: x.variant, Family: x.family, Table: p.table, Names: p.kept,
			Reason: "used by rules that are not kube-proxy's: " + strings.Join(p.users, "; ")})
	}
	if p.empty() {
		return
	}
	f := Finding{By: x.variant, Family: x.family, Table: p.table, Chains: len(p.remove)}
	for _, r := range p.jumps {
		f.Jumps = append(f.Jumps, "-A "+r.chain+" "+r.spec)
	}
	c.found(f, func(ctx context.Context) error { return x.apply(ctx, p.script()) })
}

// legacyTables returns the tables of xtTables that exist as legacy tables in this network
// namespace. It does not run iptables-legacy, which would create them.
func legacyTables(family Family) ([]string, error) {
	path := "/proc/thread-self/net/ip_tables_names"
	if family == IPv6 {
		path = "/proc/thread-self/net/ip6_tables_names"
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // the kernel has no legacy iptables, or never used it
	}
	if err != nil {
		return nil, fmt.Errorf("list legacy tables: %w", err)
	}
	return slices.DeleteFunc(strings.Fields(string(text)), func(name string) bool { return !slices.Contains(xtTables, name) }), nil
}
