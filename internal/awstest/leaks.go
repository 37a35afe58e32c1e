package awstest

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"
)

// MetadataRequest is one request to the metadata service, or a mere connection.
type MetadataRequest struct {
	Time   time.Time
	Source netip.AddrPort
	Method string // empty for a connection on which nothing was asked yet
	Path   string // as received
	Status int    // 0 while there is no answer
}

// Requests returns the requests answered so far, in order of arrival, up to the record limit.
func (m *Metadata) Requests() []MetadataRequest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.requests)
}

// RequestCount returns how many requests there were.
func (m *Metadata) RequestCount() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.requestCount
}

// Leaks returns the requests and connections from sources that are not allowed, up to the record limit.
func (m *Metadata) Leaks() []MetadataRequest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.leaks)
}

// LeakCount returns how many leaks there were.
func (m *Metadata) LeakCount() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leakCount
}

// ConnState fits http.Server.ConnState: it records a new connection from a source that is not allowed as a leak,
// whether or not a request follows.
func (m *Metadata) ConnState(conn net.Conn, state http.ConnState) {
	if state != http.StateNew {
		return
	}
	source, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	if !m.allows(source) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.leak(MetadataRequest{Time: m.aws.now(), Source: source})
	}
}

func (m *Metadata) allows(source netip.AddrPort) bool {
	return m.cfg.Allowed == nil || m.cfg.Allowed(source.Addr().Unmap())
}

// leak is called with mu held.
func (m *Metadata) leak(r MetadataRequest) {
	m.leakCount++
	if len(m.leaks) < m.cfg.RecordLimit {
		m.leaks = append(m.leaks, r)
	}
}
