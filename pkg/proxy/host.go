package proxy

import (
	"bytes"
	"net"
	"slices"
	"strings"
)

// metadataHost is the Host that a request without one meant.
const metadataHost = "169.254.169.254"

// allowedHost reports whether host, of a Host header, is a form in which SDKs name the metadata service. Anything else
// is somebody's name that was made to resolve to it: DNS rebinding.
func (s *Server) allowedHost(host string) bool {
	switch host {
	case "", metadataHost, metadataHost + ":80", "[fd00:ec2::254]", "[fd00:ec2::254]:80":
		return true
	}
	return s.container && containerHost(host)
}

// hostConn is a connection that ends its first request head with a Host header where the client sent none, for net/http to
// accept it. The AWS Common Runtime sent none until 2023 (aws-c-auth before 0.6.29), and takes the 400 that RFC 9112,
// section 3.2, asks for as final. Later heads are left as they are: every response closes the connection.
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
	return slices.Concat(piece[:end], []byte("Host: "+metadataHost+"\r\n"), piece[end:])
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
