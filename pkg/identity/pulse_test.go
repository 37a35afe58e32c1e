package identity

import (
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/watch"
)

func TestSilentWatchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := watch.NewFake()
		var pulse Pulse
		w := ended(inner, 50*time.Second, &pulse)
		began := time.Now()
		// What is heard, a bookmark too, puts the end off.
		go func() {
			time.Sleep(40 * time.Second)
			inner.Action(watch.Bookmark, nil)
		}()
		if event := <-w.ResultChan(); event.Type != watch.Bookmark {
			t.Fatalf("got %v", event)
		}
		if _, open := <-w.ResultChan(); open || time.Since(began) != 90*time.Second {
			t.Errorf("ended = %v after %s, want true after 90s", !open, time.Since(began))
		}
		if age := pulse.Age(); age != 50*time.Second {
			t.Errorf("last heard of %s ago, want 50s", age)
		}
		if !inner.IsStopped() {
			t.Error("the silent watch was not stopped")
		}
	})
}

func TestStoppedWatchLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := watch.NewFake()
		w := ended(inner, time.Minute, nil)
		go inner.Action(watch.Added, nil)
		synctest.Wait()
		w.Stop() // with an event that nobody takes
		for range w.ResultChan() {
		}
	})
}
