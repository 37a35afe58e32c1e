package cache

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

// entry is what the cache knows of one Grant.
type entry struct {
	grant   role.Grant
	session atomic.Pointer[Session] // nil before the first mint succeeded; may have expired

	// Cache.mu guards the following.
	order    uint64          // of creation: the last word between equals
	pods     []role.Workload // that want the Grant, the latest last
	last     role.Workload   // the latest pod that left
	released time.Time       // when the last of pods left
	unready  bool            // pods are new to the Minter, see Preparer
	waiting  int             // callers of Get parked here
	settled  chan struct{}   // closed, and replaced, when a mint ends; closed when the entry is dropped
	dropped  bool
	failure  failure
}

// failure is the row of failed mints that an entry is in. The zero value is none.
type failure struct {
	count  int
	last   time.Time
	err    error
	kind   sts.Kind
	jitter float64 // in [0,1), drawn once per failure, so that asking again when the next try is due changes nothing
}

// want adds pod, or replaces what is known of it.
func (e *entry) want(pod role.Workload) {
	if i := e.indexOf(pod.UID); i >= 0 {
		e.pods[i] = pod
		return
	}
	e.pods = append(e.pods, pod)
}

// release removes a pod and reports whether it was there.
func (e *entry) release(uid string) bool {
	i := e.indexOf(uid)
	if i < 0 {
		return false
	}
	e.last = e.pods[i]
	e.pods = slices.Delete(e.pods, i, i+1)
	return true
}

func (e *entry) indexOf(uid string) int {
	return slices.IndexFunc(e.pods, func(p role.Workload) bool { return p.UID == uid })
}

func (e *entry) wanted() bool { return len(e.pods) > 0 }

// sponsor is the pod to mint for: the latest, which is the least likely to be gone already, and another one each
// time that failed. A Grant that lingers has none left; the last one's name must do.
func (e *entry) sponsor() role.Workload {
	n := len(e.pods)
	if n == 0 {
		return e.last
	}
	return e.pods[n-1-e.failure.count%n]
}

// denied returns AWS's last word if it was no.
func (e *entry) denied() error {
	if e.failure.count > 0 && e.failure.kind == sts.Denied {
		return e.failure.err
	}
	return nil
}

// settle wakes everyone parked on e.
func (e *entry) settle() {
	close(e.settled)
	e.settled = make(chan struct{})
}
