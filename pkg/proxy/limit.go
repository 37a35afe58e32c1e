package proxy

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Limits on connections, so that one pod cannot take memory or descriptors from the others. A credential request is over in
// a millisecond, and in Config.Wait at most.
const (
	// maxServed is how many connections of one source are read from at once.
	maxServed = 256
	// maxOpen is how many connections of one source there may be, those that wait for their turn included. What is
	// beyond is closed at once.
	maxOpen = 2 * maxServed
	// maxTotal is how many connections there may be in all.
	maxTotal = 4096
	// turnTimeout is how long a connection may wait for its turn before it is closed.
	turnTimeout = time.Second
)

// errNoTurn ends a connection that has waited long enough for others of its source.
var errNoTurn = errors.New("too many connections of one source")

// limiter counts connections by source. It is safe for concurrent use.
type limiter struct {
	mu      sync.Mutex // guards the following
	origins map[netip.Addr]*origin
	total   int
}

// origin is the connections of one address.
type origin struct {
	open  int           // guarded by limiter.mu
	turns chan struct{} // one element for each that is served
}

func newLimiter() *limiter { return &limiter{origins: make(map[netip.Addr]*origin)} }

// enter counts a new connection, or returns nil if there are too many.
func (l *limiter) enter(address netip.Addr) *origin {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.origins[address]
	if l.total >= maxTotal || s != nil && s.open >= maxOpen {
		return nil
	}
	if s == nil {
		s = &origin{turns: make(chan struct{}, maxServed)}
		l.origins[address] = s
	}
	s.open++
	l.total++
	return s
}

func (l *limiter) leave(address netip.Addr, s *origin) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if s.open--; s.open == 0 {
		delete(l.origins, address)
	}
}

// limitListener closes the connections that are too many, and makes those wait that are nearly so.
type limitListener struct {
	net.Listener
	limiter *limiter
}

// Accept implements net.Listener.
func (l limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address := sourceOf(c.RemoteAddr())
		s := l.limiter.enter(address)
		if s == nil {
			_ = c.Close() // there is nothing more to do for it
			continue
		}
		return &limitedConn{Conn: c, limiter: l.limiter, address: address, origin: s, closed: make(chan struct{})}, nil
	}
}

func sourceOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// limitedConn is a connection whose first Read waits for its turn. net/http reads from one goroutine at a time.
type limitedConn struct {
	net.Conn
	limiter *limiter
	address netip.Addr
	origin  *origin
	closed  chan struct{}
	once    sync.Once

	mu     sync.Mutex // guards the following
	served bool
	gone   bool
}

// Read implements io.Reader.
func (c *limitedConn) Read(p []byte) (int, error) {
	if !c.served {
		if err := c.takeTurn(); err != nil {
			return 0, err
		}
	}
	return c.Conn.Read(p)
}

func (c *limitedConn) takeTurn() error {
	select {
	case c.origin.turns <- struct{}{}:
	default:
		timeout := time.NewTimer(turnTimeout)
		defer timeout.Stop()
		select {
		case c.origin.turns <- struct{}{}:
		case <-timeout.C:
			return errNoTurn
		case <-c.closed:
			return net.ErrClosed
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone { // closed meanwhile: nobody else gives the turn back
		<-c.origin.turns
		return net.ErrClosed
	}
	c.served = true
	return nil
}

// Close implements io.Closer.
func (c *limitedConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.mu.Lock()
		c.gone = true
		served := c.served
		c.mu.Unlock()
		if served {
			<-c.origin.turns
		}
		c.limiter.leave(c.address, c.origin)
	})
	return c.Conn.Close()
}

// CloseWrite lets net/http end a response before it closes, so that the client gets all of it.
func (c *limitedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
