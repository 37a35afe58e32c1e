package identity

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/podrole/podrole/internal/park"
	"github.com/podrole/podrole/pkg/identity/cni"
	"github.com/podrole/podrole/pkg/node"
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

// Config is what a Directory is made of.
type Config struct {
	Sources  Sources      // required
	Follower Follower     // required
	Logger   *slog.Logger // required
	// Locate asks the kernel where a source address lives, once per Await or more. Without it addresses alone identify:
	// for tests, and for nothing else.
	Locate func(ctx context.Context, source netip.Addr) (node.Place, error)
	// SharedInterfaces are those that a CNI puts all pods of a node behind.
	SharedInterfaces []string
	// ContainerCredentials is whether pods are served at the container credentials endpoint, too: variables that lead SDKs
	// there do not lead them past podrole.
	ContainerCredentials bool
}

// Directory is the pods of this node by address and by interface. Lookup, Await and SetSandboxes are safe for concurrent
// use.
type Directory struct {
	cfg    Config
	queue  *workqueue.Typed[string] // keys (namespace/name) of pods to look at again; "" only re-checks the sync
	pods   cache.SharedIndexInformer
	scopes map[string]*scope // by namespace; touched by the worker only
	synced chan struct{}
	listed atomic.Bool // the handlers have seen the initial list of pods

	mu        sync.RWMutex // guards the following
	known     map[string]*pod
	keys      map[string]string      // of known pods by the UID that a CNI knows
	sandboxes map[string]cni.Sandbox // by that UID
	occupied  map[spot]string        // where those sandboxes are, be their pods known or not
	index     index
	parked    park.Lot[spot]
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
		keys:   make(map[string]string),
		index:  make(index),
	}
	if err := d.pods.SetTransform(cfg.trimPod); err != nil {
		return nil, fmt.Errorf("set pod transform: %w", err)
	}
	return d, nil
}

// Synced is closed once every pod that was on the node at the start has been read and, where it can be, decided on.
func (d *Directory) Synced() <-chan struct{} { return d.synced }

// Assume has pods be known that were on this node not long ago, for an agent that starts while the API server cannot be
// asked, and returns those of them that are known now: a pod is assumed only while it has a sandbox, and until the API
// server has named the pods of this node; those that it has named already are known anyway. Of an assumed pod the Follower is told when it is Gone, and nothing before.
func (d *Directory) Assume(pods []role.Workload) (taken []role.Workload) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range pods {
		p, known := d.known[w.String()]
		_, alive := d.sandboxes[w.UID]
		switch {
		case known && p.workload == w: // named, but not all about it has been read
			taken = append(taken, w)
			continue
		case known || !alive || d.listed.Load():
			continue
		}
		d.put(w.String(), &pod{workload: w, cniUID: w.UID, assumed: true}, nil)
		taken = append(taken, w)
	}
	return taken
}

// SetSandboxes replaces what is known of the sandboxes of this node, by the pod UID that the CNI was given. The map must
// not be changed afterwards. Sandboxes of pods that are not known to be on this node identify nobody, but where they
// are no other pod is.
func (d *Directory) SetSandboxes(sandboxes map[string]cni.Sandbox) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old, before := d.sandboxes, d.occupied
	d.sandboxes, d.occupied = sandboxes, occupied(sandboxes)
	for s, uid := range before {
		if d.occupied[s] != uid {
			d.parked.Wake(s)
		}
	}
	if (len(old) == 0) != (len(sandboxes) == 0) { // every pod's addresses come from elsewhere now
		for key := range d.known {
			d.queue.Add(key)
		}
		return
	}
	for uid, s := range sandboxes {
		if before, had := old[uid]; !had || !sameSandbox(before, s) {
			d.touch(uid)
		}
	}
	for uid := range old {
		if _, left := sandboxes[uid]; !left {
			d.touch(uid)
		}
	}
}

// touch has a pod looked at again. The caller holds mu.
func (d *Directory) touch(cniUID string) {
	if key, ok := d.keys[cniUID]; ok {
		d.queue.Add(key)
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
			d.touchAssumed()
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
	live := exists && p != nil && !finished(p) && !p.Spec.HostNetwork // which is the node, to the network and to AWS

	d.mu.RLock()
	old := d.known[key]
	d.mu.RUnlock()
	if !exists && d.assumes(key, old) {
		return
	}
	if old != nil && (!live || old.workload != workloadOf(p)) {
		d.forget(key, old)
	}
	if !live {
		d.leaveScope(key, old)
		return
	}
	w := workloadOf(p)
	d.adopt(key, p, w)

	s := d.scopes[w.Namespace]
	if s == nil {
		s = newScope(w.Namespace, d.cfg.Sources, d.touchNamespace, d.refers)
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

// adopt brings the index in line with what is known of a pod now.
func (d *Directory) adopt(key string, object *corev1.Pod, w role.Workload) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.put(key, &pod{workload: w, cniUID: cniUIDOf(object)}, addressesOf(object))
}

// assumes reports whether the pod at key goes on being assumed, and if so, brings the index in line with its sandbox.
func (d *Directory) assumes(key string, old *pod) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if old == nil || !old.assumed || d.listed.Load() {
		return false
	}
	if _, alive := d.sandboxes[old.cniUID]; !alive {
		return false
	}
	d.put(key, &pod{workload: old.workload, cniUID: old.cniUID, assumed: true}, nil)
	return true
}

// touchAssumed has the pods that are assumed looked at again.
func (d *Directory) touchAssumed() {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for key, p := range d.known {
		if p.assumed {
			d.queue.Add(key)
		}
	}
}

// put makes p, of which the API names the addresses, the pod at key. The caller holds mu.
func (d *Directory) put(key string, p *pod, status []netip.Addr) {
	old := d.known[key]
	if s, ok := d.sandboxes[p.cniUID]; ok {
		p.sandbox = &s
	}
	p.hadSandbox = p.sandbox != nil || old != nil && old.hadSandbox
	p.addresses = p.claims(status, len(d.sandboxes) > 0)
	if old != nil {
		if old.same(p) {
			return
		}
		d.wake(d.index.remove(old))
	}
	d.known[key] = p
	d.keys[p.cniUID] = key
	d.wake(d.index.add(p))
}

// forget removes p from the index, and tells so.
func (d *Directory) forget(key string, p *pod) {
	d.mu.Lock()
	d.wake(d.index.remove(p))
	delete(d.known, key)
	if d.keys[p.cniUID] == key {
		delete(d.keys, p.cniUID)
	}
	d.mu.Unlock()
	d.cfg.Follower.Gone(p.workload)
}

// wake wakes who waits for something to change at one of the spots. The caller holds mu.
func (d *Directory) wake(spots []spot) {
	for _, s := range spots {
		d.parked.Wake(s)
	}
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

// refers reports whether a pod of this node has a ServiceAccount.
func (d *Directory) refers(namespace, account string) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, p := range d.known {
		if p.workload.Namespace == namespace && p.workload.ServiceAccount == account {
			return true
		}
	}
	return false
}

func (d *Directory) checkSynced() {
	select {
	case <-d.synced:
		return
	default:
	}
	if !d.listed.Load() {
		return
	}
	for _, s := range d.scopes {
		if !s.hasSynced() {
			return
		}
	}
	// Last: what has synced has put its keys into the queue.
	if d.queue.Len() == 0 {
		close(d.synced)
	}
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
