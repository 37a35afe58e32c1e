package identity

import (
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/podrole/podrole/pkg/identity/cni"
)

// mutants are bugs that would hand out wrong credentials, or none. They are planted between the Directory and the world, or
// in what it holds, so that production code has no part in it.
var mutants = map[string]func() mutant{
	// A result counts as long as its file is there.
	"newest_file_instead_of_newest_sandbox": func() mutant {
		return mutant{current: func(all []cni.Sandbox, _ func(string) bool) map[string]cni.Sandbox {
			return cni.Current(all, func(string) bool { return true })
		}}
	},
	// Of a pod whose newest sandbox is gone, an older one counts.
	"older_sandbox_stands_in": func() mutant {
		return mutant{current: func(all []cni.Sandbox, exists func(string) bool) map[string]cni.Sandbox {
			all = slices.DeleteFunc(all, func(s cni.Sandbox) bool { return !exists(s.NetNS) })
			return cni.Current(all, exists)
		}}
	},
	"sandboxes_are_never_withdrawn": func() mutant {
		seen := map[string]cni.Sandbox{}
		return mutant{current: func(all []cni.Sandbox, exists func(string) bool) map[string]cni.Sandbox {
			maps.Copy(seen, cni.Current(all, exists))
			return maps.Clone(seen)
		}}
	},
	"addresses_outlive_the_sandbox": func() mutant {
		return mutant{reconciled: func(d *Directory) {
			d.mu.Lock()
			defer d.mu.Unlock()
			for _, p := range d.known {
				p.hadSandbox = false
			}
		}}
	},
	"sandboxes_of_unknown_pods_are_ignored": func() mutant {
		return mutant{looked: func(d *Directory) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.occupied = nil
		}}
	},
	"unknown_service_account_is_none": func() mutant {
		return mutant{accountMissing: func(d *Directory, namespace, account string) {
			if s := d.scopes[namespace]; s != nil {
				addMissing(s.accounts.GetStore(), namespace, account)
			}
		}}
	},
	"unknown_namespace_is_none": func() mutant {
		return mutant{accountMissing: func(d *Directory, namespace, _ string) {
			if s := d.scopes[namespace]; s != nil {
				addMissing(s.namespaces.GetStore(), "", namespace)
			}
		}}
	},
	"terminating_pod_is_kept": podMutant(func(p *corev1.Pod) { p.DeletionTimestamp = nil }),
	"finished_pod_is_kept": podMutant(func(p *corev1.Pod) {
		if finished(p) {
			p.Status.Phase = corev1.PodRunning
		}
	}),
	"host_network_pod_is_followed": podMutant(func(p *corev1.Pod) { p.Spec.HostNetwork = false }),
	"static_pod_by_its_api_uid": podMutant(func(p *corev1.Pod) {
		p.Annotations = maps.Clone(p.Annotations)
		delete(p.Annotations, corev1.MirrorPodAnnotationKey)
	}),
	"deletions_missed_by_a_watch_are_lost": func() mutant {
		return mutant{lose: func(e event) bool { return e.missed }}
	},
	"deleted_service_account_goes_unnoticed": func() mutant {
		return mutant{lose: func(e event) bool {
			m, ok := e.object.(*metav1.PartialObjectMetadata)
			return ok && m.Namespace != ""
		}}
	},
	"nobody_asks_the_kernel": func() mutant { return mutant{nowhere: true} },
}

func podMutant(edit func(*corev1.Pod)) func() mutant {
	return func() mutant {
		return mutant{object: func(object runtime.Object) runtime.Object {
			p, ok := object.(*corev1.Pod)
			if !ok {
				return object
			}
			q := *p
			edit(&q)
			return &q
		}}
	}
}

func addMissing(store interface {
	GetByKey(string) (any, bool, error)
	Add(any) error
}, namespace, name string,
) {
	key := name
	if namespace != "" {
		key = namespace + "/" + name
	}
	if _, ok, err := store.GetByKey(key); ok || err != nil {
		return
	}
	_ = store.Add(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}})
}

// TestModelCatchesPlantedBugs: a test that finds nothing proves something only if it would have found these.
func TestModelCatchesPlantedBugs(t *testing.T) {
	t.Parallel()
	const within = 200_000
	for name, plant := range mutants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			steps := 0
			for seed := uint64(1); steps < within; seed++ {
				e := newEpisode(seed, episodeSteps)
				out := e.play(newByHand(plant()), false)
				steps += out.steps
				if err := out.err(); err != nil {
					t.Logf("caught after %d steps: %v", steps, err)
					return
				}
			}
			t.Errorf("not caught in %d steps", steps)
		})
	}
}
