package identity

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/podrole/podrole/pkg/node"
	"github.com/podrole/podrole/pkg/role"
)

// oracle judges what a Directory says and answers. It is the Directory's Follower.
type oracle struct {
	mu        sync.Mutex // guards all
	violation error      // the first
	histories map[string]map[int]bool
	deletions map[string]int           // by history: the last
	pods      map[string]*simPod       // by UID in the API
	workloads map[string]role.Workload // by that UID
	ended     map[string]bool          // UIDs that finished or were deleted
	asked     int
	answered  int
	settled   int
	windows   int // wrong answers that nobody can avoid who has only the API to go by

	// Of the Directory at hand.
	facts map[string]role.Facts // by UID
	gone  map[string]bool
	last  map[string]int  // by history: the newest version told
	had   map[string]bool // UIDs that it held with a sandbox
}

func newOracle() *oracle {
	o := &oracle{
		histories: map[string]map[int]bool{}, deletions: map[string]int{}, pods: map[string]*simPod{},
		workloads: map[string]role.Workload{}, ended: map[string]bool{},
	}
	o.restart()
	return o
}

func (o *oracle) restart() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.facts, o.gone, o.last, o.had = map[string]role.Facts{}, map[string]bool{}, map[string]int{}, map[string]bool{}
}

// heldWithSandbox notes which pods d holds with a sandbox.
func (o *oracle) heldWithSandbox(d *Directory) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range d.known {
		if p.sandbox != nil {
			o.had[p.workload.UID] = true
		}
	}
}

func (o *oracle) happened(history string, version int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.histories[history] == nil {
		o.histories[history] = map[int]bool{}
	}
	o.histories[history][version] = true
}

func (o *oracle) deleted(history string, version int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.deletions[history] = version
}

func (o *oracle) exists(uid string, p *simPod) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pods[uid] = p
	o.workloads[uid] = role.Workload{Namespace: p.namespace, Name: p.name, UID: uid, ServiceAccount: p.account}
}

func (o *oracle) over(uid string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended[uid] = true
}

func (o *oracle) err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.violation
}

// fail notes the first violation. The caller holds mu.
func (o *oracle) fail(format string, args ...any) {
	if o.violation == nil {
		o.violation = fmt.Errorf(format, args...)
	}
}

// Known implements Follower: facts are a state that existed, told in order, and never before all of it was read.
func (o *oracle) Known(f role.Facts) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := f.Workload
	if w != o.workloads[w.UID] {
		o.fail("told of %+v, want %+v", w, o.workloads[w.UID])
	}
	if o.gone[w.UID] {
		o.fail("told facts of %s, which was said to be gone", w.UID)
	}
	o.check(podHistory(w.UID), f.Pod)
	o.check(namespaceHistory(w.Namespace), f.Namespace)
	account := accountHistory(w.Namespace, w.ServiceAccount)
	if !f.ServiceAccountWasDeleted {
		o.check(account, f.ServiceAccount)
	} else if f.ServiceAccount != nil || o.deletions[account] == 0 || o.deletions[account] < o.last[account] {
		o.fail("told that %s was deleted, with annotations %v, last deletion %d", account, f.ServiceAccount, o.deletions[account])
	}
	o.facts[w.UID] = f
}

func (o *oracle) check(history string, annotations map[string]string) {
	version, err := strconv.Atoi(annotations[versionKey])
	switch {
	case err != nil || !o.histories[history][version]:
		o.fail("told of %s with %v, which it never was", history, annotations)
	case version < o.last[history]:
		o.fail("told of %s at version %d after version %d", history, version, o.last[history])
	}
	o.last[history] = version
}

// Gone implements Follower.
func (o *oracle) Gone(w role.Workload) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.ended[w.UID] {
		o.fail("told that %s is gone, which it is not", w.UID)
	}
	o.gone[w.UID] = true
	delete(o.facts, w.UID)
}

// ask is a connection out of a sandbox.
func (w *world) ask(s *simSandbox, source netip.Addr) {
	got, err := w.resolve(source, w.place(s))
	o := w.oracle
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked++
	if err != nil {
		if _, ok := errors.AsType[*UnknownError](err); !ok {
			o.fail("%v: %v, which is no UnknownError", source, err)
		}
		return
	}
	o.answered++
	if got != o.workloads[got.UID] {
		o.fail("answered with %+v, want %+v", got, o.workloads[got.UID])
		return
	}
	if s.pod != nil && s.pod.apiUIDs[got.UID] {
		return
	}
	wrong := fmt.Sprintf("WRONG IDENTITY: %v from sandbox %s of %s is taken for %s", source, s.id, w.nameOf(s), got.UID)
	switch {
	case s.counted && s.ready: // its result has been read
		o.fail("%s", wrong)
	case !w.results:
		if hand, ok := w.agent.(*byHand); ok && !slices.Equal(hand.claimants(source), []string{got.UID}) {
			o.fail("%s, which is not the one that the API says", wrong)
			return
		}
		o.windows++
	case (w.network == ownInterface || w.network == bridged) && !restsOnAPI(w.agent.directory(), got.UID):
		o.fail("%s, whose sandbox is another", wrong)
	case w.tookIn && !restsOnAPI(w.agent.directory(), got.UID) && w.counts[o.pods[got.UID].uid].ID == "":
		o.fail("%s, whose sandbox is gone", wrong)
	case w.tookIn && len(w.counts) > 0 && o.had[got.UID] && restsOnAPI(w.agent.directory(), got.UID):
		o.fail("%s, whose sandbox is gone", wrong)
	default:
		o.windows++
	}
}

func (w *world) resolve(source netip.Addr, place node.Place) (role.Workload, error) {
	if hand, ok := w.agent.(*byHand); ok {
		hand.place = place
		return hand.d.Await(hand.ended, source)
	}
	ctx, cancel := context.WithCancel(withPlace(context.Background(), place))
	cancel()
	return w.agent.directory().Await(ctx, source)
}

// refused wants nobody to be named.
func (w *world) refused(what string, source netip.Addr, place node.Place) {
	got, err := w.resolve(source, place)
	w.oracle.mu.Lock()
	defer w.oracle.mu.Unlock()
	w.oracle.asked++
	if err == nil {
		w.oracle.fail("WRONG IDENTITY: %s, %v at %+v, is taken for %s", what, source, place, got.UID)
	}
}

// settled holds everything against the truth, once all has arrived and is quiet.
func (w *world) settled() {
	d, o := w.agent.directory(), w.oracle
	present := map[string]bool{}
	for _, p := range w.pods {
		if p.api == nil || !p.bound || p.elsewhere || finished(p.api) || p.hostNetwork {
			continue
		}
		uid := string(p.api.UID)
		present[uid] = true
		account, space := w.accounts[p.namespace+"/"+p.account], w.spaces[p.namespace]
		o.mu.Lock()
		told, ok := o.facts[uid]
		switch {
		case o.gone[uid]:
			o.fail("%s is said to be gone for good", uid)
		case space == nil:
		case account == nil && ok && !told.ServiceAccountWasDeleted:
			o.fail("%s: nobody says that its ServiceAccount is gone", uid)
		case account != nil && !ok:
			o.fail("%s: no facts, though everything is there", uid)
		case account != nil && (told.ServiceAccountWasDeleted || !maps.Equal(told.ServiceAccount, account.Annotations) ||
			!maps.Equal(told.Namespace, space.Annotations) || !maps.Equal(told.Pod, p.api.Annotations)):
			o.fail("%s: told of an older state: %+v", uid, told)
		}
		o.mu.Unlock()
		if p.running && p.sandbox != nil && p.sandbox.attached {
			w.settledPod(d, p)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.settled++
	for uid := range o.facts {
		if !present[uid] {
			o.fail("%s: nobody says that it is gone", uid)
		}
	}
}

// holdsCurrent wants each pod to be held with its newest sandbox, if any, and only while that one lives.
func (w *world) holdsCurrent() {
	d := w.agent.directory()
	d.mu.RLock()
	defer d.mu.RUnlock()
	newest := map[string]*simSandbox{}
	for _, s := range w.sandboxes {
		if s.pod != nil && s.file == wholeFile && (newest[s.pod.uid] == nil || newest[s.pod.uid].written < s.written) {
			newest[s.pod.uid] = s
		}
	}
	w.oracle.mu.Lock()
	defer w.oracle.mu.Unlock()
	for _, p := range d.known {
		if s := newest[p.cniUID]; p.sandbox != nil && (s == nil || !s.netns || s.id != p.sandbox.ID) {
			w.oracle.fail("HELD: %s is held with sandbox %s, which is not its newest one or is gone", p.workload.UID, p.sandbox.ID)
		}
	}
}

// settledPod wants a running pod to be found at each of its addresses.
func (w *world) settledPod(d *Directory, p *simPod) {
	for _, source := range w.sources(p.sandbox) {
		got, err := w.resolve(source, w.place(p.sandbox))
		if err == nil && p.apiUIDs[got.UID] {
			continue
		}
		if !p.sandbox.counted && (err == nil || w.contested(p, source)) {
			continue // of a result that is not there
		}
		w.oracle.mu.Lock()
		w.oracle.fail("LOST: %s runs at %v and is not found there: %v %v", p.uid, source, got, err)
		w.oracle.mu.Unlock()
	}
}

// contested reports whether others may claim an address of a pod without a result, or the pod itself cannot.
func (w *world) contested(p *simPod, source netip.Addr) bool {
	if source.IsLinkLocalUnicast() || p.api == nil {
		return true
	}
	for _, q := range w.pods {
		if q.api != nil && q != p && slices.ContainsFunc(q.api.Status.PodIPs, func(ip corev1.PodIP) bool { return ip.IP == source.String() }) {
			return true
		}
	}
	// It had one: then the API alone is not taken at its word.
	d := w.agent.directory()
	d.mu.RLock()
	defer d.mu.RUnlock()
	held := d.known[p.key()]
	return held != nil && held.hadSandbox
}

// sources are the addresses that a sandbox's connections come from.
func (w *world) sources(s *simSandbox) []netip.Addr {
	sources := s.addresses()
	if w.network == ownInterface || w.network == derivedInterface {
		sources = append(sources, egressAddress(s.slot))
	}
	return sources
}
