package owner

import (
	"testing"
	"time"
)

// TestStopped: an owner that is stopped lives. Nobody takes over by itself; who comes anew may, and then the stopped
// one is stale when it goes on.
func TestStopped(t *testing.T) {
	m := newModel(t, "", modelBound)
	m.steady = true
	before, err := openClaimant(m.dir)
	check(t, err)
	defer before.Resign()
	mustClaim(t, before)
	owner := m.start()
	m.await(owner, "owns")
	waiting := waits(t, before)

	m.stop(owner)
	for _, err := before.Do(t.Context(), forbidden(t)); err != nil; _, err = before.Do(t.Context(), forbidden(t)) {
		m.resume(owner) // it had the lock
		m.stop(owner)
	}
	mustStandBy(t, before)
	stillWaits(t, waiting)
	after, err := openClaimant(m.dir)
	check(t, err)
	defer after.Resign()
	mustClaim(t, after)
	m.resume(owner)
	m.await(owner, "stands by")
	mustOwn(t, after)
	mustStandBy(t, before)
	after.Resign()
	m.await(owner, "owns")
	m.kill(owner)
	check(t, <-waiting)
	mustOwn(t, before)
}

// await waits until p says so.
func (m *model) await(p *process, want string) {
	m.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(m.bound); p.says() != want; <-tick.C {
		if time.Now().After(deadline) {
			m.t.Fatalf("%s says %q, want %q", p.id, p.says(), want)
		}
	}
}
