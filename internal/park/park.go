// Package park lets goroutines wait for the next change of one key, without polling and without waking for the
// changes of others. It is how a request waits for a fact that an event will bring.
package park

// Lot is the set of goroutines parked by key. The zero value is ready. It has no lock of its own: every method must be
// called with the lock held that guards the facts waited for, else a change between looking and parking is lost.
type Lot[K comparable] struct {
	spaces map[K]*space
}

type space struct {
	woken  chan struct{}
	parked int
}

// Ticket is one goroutine's place in a Lot.
type Ticket[K comparable] struct {
	key   K
	space *space
}

// Woken is closed when the key changes.
func (t Ticket[K]) Woken() <-chan struct{} { return t.space.woken }

// Join parks the caller on key. The caller gives the ticket back with Leave unless it was woken; Leave after that is
// harmless.
func (l *Lot[K]) Join(key K) Ticket[K] {
	if l.spaces == nil {
		l.spaces = make(map[K]*space)
	}
	s := l.spaces[key]
	if s == nil {
		s = &space{woken: make(chan struct{})}
		l.spaces[key] = s
	}
	s.parked++
	return Ticket[K]{key, s}
}

// Leave gives up the place of t, so that keys nobody waits for take no memory.
func (l *Lot[K]) Leave(t Ticket[K]) {
	t.space.parked--
	if t.space.parked == 0 && l.spaces[t.key] == t.space {
		delete(l.spaces, t.key)
	}
}

// Wake wakes all that are parked on key.
func (l *Lot[K]) Wake(key K) {
	if s := l.spaces[key]; s != nil {
		delete(l.spaces, key)
		close(s.woken)
	}
}

// Parked returns how many goroutines wait for key.
func (l *Lot[K]) Parked(key K) int {
	if s := l.spaces[key]; s != nil {
		return s.parked
	}
	return 0
}
