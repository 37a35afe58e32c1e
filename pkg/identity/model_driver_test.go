package identity

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/podrole/podrole/pkg/identity/cni"
	"github.com/podrole/podrole/pkg/node"
)

func unixTime(seconds int64) time.Time { return time.Unix(seconds, 0) }

// driver is a Directory, and all the delay between the world and it.
type driver interface {
	// start replaces the Directory by one that knows nothing.
	start(w *world)
	// emit is the API server that has something to tell.
	emit(f feedID, e event)
	// advance moves something on its way a bit further, if anything is on its way.
	advance(what opKind, arg uint64) (moved bool)
	// settle has everything arrive.
	settle()
	// sandboxes is the CNI's watcher that has looked at the files.
	sandboxes(all []cni.Sandbox, exists func(netns string) bool) map[string]cni.Sandbox
	// idle reports whether all that has arrived has been taken in.
	idle() bool
	directory() *Directory
	stop()
}

// feedID is one watch.
type feedID struct {
	kind      feedKind
	namespace string
}

type feedKind int

const (
	podKind feedKind = iota
	accountKind
	namespaceKind
)

var podFeed = feedID{kind: podKind}

func accountFeed(namespace string) feedID   { return feedID{accountKind, namespace} }
func namespaceFeed(namespace string) feedID { return feedID{namespaceKind, namespace} }

var modelFeeds = []feedID{
	podFeed, accountFeed("shop"), namespaceFeed("shop"), accountFeed("bank"), namespaceFeed("bank"),
}

// event is what a watch tells of an object.
type event struct {
	key     string
	object  runtime.Object
	deleted bool
	missed  bool // the deletion: the object was missing in a list
}

// mutant is a bug, planted where the Directory meets the world.
type mutant struct {
	current        func(all []cni.Sandbox, exists func(string) bool) map[string]cni.Sandbox // in place of cni.Current
	object         func(runtime.Object) runtime.Object                                      // what arrives in place of an object
	lose           func(event) bool                                                         // notices that are lost
	reconciled     func(d *Directory)                                                       // called after each reconcile
	looked         func(d *Directory)                                                       // called after each look at the files
	accountMissing func(d *Directory, namespace, account string)                            // before a pod is reconciled
	nowhere        bool                                                                     // nobody asks the kernel
}

// byHand drives a Directory without its goroutines: the stores of its informers are filled, its handlers called and
// its queue worked off here, one at a time and in any order that the real ones could take. It is about a hundred times
// as fast as real informers, and knows at any moment what has arrived.
type byHand struct {
	mutant mutant
	world  *world
	d      *Directory
	feeds  map[feedID]*feed
	ended  context.Context
	group  sync.WaitGroup
	place  node.Place
	seen   map[string]*corev1.Pod // as of the last reconcile, free of mutants
	real   map[string]*corev1.Pod // in the store, free of mutants
	moves  int
}

// feed is a watch by hand: what is on its way to the store, and what is in there of which the handler was not told yet.
type feed struct {
	scope   *scope // nil for pods
	store   cache.Store
	handler cache.ResourceEventHandler
	listed  bool
	wire    []event
	notices []func()
}

func newByHand(m mutant) *byHand {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	return &byHand{mutant: m, ended: ended}
}

func newModelDirectory(w *world, sources Sources, locate func(context.Context, netip.Addr) (node.Place, error)) *Directory {
	d, err := New(Config{
		Sources:          sources,
		Follower:         w.oracle,
		Logger:           slog.New(slog.DiscardHandler),
		Locate:           locate,
		SharedInterfaces: []string{sharedDevice},
	})
	if err != nil {
		panic(err)
	}
	return d
}

func (b *byHand) start(w *world) {
	b.world = w
	none := func(string) cache.ListerWatcher { return &cache.ListWatch{} }
	locate := func(context.Context, netip.Addr) (node.Place, error) { return b.place, nil }
	if b.mutant.nowhere {
		locate = nil
	}
	b.d = newModelDirectory(w, Sources{Pods: none(""), ServiceAccounts: none, Namespaces: none}, locate)
	b.seen, b.real = map[string]*corev1.Pod{}, map[string]*corev1.Pod{}
	b.feeds = map[feedID]*feed{podFeed: {store: b.d.pods.GetStore(), handler: keyHandler(b.d.queue.Add)}}
}

func (b *byHand) stop() { b.group.Wait() }

func (b *byHand) directory() *Directory { return b.d }

func (b *byHand) emit(f feedID, e event) {
	if feed := b.feeds[f]; feed != nil && feed.listed {
		feed.wire = append(feed.wire, e)
	}
}

// list puts a list on its way, in place of everything that was: what a watch begins with, and what follows when one
// breaks.
func (b *byHand) list(f feedID) {
	b.moves++
	feed := b.feeds[f]
	feed.listed, feed.wire = true, b.world.present(f)
	for _, key := range slices.Sorted(slices.Values(feed.store.ListKeys())) {
		if !slices.ContainsFunc(feed.wire, func(e event) bool { return e.key == key }) {
			object, _, _ := feed.store.GetByKey(key)
			feed.wire = append(feed.wire, event{key: key, object: object.(runtime.Object), deleted: true, missed: true})
		}
	}
}

// coalesce leaves out what is out of date by a later event, as a slow watch does.
func (b *byHand) coalesce(f feedID) {
	feed := b.feeds[f]
	last := map[string]int{}
	for i, e := range feed.wire {
		last[e.key] = i
	}
	var wire []event
	for i, e := range feed.wire {
		if last[e.key] == i || e.deleted {
			wire = append(wire, e)
		}
	}
	b.moves += len(feed.wire) - len(wire)
	feed.wire = wire
}

// arrive takes the next event into the store, as an informer does.
func (b *byHand) arrive(f feedID) {
	feed := b.feeds[f]
	if len(feed.wire) == 0 {
		return
	}
	b.moves++
	e := feed.wire[0]
	feed.wire = feed.wire[1:]
	old, had, _ := feed.store.GetByKey(e.key)
	if e.deleted {
		if f == podFeed {
			delete(b.real, e.key)
		}
		if !had {
			return
		}
		if err := feed.store.Delete(old); err != nil {
			panic(err)
		}
		if b.mutant.lose != nil && b.mutant.lose(e) {
			return
		}
		if e.missed {
			old = cache.DeletedFinalStateUnknown{Key: e.key, Obj: old}
		}
		feed.notices = append(feed.notices, func() { feed.handler.OnDelete(old) })
		return
	}
	object := e.object
	if f == podFeed {
		b.real[e.key] = e.object.(*corev1.Pod)
	}
	if b.mutant.object != nil {
		object = b.mutant.object(object)
	}
	trim := trimMetadata
	if f == podFeed {
		trim = Config{}.trimPod
	}
	trimmed, err := trim(object)
	if err == nil {
		err = feed.store.Update(trimmed)
	}
	if err != nil {
		panic(err)
	}
	if had {
		feed.notices = append(feed.notices, func() { feed.handler.OnUpdate(old, trimmed) })
	} else {
		feed.notices = append(feed.notices, func() { feed.handler.OnAdd(trimmed, false) })
	}
}

func (b *byHand) notice(f feedID) {
	feed := b.feeds[f]
	if len(feed.notices) == 0 {
		return
	}
	b.moves++
	tell := feed.notices[0]
	feed.notices = feed.notices[1:]
	tell()
}

// work reconciles one pod, as Run does.
func (b *byHand) work() {
	if b.d.queue.Len() == 0 {
		return
	}
	b.moves++
	key, _ := b.d.queue.Get()
	if key != "" {
		if b.mutant.accountMissing != nil {
			if p := b.real[key]; p != nil {
				b.mutant.accountMissing(b.d, p.Namespace, p.Spec.ServiceAccountName)
			}
		}
		b.d.reconcile(b.ended, &b.group, key)
		if b.seen[key] = b.real[key]; b.seen[key] == nil {
			delete(b.seen, key)
		}
		if b.mutant.reconciled != nil {
			b.mutant.reconciled(b.d)
		}
	}
	b.d.queue.Done(key)
	for _, ns := range modelNamespaces {
		b.followScope(ns)
	}
}

// followScope begins or ends the watches of a namespace with those of the Directory.
func (b *byHand) followScope(namespace string) {
	s := b.d.scopes[namespace]
	accounts, spaces := accountFeed(namespace), namespaceFeed(namespace)
	if s == nil {
		delete(b.feeds, accounts)
		delete(b.feeds, spaces)
		return
	}
	if f := b.feeds[accounts]; f != nil && f.scope == s {
		return
	}
	b.feeds[accounts] = &feed{scope: s, store: s.accounts.GetStore(), handler: s.accountHandler()}
	b.feeds[spaces] = &feed{
		scope: s, store: s.namespaces.GetStore(),
		handler: keyHandler(func(string) { s.touch(s.namespace, "") }),
	}
}

func (b *byHand) drain() {
	for !b.idle() {
		for _, f := range modelFeeds {
			if b.feeds[f] != nil {
				b.notice(f)
			}
		}
		b.work()
	}
}

func (b *byHand) idle() bool {
	for _, f := range b.feeds {
		if len(f.notices) > 0 {
			return false
		}
	}
	return b.d.queue.Len() == 0
}

func (b *byHand) advance(what opKind, arg uint64) bool {
	before := b.moves
	feeds := modelFeeds
	f := feeds[arg%uint64(len(feeds))]
	count := int(arg/16%4) + 1
	if b.feeds[f] == nil {
		f = podFeed
	}
	switch what {
	case opArrive:
		if !b.feeds[f].listed {
			b.list(f)
		}
		for range count {
			b.arrive(f)
		}
	case opRelist:
		b.list(f)
	case opCoalesce:
		b.coalesce(f)
	case opNotice:
		for range count {
			b.notice(f)
		}
	case opWork:
		for range count {
			b.work()
		}
	case opDrain:
		b.drain()
	}
	return b.moves > before
}

func (b *byHand) settle() {
	for quiet := false; !quiet; {
		quiet = true
		for _, f := range modelFeeds {
			feed := b.feeds[f]
			if feed == nil {
				continue
			}
			if !feed.listed {
				b.list(f)
				quiet = false
			}
			for len(feed.wire) > 0 {
				b.arrive(f)
				quiet = false
			}
		}
		b.drain()
	}
}

func (b *byHand) sandboxes(all []cni.Sandbox, exists func(string) bool) map[string]cni.Sandbox {
	current := cni.Current(all, exists)
	if b.mutant.current != nil {
		b.d.SetSandboxes(b.mutant.current(all, exists))
	} else {
		b.d.SetSandboxes(current)
	}
	if b.mutant.looked != nil {
		b.mutant.looked(b.d)
	}
	return current
}

// claimants returns the pods that claim an address by what the API has been seen to say, in so far as podrole promises
// to follow it: those that are neither finished nor at their end.
func (b *byHand) claimants(source netip.Addr) (claimants []string) {
	for _, p := range b.seen {
		over := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.Spec.HostNetwork
		if p.DeletionTimestamp != nil && len(p.Status.ContainerStatuses) > 0 &&
			p.Status.ContainerStatuses[0].State.Terminated != nil {
			over = true
		}
		if !over && slices.ContainsFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool { return ip.IP == source.String() }) {
			claimants = append(claimants, string(p.UID))
		}
	}
	return claimants
}

// restsOnAPI reports whether a pod is held without a sandbox.
func restsOnAPI(d *Directory, uid string) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, p := range d.known {
		if p.workload.UID == uid {
			return p.sandbox == nil
		}
	}
	return false
}

func (f feedID) String() string { return fmt.Sprintf("%d/%s", f.kind, f.namespace) }
