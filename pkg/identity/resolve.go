package identity

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/podrole/podrole/internal/park"
	"github.com/podrole/podrole/pkg/node"
	"github.com/podrole/podrole/pkg/role"
)

// UnknownError says that no Workload can be named for a source address, now. It is not final.
type UnknownError struct {
	Source    netip.Addr
	Claimants int   // live pods that claim it; several are nobody
	Err       error // why the only one that claims it is not the one that is there, or what the kernel could not tell; or nil
}

// Error implements error.
func (e *UnknownError) Error() string {
	switch {
	case e.Err != nil:
		return fmt.Sprintf("address %s is refused: %v", e.Source, e.Err)
	case e.Claimants > 1:
		return fmt.Sprintf("address %s is claimed by %d pods: refusing to guess", e.Source, e.Claimants)
	default:
		return fmt.Sprintf("address %s belongs to no pod known to this node", e.Source)
	}
}

// Unwrap returns Err.
func (e *UnknownError) Unwrap() error { return e.Err }

// Lookup returns the Workload that claims source, from memory, without waiting and without asking where source lives: good
// enough to bind a token to, not to hand out anything.
func (d *Directory) Lookup(source netip.Addr) (role.Workload, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	p, _ := d.index.at(source)
	if p == nil || d.isOther(p, spot{address: source}) {
		return role.Workload{}, false
	}
	return p.workload, true
}

// Await returns the Workload that a connection from source is of, and waits for an event that makes it known if none is.
// The error is an *UnknownError: when ctx ends first, or at once when the kernel cannot be asked.
func (d *Directory) Await(ctx context.Context, source netip.Addr) (role.Workload, error) {
	for {
		place, located, err := d.locate(ctx, source)
		if err != nil {
			return role.Workload{}, &UnknownError{Source: source, Err: err}
		}
		d.mu.RLock()
		w, err := d.resolve(source, place, located)
		d.mu.RUnlock()
		if err == nil {
			return w, nil
		}
		if err := d.wait(ctx, source, place, located); err != nil {
			return role.Workload{}, err
		}
	}
}

func (d *Directory) locate(ctx context.Context, source netip.Addr) (place node.Place, located bool, err error) {
	if d.cfg.Locate == nil {
		return node.Place{}, false, nil
	}
	place, err = d.cfg.Locate(ctx, source)
	return place, true, err
}

// wait returns nil when something changed at source or at the interface it is behind, and why source is unknown when ctx
// ended before.
func (d *Directory) wait(ctx context.Context, source netip.Addr, place node.Place, located bool) error {
	d.mu.Lock()
	_, unknown := d.resolve(source, place, located)
	if unknown == nil { // it changed since
		d.mu.Unlock()
		return nil
	}
	tickets := []park.Ticket[spot]{d.parked.Join(spot{address: source}), d.parked.Join(spot{device: place.Interface})}
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, t := range tickets {
			d.parked.Leave(t)
		}
	}()
	select {
	case <-tickets[0].Woken():
	case <-tickets[1].Woken():
	case <-ctx.Done():
		return unknown
	}
	return nil
}

// resolve names the Workload at source, which lives at place if that is known. The caller holds mu.
//
// An interface that leads to one pod decides: no pod can change the node's routes, and some pods have addresses that no
// list names. Else the address does, and the place has to be right for the pod that claims it.
func (d *Directory) resolve(source netip.Addr, place node.Place, located bool) (role.Workload, error) {
	p, claimants := d.index.at(source)
	if located && !place.Bridge {
		if owner, owners := d.index.behind(place.Interface); owners > 0 {
			if p != nil && p.sandbox != nil && p != owner {
				return role.Workload{}, &UnknownError{Source: source, Claimants: claimants, Err: errOccupied}
			}
			p, claimants = owner, owners
		}
	}
	if p == nil || claimants > 1 {
		return role.Workload{}, &UnknownError{Source: source, Claimants: claimants}
	}
	if located {
		if err := d.judge(p, source, place); err != nil {
			return role.Workload{}, &UnknownError{Source: source, Claimants: claimants, Err: err}
		}
	}
	return p.workload, nil
}

// errNotAttached says that an address, which only the API says is a pod's, is not one that is attached to this node.
var errNotAttached = errors.New("it is not attached to this node")

// errOccupied says that another pod's sandbox has the address or the interface too, or instead.
var errOccupied = errors.New("another pod's sandbox is there")

// judge says why p cannot be at place. Of a pod without CNI results it is not known how it is attached: then the address
// decides, as long as it is an address behind one of the node's links, and nothing there is another sandbox's.
func (d *Directory) judge(p *pod, source netip.Addr, place node.Place) error {
	shared := d.shared(place.Interface)
	if p.sandbox == nil {
		switch {
		case place.Interface == "" || place.Local || place.Gateway && !shared:
			return errNotAttached
		case d.isOther(p, spot{address: source}), d.isOther(p, spot{device: place.Interface}), d.isOther(p, spot{device: place.Port}):
			return errOccupied
		}
		return nil
	}
	decides := spot{device: place.Interface}
	if place.Bridge || shared {
		decides = spot{address: source}
	}
	if d.isOther(p, decides) {
		return errOccupied
	}
	s := node.Sandbox{HostInterface: p.sandbox.HostInterface, MAC: p.sandbox.MAC, Addresses: p.addresses}
	for _, other := range p.sandbox.OtherInterfaces {
		if place.Interface == other {
			s.HostInterface = other
		}
	}
	return place.Judge(source, s, d.cfg.SharedInterfaces)
}

// isOther reports whether a sandbox that is not p's is somewhere, as of the last look at the CNI results: p itself may be
// older, and the sandbox's pod not known yet.
func (d *Directory) isOther(p *pod, at spot) bool {
	uid, ok := d.occupied[at]
	return ok && uid != p.cniUID
}

func (d *Directory) shared(device string) bool {
	return slices.Contains(d.cfg.SharedInterfaces, device)
}
