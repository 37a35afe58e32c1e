package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Limits on one connection; Wait is added to the times. The request head of the wordiest SDK is about 1 KiB. A body
// is not read, but net/http skips over up to 256 KiB of it after the answer; readTimeout bounds that as well.
const (
	headerTimeout  = 2 * time.Second
	readTimeout    = 5 * time.Second
	writeTimeout   = 5 * time.Second
	maxHeaderBytes = 8 << 10
)

// Server is the metadata service for pods. It is safe for concurrent use.
type Server struct {
	identity Identifier
	roles    Decider
	sessions Sessions
	tokens   atomic.Pointer[keyring]
	imdsv1   bool
	hosts    hosts
	metadata Metadata
	allows   Allowances // nil: none
	wait     time.Duration
	grace    time.Duration
	observe  func(Route, int, time.Duration)
	logger   *slog.Logger
	warnings rate.Sometimes
	now      func() time.Time
	started  time.Time
	limiter  *limiter
	buffers  sync.Pool // of *buffer
}

// New returns a Server, or what is wrong with c.
func New(c Config) (*Server, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("configure metadata server: %w", err)
	}
	tokens, err := newKeyring(c.Keys)
	if err != nil {
		return nil, fmt.Errorf("configure metadata server: %w", err)
	}
	s := &Server{
		identity: c.Identity,
		roles:    c.Roles,
		sessions: c.Sessions,
		imdsv1:   c.IMDSv1,
		hosts:    hosts{metadata: slices.Clone(c.Addresses)},
		metadata: c.Metadata,
		allows:   c.Allowances,
		wait:     c.Wait,
		grace:    c.Grace,
		observe:  c.Observe,
		logger:   c.Logger,
		warnings: rate.Sometimes{First: 10, Interval: 10 * time.Second},
		now:      c.Now,
		started:  c.Now(),
		limiter:  newLimiter(c.Rate),
		buffers:  sync.Pool{New: func() any { return new(buffer) }},
	}
	if c.ContainerCredentials {
		s.hosts.container = containerAddresses()
	}
	s.tokens.Store(&tokens)
	return s, nil
}

// SetKeys replaces the keys of IMDSv2 tokens, of which Config.Keys says the rest, from the next request on. On an error the
// ones before stay.
func (s *Server) SetKeys(keys [][]byte) error {
	tokens, err := newKeyring(keys)
	if err != nil {
		return fmt.Errorf("replace token keys: %w", err)
	}
	s.tokens.Store(&tokens)
	return nil
}

// Serve answers requests from l until ctx ends; then it closes l, lets requests in flight finish for at most
// Config.Grace, cuts what is left, and returns nil once every goroutine has ended. If l fails before that, it returns
// the error after the same. It may be called for several listeners at once.
//
// A connection on which no request has arrived when ctx ends is closed without an answer: send no new ones here for a
// moment before, as a takeover does.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	// Requests outlive ctx: they have the grace.
	requests, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var connections sync.WaitGroup
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	server := &http.Server{
		Handler:                      http.HandlerFunc(s.serveHTTP),
		DisableGeneralOptionsHandler: true,
		Protocols:                    protocols,
		ReadHeaderTimeout:            headerTimeout,
		ReadTimeout:                  readTimeout + s.wait,
		WriteTimeout:                 writeTimeout + s.wait,
		MaxHeaderBytes:               maxHeaderBytes,
		BaseContext:                  func(net.Listener) context.Context { return requests },
		ConnContext:                  func(ctx context.Context, c net.Conn) context.Context { return c.(*connection).within(ctx) },
		ErrorLog:                     slog.NewLogLogger(s.logger.Handler(), slog.LevelError),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				connections.Add(1)
			case http.StateClosed:
				connections.Done()
			}
		},
	}

	// Connections come from l, or from the room where they wait for their turn.
	room := newWaitingRoom(l, s.limiter)
	served, waited := make(chan error, 1), make(chan error, 1)
	go func() { served <- server.Serve(listener{l, s.limiter, room}) }()
	go func() { waited <- server.Serve(room) }()
	var failure error
	select {
	case <-ctx.Done():
	case failure = <-served:
	}

	drain, stop := context.WithTimeout(requests, s.grace)
	defer stop()
	if err := server.Shutdown(drain); err != nil {
		s.logger.Info("cut metadata connections at shutdown", slog.Duration("grace", s.grace))
	}
	if failure == nil {
		failure = <-served
	}
	<-waited // ends with Shutdown, and with nothing else
	// Nothing is left to accept, but the last connection accepted may have come too late for Shutdown to see.
	cut()
	_ = server.Close() // closes what can be closed; there is no one to tell about the rest
	connections.Wait()
	if !errors.Is(failure, http.ErrServerClosed) {
		return fmt.Errorf("serve metadata on %s: %w", l.Addr(), failure)
	}
	return nil
}
