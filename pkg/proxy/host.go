package proxy

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// service is one of those that answer here. They share a listener; the Host header tells which one is meant.
type service uint8

const (
	serviceNone      service = iota // none that is here
	serviceMetadata                 // the metadata service
	serviceContainer                // the container credentials endpoint
)

// DefaultAddresses returns the well-known addresses of the metadata service
// (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html).
func DefaultAddresses() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("fd00:ec2::254")}
}

// hosts are the addresses by which pods call the services. There is no name among them, and none is ever taken for one of
// them: a name in a Host header is somebody's who made it resolve to an address of ours, so that a browser or another
// program in the pod reads for them what is here (DNS rebinding).
type hosts struct {
	metadata  []netip.Addr
	container []netip.Addr // none: the endpoint is off
}

// service returns the one that a request with this Host means. One without any is for the metadata service: it has
// clients that send none (see hostConn), and the other has not. It allocates nothing for an address.
func (h *hosts) service(host string) service {
	if host == "" {
		return serviceMetadata
	}
	switch address := parseHost(host); {
	case slices.Contains(h.metadata, address):
		return serviceMetadata
	case slices.Contains(h.container, address):
		return serviceContainer
	}
	return serviceNone
}

// parseHost returns the address that a Host header names, with HTTP's own port or without one, and the zero Addr if it
// names anything else. An address can be written in several ways, and a client may send it as its user wrote it; but with
// a zone, which is a name of the client's choice, it is none of ours.
func parseHost(host string) netip.Addr {
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		if port := host[i+1:]; port != "" && port != "80" {
			return netip.Addr{}
		}
		host = host[:i]
	}
	bracketed := strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]")
	if bracketed {
		host = host[1 : len(host)-1]
	}
	address, err := netip.ParseAddr(host)
	if err != nil || address.Zone() != "" || address.Is6() != bracketed { // RFC 3986, section 3.2.2
		return netip.Addr{}
	}
	return address.Unmap()
}

// noHost is the Host field of a request for which there is nothing to say (RFC 9112, section 3.2).
const noHost = "Host:\r\n"

// hostConn is a connection that ends its first request head with an empty Host field where the client sent none, for
// net/http to accept it. The AWS Common Runtime sent none until 2023 (aws-c-auth before 0.6.29), and takes the 400 that
// RFC 9112, section 3.2, asks for as final. Later heads are left as they are: every response closes the connection.
type hostConn struct {
	net.Conn
	head    headScanner
	pending []byte // read, or added, but too long for the buffer of the last Read
}

// Read implements io.Reader.
func (c *hostConn) Read(p []byte) (int, error) {
	for len(c.pending) == 0 {
		n, err := c.Conn.Read(p)
		if c.head.done {
			return n, err
		}
		out := c.head.edit(p[:n])
		if err != nil {
			out = c.head.flush(out)
		}
		n = copy(p, out)
		if c.pending = out[n:]; len(c.pending) > 0 {
			return n, nil // an error comes again with the next Read
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
	n := copy(p, c.pending)
	c.pending = c.pending[n:]
	return n, nil
}

// CloseWrite lets net/http announce the end of a response before it closes on a request that it did not read to the
// end; closing at once would throw the response away.
func (c *hostConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

const hostField = "host:"

// headScanner looks at a request head as it comes, in pieces of any size, and keeps next to nothing of it. Lines end
// in "\n" or in "\r\n", as they do for net/http.
type headScanner struct {
	done bool                 // the head has ended
	host bool                 // it had a Host header
	held bool                 // a "\r" that begins a line was kept back: what it is, the next byte tells
	line [len(hostField)]byte // the first bytes of the current line
	n    int                  // how many of them there are so far
}

// edit takes the next piece and returns what to pass on: nearly always the piece itself.
func (s *headScanner) edit(piece []byte) []byte {
	if len(piece) == 0 {
		return piece
	}
	if s.held {
		s.held = false
		piece = slices.Concat([]byte{'\r'}, piece)
	}
	end := s.scan(piece)
	if s.held {
		return piece[:len(piece)-1]
	}
	if !s.done || s.host {
		return piece
	}
	return slices.Concat(piece[:end], []byte(noHost), piece[end:])
}

// flush returns out with what edit has kept back, when nothing comes after it.
func (s *headScanner) flush(out []byte) []byte {
	if s.held {
		s.held = false
		return append(slices.Clip(out), '\r')
	}
	return out
}

// scan reads on through the head and returns where in piece the empty line begins that ends it, if it does.
func (s *headScanner) scan(piece []byte) (end int) {
	for i := 0; i < len(piece); {
		rest := piece[i:]
		if s.n == 0 {
			switch {
			case rest[0] == '\n' || bytes.HasPrefix(rest, []byte("\r\n")):
				s.done = true
				return i
			case len(rest) == 1 && rest[0] == '\r':
				s.held = true
				return 0
			}
		}
		length := bytes.IndexByte(rest, '\n')
		if length < 0 {
			s.n += copy(s.line[s.n:], rest)
			return 0
		}
		s.n += copy(s.line[s.n:], rest[:length])
		s.host = s.host || strings.EqualFold(string(s.line[:s.n]), hostField)
		s.n = 0
		i += length + 1
	}
	return 0
}
