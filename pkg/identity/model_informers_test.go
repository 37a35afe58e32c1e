package identity

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	cachetest "k8s.io/client-go/tools/cache/testing"

	"github.com/podrole/podrole/pkg/identity/cni"
	"github.com/podrole/podrole/pkg/node"
)

type placeKey struct{}

// withPlace has the kernel of a Directory that runs by itself answer with place.
func withPlace(ctx context.Context, place node.Place) context.Context {
	return context.WithValue(ctx, placeKey{}, place)
}

func placeOf(ctx context.Context, _ netip.Addr) (node.Place, error) {
	return ctx.Value(placeKey{}).(node.Place), nil
}

// byItself is a Directory that runs as it does in the agent: its own goroutines, real informers, and sources that stand
// in for an API server. It belongs into a synctest bubble.
type byItself struct {
	d       *Directory
	sources map[feedID]*source
	cancel  context.CancelFunc
	ended   chan error
	quiet   bool
}

// source is an API server's side of a watch, and what it has not told yet.
type source struct {
	*cachetest.FakeControllerSource
	wire []event
	has  map[string]runtime.Object // by key: what it has told
}

func (b *byItself) start(w *world) {
	b.sources = map[feedID]*source{}
	for _, f := range modelFeeds {
		s := &source{FakeControllerSource: cachetest.NewFakeControllerSource(), has: map[string]runtime.Object{}}
		b.sources[f] = s
		for _, e := range w.present(f) {
			s.change(e, true)
		}
	}
	lister := func(f feedID) cache.ListerWatcher { return b.sources[f] }
	b.d = newModelDirectory(w, Sources{
		Pods:            lister(podFeed),
		ServiceAccounts: func(ns string) cache.ListerWatcher { return lister(accountFeed(ns)) },
		Namespaces:      func(ns string) cache.ListerWatcher { return lister(namespaceFeed(ns)) },
	}, placeOf)
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel, b.ended = cancel, make(chan error, 1)
	go func(d *Directory, ended chan<- error) { ended <- d.Run(ctx) }(b.d, b.ended)
	b.quiet = false
}

func (b *byItself) stop() {
	if b.d == nil {
		return
	}
	b.cancel()
	if err := <-b.ended; err != nil {
		panic(err)
	}
	synctest.Wait() // a list that was under way is answered: nothing is after Shutdown
	for _, s := range b.sources {
		s.Shutdown()
	}
	b.d = nil
}

// IsWatchListSemanticsUnSupported has reflectors list before they watch: the fake sends no bookmarks.
func (s *source) IsWatchListSemanticsUnSupported() bool { return true }

// change brings an object into its next state, and tells whoever watches unless that is to be missed.
func (s *source) change(e event, missed bool) {
	old, had := s.has[e.key]
	kind := watch.Added
	switch {
	case e.deleted && !had:
		return
	case e.deleted:
		kind = watch.Deleted
		delete(s.has, e.key)
	case had && sameObject(old, e.object):
		kind = watch.Modified
		s.has[e.key] = e.object
	default:
		if had { // another one of the same name
			s.change(event{key: e.key, object: old, deleted: true}, missed)
		}
		s.has[e.key] = e.object
	}
	told := 1.0
	if missed {
		told = 0
	}
	s.Change(watch.Event{Type: kind, Object: e.object.DeepCopyObject()}, told)
}

func sameObject(a, b runtime.Object) bool {
	p, isPod := a.(*corev1.Pod)
	return !isPod || p.UID == b.(*corev1.Pod).UID
}

func (b *byItself) emit(f feedID, e event) { b.sources[f].wire = append(b.sources[f].wire, e) }

func (b *byItself) advance(what opKind, arg uint64) bool {
	feeds := modelFeeds
	f := feeds[arg%uint64(len(feeds))]
	s := b.sources[f]
	count := min(int(arg/16%4)+1, len(s.wire))
	switch what {
	case opArrive:
		b.arrive(s, count, false)
		return count > 0
	case opRelist: // what was to come is found in the next list, or found missing
		b.arrive(s, len(s.wire), true)
		s.ResetWatch()
		return true
	case opDrain:
		synctest.Wait()
		b.quiet = true
		return true
	}
	return false
}

func (b *byItself) arrive(s *source, count int, missed bool) {
	for _, e := range s.wire[:count] {
		s.change(e, missed)
		b.quiet = false
	}
	s.wire = slices.Delete(s.wire, 0, count)
}

func (b *byItself) settle() {
	for _, f := range modelFeeds {
		b.arrive(b.sources[f], len(b.sources[f].wire), false)
	}
	time.Sleep(2 * time.Minute) // longer than any back-off before a watch begins again
	synctest.Wait()
	b.quiet = true
}

func (b *byItself) sandboxes(all []cni.Sandbox, exists func(string) bool) map[string]cni.Sandbox {
	current := cni.Current(all, exists)
	b.d.SetSandboxes(current)
	b.quiet = false
	return current
}

func (b *byItself) idle() bool            { return b.quiet }
func (b *byItself) directory() *Directory { return b.d }

// TestModelWithInformers plays fewer steps, against a Directory that runs by itself.
func TestModelWithInformers(t *testing.T) {
	t.Parallel()
	first, given := modelSeed(t)
	episodes := 60
	switch {
	case given:
		episodes = 1
	case testing.Short():
		episodes = 2
	}
	steps, asked, answered := 0, 0, 0
	for seed := first; seed < first+uint64(episodes); seed++ {
		e := newEpisode(seed, episodeSteps)
		e.results = true // what the API has said by now, only byHand knows
		var out outcome
		synctest.Test(t, func(*testing.T) { out = e.play(&byItself{}, true) })
		steps, asked, answered = steps+out.steps, asked+out.asked, answered+out.answered
		if err := out.err(); err != nil {
			last := out.trace[max(0, len(out.trace)-200):]
			t.Fatalf("%v: %v\nThe last of %d steps:\n%s", e, err, out.steps, strings.Join(last, "\n"))
		}
	}
	t.Logf("%d steps, %d questions, %d of them answered", steps, asked, answered)
}
