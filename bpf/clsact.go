// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// clsact attaches programs as filters of qdisc clsact, which every supported kernel has. A filter
// is shunt's if it has filterHandle and a name of the form "shunt_DIRECTION WHY".
type clsact struct{}

var _ way = clsact{}

// String returns the name of the qdisc.
func (clsact) String() string { return "clsact" }

// filterHandle is "SHUN" in ASCII: no other program is likely to use it.
const filterHandle = 0x5348554e

// filterPriority is the first priority that attach tries. Filters run in ascending order of
// priority. As with TCX links, shunt's filter is the first at ingress and the last at egress,
// behind the filters whose priority the kernel chose (0xC000 and less). If a filter of another
// kind has the priority, attach tries the next one.
var filterPriority = [directions]uint16{ingress: 1, egress: 0xC001}

const prioritiesTried = 16

var filterParent = [directions]uint32{ingress: netlink.HANDLE_MIN_INGRESS, egress: netlink.HANDLE_MIN_EGRESS}

func filterName(dir direction, why Why) string { return fmt.Sprintf("shunt_%s %s", dir, why) }

// linkOf returns a link with this index for requests of the netlink library, which uses nothing
// else of it.
func linkOf(index int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

// list dumps the filters of each device that has the qdisc: two requests per device.
func (c clsact) list() ([]attachment, error) {
	qdiscs, err := netlink.QdiscList(nil)
	if err = complete(err); err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	var all []attachment
	for _, q := range qdiscs {
		if q.Type() != c.String() {
			continue
		}
		for dir := range direction(directions) {
			filters, err := listFilters(q.Attrs().LinkIndex, dir)
			if err != nil && !gone(err) {
				return nil, err
			}
			for _, f := range filters {
				if why, ok := ourFilter(f, dir); ok {
					all = append(all, attachment{point: point{q.Attrs().LinkIndex, dir}, why: why,
						program: ebpf.ProgramID(f.(*netlink.BpfFilter).Id), inEffect: true, handle: f})
				}
			}
		}
	}
	return all, nil
}

func listFilters(index int, dir direction) ([]netlink.Filter, error) {
	filters, err := netlink.FilterList(linkOf(index), filterParent[dir])
	if err != nil { // also for an interrupted list, which may lack another program's filter
		return nil, fmt.Errorf("list %s filters of device %d: %w", dir, index, err)
	}
	return filters, nil
}

func ourFilter(f netlink.Filter, dir direction) (Why, bool) {
	b, ok := f.(*netlink.BpfFilter)
	if !ok || b.Handle != filterHandle || !b.DirectAction {
		return "", false
	}
	why, ok := strings.CutPrefix(b.Name, filterName(dir, ""))
	return Why(why), ok
}

func (c clsact) attach(at point, why Why, prog loadedProgram, old *attachment) error {
	f := &netlink.BpfFilter{Fd: prog.FD(), Name: filterName(at.dir, why), DirectAction: true,
		FilterAttrs: netlink.FilterAttrs{LinkIndex: at.index, Parent: filterParent[at.dir],
			Handle: filterHandle, Protocol: unix.ETH_P_ALL}}
	if old != nil {
		if old.program == prog.id && old.why == why {
			return nil
		}
		f.Priority = old.handle.(netlink.Filter).Attrs().Priority
		if err := netlink.FilterReplace(f); err != nil {
			return fmt.Errorf("replace the filter: %w", err)
		}
		return c.verify(at, prog)
	}
	if err := addQdisc(at.index); err != nil {
		return err
	}
	var err error
	for f.Priority = filterPriority[at.dir]; f.Priority < filterPriority[at.dir]+prioritiesTried; f.Priority++ {
		if err = netlink.FilterAdd(f); !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("add a filter: %w", err)
	}
	return c.verify(at, prog)
}

// addQdisc adds qdisc clsact unless the device has it.
func addQdisc(index int) error {
	err := netlink.QdiscAdd(clsactOf(index))
	if !errors.Is(err, unix.EEXIST) {
		if err != nil {
			return fmt.Errorf("add qdisc clsact: %w", err)
		}
		return nil
	}
	qdiscs, err := netlink.QdiscList(linkOf(index))
	if err = complete(err); err != nil {
		return fmt.Errorf("list qdiscs: %w", err)
	}
	for _, q := range qdiscs {
		if q.Type() == "ingress" {
			return errors.New("another program's qdisc of kind ingress is there, and shows no packets that leave: " +
				"have its filters moved to a qdisc of kind clsact, which takes the same ones, and remove it (tc qdisc del dev … ingress)")
		}
	}
	return nil
}

func clsactOf(index int) netlink.Qdisc {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index,
		Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}}
}

// verify returns an error unless the kernel lists the filter.
func (c clsact) verify(at point, prog loadedProgram) error {
	filters, err := listFilters(at.index, at.dir)
	if err != nil {
		return err
	}
	for _, f := range filters {
		if _, ok := ourFilter(f, at.dir); ok && f.(*netlink.BpfFilter).Id == int(prog.id) {
			return nil
		}
	}
	return fmt.Errorf("%w: the kernel does not list the filter that it has just made", errNotInEffect)
}

// remove deletes the filter, and the qdisc when no filter is left: an empty clsact does
// nothing, whichever program added it.
func (c clsact) remove(a attachment) error {
	if err := netlink.FilterDel(a.handle.(netlink.Filter)); err != nil && !gone(err) {
		return fmt.Errorf("remove the %s filter of device %d: %w", a.dir, a.index, err)
	}
	for dir := range direction(directions) {
		left, err := listFilters(a.index, dir)
		if gone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, f := range left {
			if _, ours := ourFilter(f, dir); ours && dir == a.dir {
				return fmt.Errorf("remove the %s filter of device %d: it is still there", dir, a.index)
			}
			return nil
		}
	}
	if err := netlink.QdiscDel(clsactOf(a.index)); err != nil && !gone(err) {
		return fmt.Errorf("remove qdisc clsact of device %d: %w", a.index, err)
	}
	return nil
}

// gone reports whether the error means that the filter, its qdisc or the device no longer
// exists.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)
}
