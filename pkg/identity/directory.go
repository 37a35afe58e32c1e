package identity

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/podrole/podrole/internal/park"
	"github.com/podrole/podrole/pkg/role"
)

// Sources is where Kubernetes objects come from: an API server, or what stands in for one.
type Sources struct {
	// Pods lists and watches the pods of this node, as *corev1.Pod.
	Pods cache.ListerWatcher
	// ServiceAccounts lists and watches those of one namespace, as *metav1.PartialObjectMetadata.
	ServiceAccounts func(namespace string) cache.ListerWatcher
	// Namespaces lists and watches the one of that name, as *metav1.PartialObjectMetadata.
	Namespaces func(name string) cache.ListerWatcher
}

// Follower learns what is known of the pods of this node. It is called by one goroutine, so one call at a time and in
// order, and must not block: requests wait behind it.
type Follower interface {
	// Known is called when everything a decision needs has been read, and again whenever any of it changed.
	Known(role.Facts)
	// Gone is called when the pod has finished or is deleted. Nothing is said about its UID afterwards.
	Gone(role.Workload)
}

// Config is what a Directory is made of. All fields are required.
type Config struct {
	Sources  Sources
	Follower Follower
	Logger   *slog.Logger
}

// UnknownError says that no Workload can be named for a source address, now. It is not final.
type UnknownError struct {
	Source    netip.Addr
	Claimants int // live pods that claim the address; one claimant is an identity, several are none
}

// Error implements error.
func (e *UnknownError) Error() string {
	if e.Claimants > 1 {
		return fmt.Sprintf("address %s is claimed by %d pods: refusing to guess", e.Source, e.Claimants)
	}
	return fmt.Sprintf("address %s belongs to no pod known to this node", e.Source)
}

// Directory is the pods of this node by address. Lookup and Await are safe for concurrent use.
type Directory struct {
	cfg    Config
	queue  *workqueue.Typed[string] // keys (namespace/name) of pods to look at again; "" only re-checks the sync
	pods   cache.SharedIndexInformer
	scopes map[string]*scope // by namespace; touched by the worker only
	synced chan struct{}
	listed atomic.Bool // the handlers have seen the initial list of pods

	mu     sync.RWMutex // guards the following
	known  map[string]*pod
	claims map[netip.Addr][]role.Workload
	parked park.Lot[netip.Addr]
}

// pod is what the Directory holds of one pod.
type pod struct {
	workload  role.Workload
	addresses []netip.Addr
}

// New returns a Directory that knows nothing until Run.
func New(cfg Config) (*Directory, error) {
	d := &Directory{
		cfg:    cfg,
		queue:  workqueue.NewTyped[string](),
		pods:   cache.NewSharedIndexInformer(cfg.Sources.Pods, &corev1.Pod{}, 0, nil),
		scopes: make(map[string]*scope),
		synced: make(chan struct{}),
		known:  make(map[string]*pod),
		claims: make(map[netip.Addr][]role.Workload),
	}
	if err := d.pods.SetTransform(trimPod); err != nil {
		return nil, fmt.Errorf("set pod transform: %w", err)
	}
	return d, nil
}

// Synced is closed once every pod that was on the node at the start has been read and, where it can be, decided on.
func (d *Directory) Synced() <-chan struct{} { return d.synced }

// Lookup returns the Workload at source, from memory, without waiting.
func (d *Directory) Lookup(source netip.Addr) (role.Workload, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.lookup(source)
}

func (d *Directory) lookup(source netip.Addr) (role.Workload, bool) {
	if claimants := d.claims[source]; len(claimants) == 1 {
		return claimants[0], true
	}
	return role.Workload{}, false
}

// Await returns the Workload at source, and waits for an event that makes it known if none is. When ctx ends first the
// error is an *UnknownError.
func (d *Directory) Await(ctx context.Context, source netip.Addr) (role.Workload, error) {
	if w, ok := d.Lookup(source); ok {
		return w, nil
	}
	for {
		d.mu.Lock()
		w, ok := d.lookup(source)
		if ok {
			d.mu.Unlock()
			return w, nil
		}
		claimants := len(d.claims[source])
		ticket := d.parked.Join(source)
		d.mu.Unlock()
		select {
		case <-ticket.Woken():
		case <-ctx.Done():
			d.mu.Lock()
			d.parked.Leave(ticket)
			d.mu.Unlock()
			return role.Workload{}, &UnknownError{Source: source, Claimants: claimants}
		}
	}
}

// Run follows the API until ctx ends. It returns when all its goroutines have ended.
func (d *Directory) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()

	registration, err := d.pods.AddEventHandler(keyHandler(d.queue.Add))
	if err != nil {
		return fmt.Errorf("follow pods: %w", err)
	}
	running.Go(func() { d.pods.RunWithContext(ctx) })
	running.Go(func() {
		select {
		case <-registration.HasSyncedChecker().Done():
			d.listed.Store(true)
			d.queue.Add("")
		case <-ctx.Done():
		}
	})
	running.Go(func() {
		<-ctx.Done()
		d.queue.ShutDown()
	})
	for {
		key, stop := d.queue.Get()
		if stop {
			break
		}
		if key != "" {
			d.reconcile(ctx, &running, key)
		}
		d.queue.Done(key)
		d.checkSynced()
	}
	for _, s := range d.scopes {
		s.stop()
	}
	return nil
}

// reconcile brings what is held of one pod in line with the informers' stores. It looks at the present only, so it does
// not matter how many events it stands for.
func (d *Directory) reconcile(ctx context.Context, running *sync.WaitGroup, key string) {
	object, exists, err := d.pods.GetStore().GetByKey(key)
	if err != nil {
		d.cfg.Logger.Error("cannot read pod from the store", "pod", key, "error", err)
		return
	}
	p, _ := object.(*corev1.Pod)
	live := exists && p != nil && !finished(p)

	d.mu.RLock()
	old := d.known[key]
	d.mu.RUnlock()
	if old != nil && (!live || old.workload.UID != string(p.UID)) {
		d.forget(key, old)
	}
	if !live {
		d.leaveScope(key, old)
		return
	}
	w := workloadOf(p)
	d.adopt(key, &pod{workload: w, addresses: addressesOf(p)})

	s := d.scopes[w.Namespace]
	if s == nil {
		s = newScope(w.Namespace, d.cfg.Sources, d.touchNamespace)
		d.scopes[w.Namespace] = s
		if err := s.start(ctx, running, func() { d.queue.Add("") }); err != nil {
			d.cfg.Logger.Error("cannot follow namespace", "namespace", w.Namespace, "error", err)
			return
		}
	}
	s.pods[key] = true
	if facts, ok := s.facts(w, p); ok {
		d.cfg.Follower.Known(facts)
	}
}

// adopt takes p's addresses into the index.
func (d *Directory) adopt(key string, p *pod) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if old := d.known[key]; old != nil {
		if slices.Equal(old.addresses, p.addresses) {
			return
		}
		d.release(old)
	}
	d.known[key] = p
	for _, a := range p.addresses {
		d.claims[a] = append(d.claims[a], p.workload)
		d.parked.Wake(a)
	}
}

// forget removes p from the index, and tells so.
func (d *Directory) forget(key string, p *pod) {
	d.mu.Lock()
	d.release(p)
	delete(d.known, key)
	d.mu.Unlock()
	d.cfg.Follower.Gone(p.workload)
}

// leaveScope ends the watches of a namespace with its last pod. p is nil for a pod that was never held.
func (d *Directory) leaveScope(key string, p *pod) {
	if p == nil {
		return
	}
	if s := d.scopes[p.workload.Namespace]; s != nil {
		delete(s.pods, key)
		if len(s.pods) == 0 {
			s.stop()
			delete(d.scopes, p.workload.Namespace)
		}
	}
}

// release takes p's addresses out of the index. The caller holds mu.
func (d *Directory) release(p *pod) {
	for _, a := range p.addresses {
		left := slices.DeleteFunc(d.claims[a], func(w role.Workload) bool { return w == p.workload })
		if len(left) == 0 {
			delete(d.claims, a)
		} else {
			d.claims[a] = left
		}
		d.parked.Wake(a)
	}
}

// touchNamespace has the pods of a namespace looked at again: those of one ServiceAccount, or all if account is empty.
func (d *Directory) touchNamespace(namespace, account string) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for key, p := range d.known {
		if p.workload.Namespace == namespace && (account == "" || p.workload.ServiceAccount == account) {
			d.queue.Add(key)
		}
	}
}

func (d *Directory) checkSynced() {
	select {
	case <-d.synced:
		return
	default:
	}
	if !d.listed.Load() || d.queue.Len() > 0 {
		return
	}
	for _, s := range d.scopes {
		if !s.hasSynced() {
			return
		}
	}
	close(d.synced)
}

// keyHandler turns every event into the key of its object.
func keyHandler(add func(string)) cache.ResourceEventHandler {
	enqueue := func(object any) {
		// The only error is an object without metadata, which no source yields.
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object); err == nil {
			add(key)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    enqueue,
		UpdateFunc: func(_, object any) { enqueue(object) },
		DeleteFunc: enqueue,
	}
}
