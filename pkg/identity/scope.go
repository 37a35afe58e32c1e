package identity

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/podrole/podrole/pkg/role"
)

// scope follows one namespace that has pods on this node: the Namespace itself and its ServiceAccounts.
type scope struct {
	namespace  string
	accounts   cache.SharedIndexInformer
	namespaces cache.SharedIndexInformer
	touch      func(namespace, account string)
	refers     func(namespace, account string) bool // whether a pod of this node has that ServiceAccount
	pods       map[string]bool                      // keys; touched by the worker only
	synced     []cache.ResourceEventHandlerRegistration
	cancel     context.CancelFunc

	mu      sync.Mutex
	deleted map[string]bool // ServiceAccounts that were seen to be deleted, as opposed to not yet seen
}

func newScope(
	namespace string, sources Sources, touch func(namespace, account string), refers func(namespace, account string) bool,
) *scope {
	metadata := func(lw cache.ListerWatcher) cache.SharedIndexInformer {
		return cache.NewSharedIndexInformer(lw, &metav1.PartialObjectMetadata{}, 0, nil)
	}
	return &scope{
		namespace:  namespace,
		accounts:   metadata(sources.ServiceAccounts(namespace)),
		namespaces: metadata(sources.Namespaces(namespace)),
		touch:      touch,
		refers:     refers,
		pods:       make(map[string]bool),
		deleted:    make(map[string]bool),
		cancel:     func() {},
	}
}

// start runs the informers until stop or the end of ctx, as goroutines of running. onSync is called when both have
// delivered their first list.
func (s *scope) start(ctx context.Context, running *sync.WaitGroup, onSync func()) error {
	ctx, s.cancel = context.WithCancel(ctx)
	for _, follow := range []struct {
		informer cache.SharedIndexInformer
		handler  cache.ResourceEventHandler
	}{
		{s.accounts, s.accountHandler()},
		{s.namespaces, keyHandler(func(string) { s.touch(s.namespace, "") })},
	} {
		if err := follow.informer.SetTransform(trimMetadata); err != nil {
			return fmt.Errorf("set metadata transform: %w", err)
		}
		registration, err := follow.informer.AddEventHandler(follow.handler)
		if err != nil {
			return fmt.Errorf("follow objects of namespace %s: %w", s.namespace, err)
		}
		s.synced = append(s.synced, registration)
		running.Go(func() { follow.informer.RunWithContext(ctx) })
	}
	running.Go(func() {
		for _, registration := range s.synced {
			select {
			case <-registration.HasSyncedChecker().Done():
			case <-ctx.Done():
				return
			}
		}
		onSync()
	})
	return nil
}

func (s *scope) stop() { s.cancel() }

func (s *scope) hasSynced() bool {
	for _, registration := range s.synced {
		if !registration.HasSynced() {
			return false
		}
	}
	return true
}

// accountHandler marks which ServiceAccounts were deleted, before the pods concerned are looked at again.
func (s *scope) accountHandler() cache.ResourceEventHandler {
	mark := func(deleted bool) func(any) {
		return func(object any) {
			key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object)
			if err != nil {
				return
			}
			_, name, err := cache.SplitMetaNamespaceKey(key)
			if err != nil {
				return
			}
			// Only those that pods here refer to, or the set would grow with the namespace's churn.
			remember := deleted && s.refers(s.namespace, name)
			s.mu.Lock()
			if remember {
				s.deleted[name] = true
			} else {
				delete(s.deleted, name)
			}
			s.mu.Unlock()
			s.touch(s.namespace, name)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    mark(false),
		UpdateFunc: func(_, object any) { mark(false)(object) },
		DeleteFunc: mark(true),
	}
}

// facts returns all that a decision about the pod needs, or false while some of it has not been read.
func (s *scope) facts(w role.Workload, p *corev1.Pod) (role.Facts, bool) {
	namespace, ok := annotations(s.namespaces, w.Namespace)
	if !ok {
		return role.Facts{}, false
	}
	// What is no by-pass was trimmed.
	f := role.Facts{Workload: w, Pod: p.Annotations, Namespace: namespace, Bypass: bypassOf(p, false)}
	f.ServiceAccount, ok = annotations(s.accounts, w.Namespace+"/"+w.ServiceAccount)
	if !ok {
		s.mu.Lock()
		f.ServiceAccountWasDeleted = s.deleted[w.ServiceAccount]
		s.mu.Unlock()
	}
	return f, ok || f.ServiceAccountWasDeleted
}

func annotations(informer cache.SharedIndexInformer, key string) (map[string]string, bool) {
	object, exists, err := informer.GetStore().GetByKey(key)
	if err != nil || !exists {
		return nil, false
	}
	m, ok := object.(*metav1.PartialObjectMetadata)
	if !ok {
		return nil, false
	}
	return m.Annotations, true
}
