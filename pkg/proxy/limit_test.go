package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// gate is a limiter with its two listeners, of which connections are accepted all the time.
type gate struct {
	*limiter
	pipes *pipes
	room  *waitingRoom

	mu     sync.Mutex
	visits map[net.Conn]*visit // by the near end
}

// visit is a connection as the client sees it.
type visit struct {
	far    net.Conn
	served chan *connection // of which there is one as soon as it is served
}

// openGate calls f in a bubble with a gate, and checks that nothing is left when all have gone.
func openGate(t *testing.T, perSecond float64, f func(t *testing.T, g *gate)) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{limiter: newLimiter(perSecond), pipes: newPipes(), visits: map[net.Conn]*visit{}}
		g.room = newWaitingRoom(g.pipes, g.limiter)
		var accepting sync.WaitGroup
		for _, l := range []net.Listener{listener{g.pipes, g.limiter, g.room}, g.room} {
			accepting.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					served := c.(*connection)
					g.mu.Lock()
					g.visits[served.Conn.(addressed).Conn].served <- served
					g.mu.Unlock()
				}
			})
		}
		f(t, g)
		_ = g.room.Close()
		_ = g.pipes.Close()
		accepting.Wait()
		for _, v := range g.visits {
			if c := v.now(); c != nil {
				_ = c.Close()
				_ = c.Close() // counts once
			}
		}
		for _, o := range g.origins.Values() {
			if o.open != 0 || o.served != 0 || len(o.waiting) != 0 {
				t.Errorf("a source is left with %d connections, %d served, %d waiting", o.open, o.served, len(o.waiting))
			}
		}
		if g.total != 0 {
			t.Errorf("%d connections are left", g.total)
		}
	})
}

// dial connects from an address.
func (g *gate) dial(from string) *visit {
	far, near := net.Pipe()
	v := &visit{far, make(chan *connection, 1)}
	g.mu.Lock()
	g.visits[near] = v
	g.mu.Unlock()
	g.pipes.accept <- addressed{near, peer(from)}
	synctest.Wait()
	return v
}

// now returns the connection if it is served, and leaves it there.
func (v *visit) now() *connection {
	select {
	case c := <-v.served:
		v.served <- c
		return c
	default:
		return nil
	}
}

// gone reports whether the connection has been closed.
func (v *visit) gone() bool {
	_ = v.far.SetReadDeadline(time.Unix(0, 0))
	_, err := v.far.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

// state names what has become of the connection.
func (v *visit) state() string {
	switch {
	case v.gone():
		return "closed"
	case v.now() != nil:
		return "served"
	default:
		return "waits"
	}
}

// await returns what becomes of the connection, and after which time.
func (v *visit) await() (state string, took time.Duration) {
	began := time.Now()
	for v.state() == "waits" {
		time.Sleep(time.Millisecond)
		synctest.Wait()
	}
	return v.state(), time.Since(began)
}

const noisy, quiet = "10.0.0.1", "10.0.0.2"

func TestConnectionsOfOneSourceTakeTurns(t *testing.T) {
	openGate(t, 0, func(t *testing.T, g *gate) {
		var served []*visit
		for range maxServed {
			v := g.dial(noisy)
			if got := v.state(); got != "served" {
				t.Fatalf("connection %d %s, want it served", len(served), got)
			}
			served = append(served, v)
		}
		// The next ones wait, and get their turns in order as others end. Nobody else notices.
		first, second := g.dial(noisy), g.dial(noisy)
		if first.state() != "waits" || second.state() != "waits" {
			t.Errorf("beyond the limit, one %s and the other %s, want both to wait", first.state(), second.state())
		}
		if got := g.dial(quiet).state(); got != "served" {
			t.Errorf("the connection of another source %s", got)
		}
		_ = served[0].now().Close()
		synctest.Wait()
		if first.state() != "served" || second.state() != "waits" {
			t.Errorf("when one ended, the first %s and the second %s", first.state(), second.state())
		}
		// The other one waits in vain.
		if state, took := second.await(); state != "closed" || took.Round(10*time.Millisecond) != turnTimeout {
			t.Errorf("without a turn: %s after %s, want it closed after %s", state, took, turnTimeout)
		}
		for range maxOpen - maxServed {
			if got := g.dial(noisy).state(); got != "waits" {
				t.Fatalf("a connection %s, want it to wait", got)
			}
		}
		if got := g.dial(noisy).state(); got != "closed" {
			t.Errorf("a connection beyond the last limit %s", got)
		}
	})
}

// A source may make as many requests at once as it has saved up; then they come at its rate, and what is not due within
// a second is closed after that second. Nobody else notices, and to come back later is no way around it.
func TestRequestsOfOneSourceArePaced(t *testing.T) {
	const perSecond = 20
	const burst = 5 * perSecond
	openGate(t, perSecond, func(t *testing.T, g *gate) {
		end := func(v *visit) {
			if c := v.now(); c != nil {
				_ = c.Close()
			}
		}
		for range burst {
			v := g.dial(noisy)
			if got := v.state(); got != "served" {
				t.Fatalf("in the burst, a connection %s", got)
			}
			end(v)
		}
		began := time.Now()
		for range perSecond {
			v := g.dial(noisy)
			if state, _ := v.await(); state != "served" {
				t.Fatalf("after the burst, a connection was %s", state)
			}
			end(v)
		}
		if took := time.Since(began).Round(50 * time.Millisecond); took != time.Second {
			t.Errorf("the %d after the burst took %s, want a second", perSecond, took)
		}

		// Those that come at the same time are served one after the other, and the last ones not at all.
		var visits []*visit
		for range 2 * perSecond {
			visits = append(visits, g.dial(noisy))
		}
		if got := g.dial(quiet).state(); got != "served" {
			t.Errorf("the connection of another source %s", got)
		}
		time.Sleep(turnTimeout / 2)
		synctest.Wait()
		half := map[string]int{}
		for _, v := range visits {
			half[v.state()]++
		}
		if n := half["served"]; n < perSecond/2-1 || n > perSecond/2 || half["closed"] != 0 {
			t.Errorf("after half a second: %v, want about %d served and the others waiting", half, perSecond/2)
		}
		time.Sleep(turnTimeout / 2)
		synctest.Wait()
		all, before := map[string]int{}, "served"
		for i, v := range visits {
			state := v.state()
			if all[state]++; state == "served" && before != "served" {
				t.Errorf("connection %d was served, the one before was not", i)
			}
			before = state
			end(v)
		}
		if n := all["served"]; n < perSecond-1 || n > perSecond || all["waits"] != 0 {
			t.Errorf("after a second: %v, want about %d served and the others closed", all, perSecond)
		}
		time.Sleep(burstTime)
		for range burst {
			v := g.dial(noisy)
			if got := v.state(); got != "served" {
				t.Fatalf("after a rest, a connection %s, want a whole burst again", got)
			}
			end(v)
		}
	})
}

// Who waits when the server ends is sent away at once; who comes later, too.
func TestClosedRoom(t *testing.T) {
	openGate(t, 1, func(t *testing.T, g *gate) {
		var visits []*visit
		for range 8 {
			visits = append(visits, g.dial(noisy))
		}
		if err := g.room.Close(); err != nil {
			t.Error(err)
		}
		for i, v := range append(visits, g.dial(noisy)) {
			want := "closed"
			if i < 5 {
				want = "served"
			}
			if got := v.state(); got != want {
				t.Errorf("connection %d %s, want %s", i, got, want)
			}
		}
	})
}

// However many sources take all that they can get, others get some, and more when those have to come back.
func TestRoomForOthers(t *testing.T) {
	l := newLimiter(0)
	room := newWaitingRoom(nil, l)
	open := map[netip.Addr][]*connection{}
	enter := func(address netip.Addr, most int) (n int) {
		for before := l.total; n < most; n++ {
			c := l.enter(addressed{discard{}, peer(address.String())}, room)
			if l.total == before {
				break
			}
			before = l.total
			if c != nil {
				open[address] = append(open[address], c)
			}
		}
		return n
	}
	const greedy, modest = 40, 100
	var sources []netip.Addr
	address := netip.MustParseAddr("10.0.0.0")
	for range greedy {
		address = address.Next()
		sources = append(sources, address)
		enter(address, maxOpen+1)
	}
	for range modest {
		address = address.Next()
		if n := enter(address, minOpen); n != minOpen {
			t.Fatalf("a source that has no connection gets %d, want %d", n, minOpen)
		}
	}
	// The greedy ones come back as often as they are let go.
	for range 2 * maxOpen {
		for _, s := range sources {
			if mine := open[s]; len(mine) > minOpen {
				open[s] = mine[1:]
				_ = mine[0].Close()
			}
			enter(s, 1)
		}
	}
	if n := enter(address.Next(), maxOpen); n < 2*minOpen {
		t.Errorf("a new source gets %d connections, want many more than %d", n, minOpen)
	}
	if l.total > maxTotal {
		t.Errorf("%d connections in all, want at most %d", l.total, maxTotal)
	}
	_ = room.Close()
}

// discard is a connection of which only the end matters.
type discard struct{ net.Conn }

func (discard) Close() error { return nil }

// What is too much is closed without a word.
func TestExcessIsClosedWithoutAnswer(t *testing.T) {
	inBubble(t, func(c *Config) { c.Rate = 1.5 }, func(t *testing.T, n *node, l *pipes) {
		n.serve(podIP, "web", time.Now())
		for range 7 {
			if got := status(t, l.ask(podIP, get(sc+"/web"))); got != 200 {
				t.Fatalf("in the burst: %d, want 200", got)
			}
		}
		var asked sync.WaitGroup
		var mu sync.Mutex
		answers := map[string]int{}
		began := time.Now()
		for range 4 {
			asked.Go(func() {
				code, _, _ := strings.Cut(strings.TrimPrefix(l.ask(podIP, get(sc+"/web")), "HTTP/1.1 "), " ")
				mu.Lock()
				defer mu.Unlock()
				answers[code]++
			})
		}
		asked.Wait()
		if diff := cmp.Diff(map[string]int{"200": 1, "": 3}, answers); diff != "" {
			t.Errorf("statuses beyond the burst (-want +got):\n%s", diff)
		}
		if took := time.Since(began); took != turnTimeout {
			t.Errorf("they were held for %s, want %s", took, turnTimeout)
		}
	})
}

// A server that ends does not wait for connections that wait for their turn.
func TestShutdownEndsTheWaitForATurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, func(c *Config) { c.Rate, c.Grace = 1, 100*time.Millisecond })
		l := newPipes()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- n.Serve(ctx, l) }()
		for range 8 {
			c := l.dial(podIP)
			defer c.Close()
		}
		synctest.Wait()
		cancel()
		began := time.Now()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if took := time.Since(began); took != 100*time.Millisecond {
			t.Errorf("Serve took %s to end, want the grace of 100ms", took)
		}
		if n.limiter.total != 0 {
			t.Errorf("%d connections are left", n.limiter.total)
		}
	})
}
