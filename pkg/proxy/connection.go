package proxy

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// connection is an accepted connection with all that its one request takes, in one piece of memory. It is the context of
// the request, too, which is how the handler finds it.
type connection struct {
	hostConn
	context.Context
	peer     peerAddr
	limiter  *limiter
	origin   *origin
	closed   atomic.Bool
	held     *buffer // the beginning of an answer; else nil
	exchange exchange
}

// newConnection returns a connection that the limiter has let in.
func newConnection(accepted net.Conn, peer netip.AddrPort, l *limiter, o *origin) *connection {
	return &connection{hostConn: hostConn{Conn: accepted}, peer: peerAddr{peer}, limiter: l, origin: o}
}

// buffer is as large as what net/http collects answers in. (If it is not, they go out as net/http writes them.)
type buffer [4 << 10]byte

// Write implements net.Conn. When net/http has filled its buffer and the answer goes on, what is in it is held back, to go
// out with the rest: in one system call, and in as few packets as can be.
func (c *connection) Write(p []byte) (int, error) {
	held := c.held
	switch {
	case held == nil && !c.goesOn(p):
		return c.hostConn.Write(p)
	case held == nil:
		c.held = c.exchange.buffers.Get().(*buffer)
		return copy(c.held[:], p), nil
	}
	c.held = nil
	defer c.exchange.buffers.Put(held)
	parts := net.Buffers{held[:], p}
	n, err := parts.WriteTo(c.hostConn.Conn)
	return max(0, int(n)-len(held)), err
}

// goesOn reports whether p is a full buffer with the beginning of an answer that is longer.
func (c *connection) goesOn(p []byte) bool {
	const end = "\r\n\r\n"
	if len(p) != len(buffer{}) {
		return false
	}
	head := bytes.Index(p, []byte(end))
	return head >= 0 && head+len(end)+c.exchange.length > len(p)
}

// Close implements net.Conn.
func (c *connection) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.limiter.leave(c.origin)
	}
	return c.hostConn.Close()
}

// connectionKey is the key of the connection itself among the values of its context.
type connectionKey struct{}

// within returns the connection as a context below parent.
func (c *connection) within(parent context.Context) context.Context {
	c.Context = parent
	return c
}

// Value implements context.Context.
func (c *connection) Value(key any) any {
	if key == (connectionKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// RemoteAddr implements net.Conn.
func (c *connection) RemoteAddr() net.Addr { return &c.peer }

// peerAddr is the other end of a connection. IPv4 is IPv4, also where the socket is for both.
type peerAddr struct{ netip.AddrPort }

// Network implements net.Addr.
func (*peerAddr) Network() string { return "tcp" }

// peerOf returns what a is, and the zero AddrPort if it is no IP address with a port.
func peerOf(a net.Addr) netip.AddrPort {
	var peer netip.AddrPort
	if tcp, ok := a.(*net.TCPAddr); ok {
		peer = tcp.AddrPort()
	} else {
		peer, _ = netip.ParseAddrPort(a.String())
	}
	return netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
}

// listener accepts connections that are served at once. Those that wait come from its room.
type listener struct {
	net.Listener
	limiter *limiter
	room    *waitingRoom
}

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.limiter.enter(accepted, l.room); c != nil {
			return c, nil
		}
	}
}

// waitingRoom is a listener of which connections come when they have waited for their turn. It goes with a listener for
// those that need not wait, whose address it has.
type waitingRoom struct {
	net.Listener
	limiter *limiter
	ready   chan *connection // has room for all that there can be
	end     chan struct{}    // closed with the room
	once    sync.Once
	closed  bool // guarded by the limiter's mu: no connection may wait here any more
}

func newWaitingRoom(l net.Listener, limiter *limiter) *waitingRoom {
	return &waitingRoom{
		Listener: l, limiter: limiter, ready: make(chan *connection, maxTotal), end: make(chan struct{}),
	}
}

// Accept implements net.Listener.
func (r *waitingRoom) Accept() (net.Conn, error) {
	select {
	case c := <-r.ready:
		return c, nil
	case <-r.end:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. Whoever waits is sent away. The other listener stays open.
func (r *waitingRoom) Close() error {
	r.once.Do(func() {
		close(r.end)
		r.limiter.empty(r)
		for len(r.ready) > 0 {
			select {
			case c := <-r.ready:
				_ = c.Close() // without an answer; there is nobody to tell
			default: // the last Accept was quicker
			}
		}
	})
	return nil
}
