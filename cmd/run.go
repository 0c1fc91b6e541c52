// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sync/errgroup"

	"shunt/bpf"
	"shunt/health"
	"shunt/lb"
	"shunt/maps"
)

// gcPercent is GOGC, in percent. Half of the default saves memory and costs little CPU time:
// most of the heap is the model, which rarely changes.
const gcPercent = 50

func newRunCommand() *cobra.Command {
	var cfg Config
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon of a node",
		Long: "Run watches Services and EndpointSlices and keeps the eBPF maps of this node. What it attaches stays\n" +
			"in effect when it ends, so that it can be replaced; `shunt cleanup` takes it away.\n\n" +
			"kube-proxy's own flags and its configuration file are taken too; what has no meaning here is said once,\n" +
			"at start, and in docs/COMPATIBILITY.md. Flags win over the file.",
		RunE: func(c *cobra.Command, _ []string) error {
			asked, err := cfg.kubeProxy.wantsVersion()
			if err != nil {
				return err
			}
			if asked {
				return printVersion(c.OutOrStdout(), "")
			}
			if err := cfg.validate(c.Flags()); err != nil {
				return err
			}
			if file := cfg.kubeProxy.writeTo; file != "" {
				return cfg.settings.write(file, &cfg)
			}
			return run(c.Context(), &cfg)
		},
	}
	c.Flags().SortFlags = false
	cfg.addFlags(c.Flags())
	return c
}

// daemon contains the parts of a daemon, which run connects.
type daemon struct {
	cfg      *Config
	version  versionInfo
	log      *zap.Logger
	cgroup   string
	set      *maps.Set
	kernel   *maps.Kernel
	programs *bpf.Programs
	packets  *bpf.PacketPath
	hooks    *bpf.Hooks
	lock     *bpf.Lock
	flowSeed uint64
	store    *lb.Store
	reserved *reserved
	loop     *lb.Loop
	sweeper  *bpf.Sweeper
	clients  *bpf.Clients
	expiry   *bpf.Expiry
	reporter *reporter
	memory   *maps.Memory
	requests requests
	// adopted is set if the maps were adopted from an earlier daemon. inEffect is set if an
	// earlier daemon's maps, adopted or to be replaced, were in effect at start.
	adopted, inEffect bool
	// mapsMu protects kernel from readers that may outlive serve.
	mapsMu sync.RWMutex
}

func run(ctx context.Context, cfg *Config) (err error) {
	debug.SetGCPercent(gcPercent)
	log, err := newLogger(cfg.LogFormat, cfg.Verbosity)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }() // always fails on a terminal
	defer surviveBrokenPipe()()       // a log collector that ends must not end the node's proxy
	defer surviveHangup(log)()
	for _, n := range cfg.notes() {
		log.Info("configuration without effect", zap.Strings("fields", n.names), zap.String("why", n.why))
	}
	d := &daemon{cfg: cfg, log: log, store: lb.NewStore(time.Now), requests: requests{health.NewRequests()}}
	d.reserved = newReserved(d.store, cfg)
	d.requests.register()
	if d.lock, err = d.prepare(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.lock.Release()) }()
	source, err := newSource(d)
	if err != nil {
		return err
	}
	// OpenMemory pins a map. It follows newSource, so that a refused configuration pins nothing.
	if d.memory, err = maps.OpenMemory(cfg.BPFFSRoot); err != nil {
		return bpf.Explain(err)
	}
	defer d.memory.Close()
	if source.recall != nil {
		source.recall()
	}
	if err := d.open(); err != nil {
		return err
	}
	defer d.close()
	d.warnKubeProxy(ctx)
	err = d.serve(ctx, source)
	if err == nil {
		log.Info("stopped; what was programmed stays in effect")
	}
	return err
}

// prepare checks the machine's requirements, and takes the lock. Its only changes are that it
// creates the directory of --bpffs-root and, with --mount-bpffs, mounts a bpf file system.
func (d *daemon) prepare() (*bpf.Lock, error) {
	if err := bpf.RequireRoot(); err != nil {
		return nil, err
	}
	if err := bpf.RequireBPF(); err != nil {
		return nil, err
	}
	cgroup, err := bpf.FindCgroupRoot(d.cfg.CgroupRoot)
	if err != nil {
		return nil, err
	}
	d.cgroup = cgroup
	if err := bpf.RequireBPFFS(d.cfg.BPFFSRoot, d.cfg.MountBPFFS); err != nil {
		return nil, err
	}
	return bpf.TakeLock(d.cfg.BPFFSRoot)
}

// open loads maps and programs into the kernel. It does not put them into effect.
func (d *daemon) open() error {
	set, opened, err := maps.Open(d.cfg.BPFFSRoot, d.cfg.MapSizes)
	if err != nil {
		return bpf.Explain(err)
	}
	d.set, d.adopted = set, opened.Adopted
	d.inEffect = (opened.Adopted || opened.Replaces != "") && allAttached(bpf.Attachments(d.cfg.BPFFSRoot, nil))
	if opened.Replaces != "" {
		d.log.Info("the maps of the daemon before are replaced; they serve until the new ones are filled",
			zap.String("why", opened.Replaces))
	}
	if err := d.openKernel(); err != nil {
		return errors.Join(err, set.Close())
	}
	if d.programs, err = bpf.Load(set); err != nil {
		return errors.Join(err, d.kernel.Close(), set.Close())
	}
	if d.packets, err = d.openPackets(); err != nil {
		return errors.Join(err, d.programs.Close(), d.kernel.Close(), d.set.Close())
	}
	if !d.programs.HasSetRetval {
		d.log.Warn("this kernel has no bpf_set_retval: a refused connect() fails with EPERM instead of ECONNREFUSED")
	}
	return nil
}

func (d *daemon) openKernel() (err error) {
	d.mapsMu.Lock()
	defer d.mapsMu.Unlock()
	d.kernel, err = maps.NewKernel(d.set)
	return err
}

// leads returns the endpoints to which this node translates connections to an address;
// none while the maps are not open. It is called for addresses of the API server, from
// any goroutine.
func (d *daemon) leads(to netip.AddrPort) []netip.AddrPort {
	d.mapsMu.RLock()
	defer d.mapsMu.RUnlock()
	if d.kernel == nil {
		return nil
	}
	return d.kernel.Leads(to)
}

func (d *daemon) close() {
	d.mapsMu.Lock()
	defer d.mapsMu.Unlock()
	kernel := d.kernel
	d.kernel = nil
	err := errors.Join(d.packets.Close(), d.programs.Close(), kernel.Close(), d.set.Close())
	if err != nil {
		d.log.Warn("close maps and programs", zap.Error(err))
	}
}

func (d *daemon) logStarted(adopted lb.Adopted) {
	d.log.Info("started", zap.String("version", d.version.Version), zap.String("revision", d.version.Revision),
		zap.String("node", d.cfg.NodeName), zap.String("cgroup", d.cgroup), zap.String("bpffs", d.cfg.BPFFSRoot),
		zap.Int("adopted_frontends", adopted.Frontends), zap.Int("adopted_backends", adopted.Backends),
		zap.Int("adopted_services", adopted.Services))
}

// serve runs all parts until ctx is done or one of them fails.
func (d *daemon) serve(ctx context.Context, source *source) (err error) {
	if d.version, err = readVersion(); err != nil {
		return err
	}
	d.hooks = d.newHooks()
	d.expiry = bpf.NewExpiry(bpf.ExpiryOptions{Set: d.set, Timeouts: d.cfg.timeouts(), Log: d.log})
	if d.reporter, err = newReporter(d, source); err != nil {
		return err
	}
	d.sweeper = bpf.NewSweeper(bpf.SweeperOptions{
		Set: d.set, Maps: d.kernel, Cgroup: d.cgroup, Log: d.log,
		Destroyed: func(p uint8) { d.reporter.health.SocketsDestroyed(lb.Protocol(p), 1) },
	})
	d.clients = bpf.NewClients(bpf.ClientsOptions{Maps: d.kernel, Log: d.log})
	d.loop = lb.NewLoop(lb.LoopOptions{
		Store: d.store, Tables: d.kernel, Log: d.log, Now: time.Now,
		NodeName: d.cfg.NodeName, NodePorts: d.cfg.nodePorts, MaxFrontends: d.cfg.MaxFrontends,
		Observer: d.reporter, OnStale: d.sweepStale, OnSynced: d.attach, OnSourceRanges: d.clients.Want,
		OnProblem: d.reporter.problems.found,
	})
	adopted, err := d.loop.Adopt()
	if err != nil {
		return err
	}
	d.reporter.setAdopted(adopted)
	d.kernel.UpdateMeta(func(m *maps.DaemonMeta) {
		*m = maps.DaemonMeta{Abi: d.version.ABI, Pid: uint32(os.Getpid()), Started: time.Now().UnixNano()}
	})
	d.logStarted(adopted)

	// Set the node's addresses before the first reconcile, so that node ports work when the
	// programs take effect.
	addrs, err := bpf.NodeAddrs()
	if err != nil {
		return err
	}
	d.store.SetNodeAddrs(addrs)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.loop.Run(ctx) })
	group.Go(func() error { return d.sweeper.Run(ctx) })
	group.Go(func() error { return d.clients.Run(ctx) })
	group.Go(func() error { return d.expiry.Run(ctx) })
	group.Go(func() error { return bpf.WatchAddrs(ctx, d.store.SetNodeAddrs, d.log) })
	group.Go(func() error { return d.packets.Run(ctx) })
	group.Go(func() error { return d.hooks.Run(ctx) })
	group.Go(func() error { return d.reporter.health.Run(ctx) })
	group.Go(func() error { d.trim(ctx); return nil })
	group.Go(func() error { return d.cfg.file.follow(ctx, configInterval, d.log) })
	group.Go(func() error { return d.keepWatches(ctx, source.watches) })
	for _, part := range source.parts {
		group.Go(func() error { return part(ctx) })
	}
	return group.Wait()
}

// trim waits for the first sync, which needs most memory, and then returns free memory to
// the kernel.
func (d *daemon) trim(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-d.loop.Synced():
		if err := trimMemory(); err != nil {
			d.log.Warn("more memory is held than is needed", zap.Error(err))
		}
	}
}

// newLogger returns a logger to standard error: JSON lines, for the log collectors of a
// cluster, or text.
func newLogger(format string, verbosity int) (*zap.Logger, error) {
	cfg := zap.NewProductionConfig()
	if format == "text" {
		cfg.Encoding = "console"
	}
	cfg.Sampling = nil // an operator who looks for one line must find it
	cfg.DisableStacktrace = true
	cfg.EncoderConfig.TimeKey = "time"
	cfg.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	if verbosity > 0 {
		cfg.Level = zap.NewAtomicLevelAt(zap.DebugLevel)
	}
	log, err := cfg.Build()
	if err != nil {
		return nil, fmt.Errorf("set up the log: %w", err)
	}
	return log, nil
}
