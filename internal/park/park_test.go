package park_test

import (
	"testing"

	"github.com/podrole/podrole/internal/park"
)

func woken(t park.Ticket[string]) bool {
	select {
	case <-t.Woken():
		return true
	default:
		return false
	}
}

func TestWakeReachesAllOfOneKeyOnly(t *testing.T) {
	var lot park.Lot[string]
	a1, a2, b := lot.Join("a"), lot.Join("a"), lot.Join("b")
	lot.Wake("a")
	if !woken(a1) || !woken(a2) {
		t.Error("waiters of the key were not woken")
	}
	if woken(b) {
		t.Error("a waiter of another key was woken")
	}
	later := lot.Join("a")
	if woken(later) {
		t.Error("a waiter that came after the change was woken by it")
	}
}

func TestLeaveForgetsTheKey(t *testing.T) {
	var lot park.Lot[string]
	first, second := lot.Join("a"), lot.Join("a")
	lot.Leave(first)
	if got := lot.Parked("a"); got != 1 {
		t.Errorf("parked = %d after one of two left, want 1", got)
	}
	lot.Leave(second)
	if got := lot.Parked("a"); got != 0 {
		t.Errorf("parked = %d after all left, want 0", got)
	}
}

func TestLeaveAfterWakeKeepsNewcomers(t *testing.T) {
	var lot park.Lot[string]
	old := lot.Join("a")
	lot.Wake("a")
	newcomer := lot.Join("a")
	lot.Leave(old)
	lot.Wake("a")
	if !woken(newcomer) {
		t.Error("leaving after a wake removed a newcomer's place")
	}
}
