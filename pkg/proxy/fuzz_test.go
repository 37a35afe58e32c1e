package proxy

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// script is a connection on which everything that the client sends is there from the start, in pieces.
type script struct {
	net.Conn
	in   io.Reader
	out  bytes.Buffer
	from net.Addr
	once sync.Once
	done chan struct{}
}

func (s *script) Read(b []byte) (int, error)       { return s.in.Read(b) }
func (s *script) Write(b []byte) (int, error)      { return s.out.Write(b) }
func (s *script) RemoteAddr() net.Addr             { return s.from }
func (s *script) LocalAddr() net.Addr              { return s.from }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

func (s *script) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

// FuzzConnection: whatever bytes come in, the connection ends, nothing panics, no answer is JSON but the ones that
// should be, and secrets go only to the pod that asks for its own role.
func FuzzConnection(f *testing.F) {
	for _, seed := range []string{
		get(sc), get(sc + "/web"), get(sc + "-extended/web"), get("/latest/meta-data/../user-data"),
		"GET " + sc + "/web HTTP/1.1\r\n\r\n",
		"GET " + sc + "/web HTTP/1.0\nConnection: keep-alive\n\n",
		put("60"),
		request("POST", "/latest/", "Transfer-Encoding: chunked") + "5\r\nhello\r\n0\r\n\r\n",
		request("PUT", "/latest/api/token", "Expect: 100-continue", "Content-Length: 5"),
		"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET http:// HTTP/1.1\r\n\r\n", "OPTIONS * HTTP/1.1\r\n\r\n", "\r\n\r", "GET /%00 HTTP/9.9\r\n\r\n",
		get("/latest/", "Upgrade: h2c", "Connection: Upgrade"),
	} {
		f.Add([]byte(seed), uint8(0))
		f.Add([]byte(seed), uint8(3))
	}

	var logged safeBuffer
	n := newNode(f, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&logged, nil)) })
	n.serve(podIP, "web", time.Now())
	l := newPipes()
	n.start(f, l)

	const stranger = "10.9.9.9"
	f.Fuzz(func(t *testing.T, in []byte, piece uint8) {
		for _, from := range []string{podIP, stranger} {
			s := &script{
				in:   bytes.NewReader(in),
				from: peer(from),
				done: make(chan struct{}),
			}
			if piece > 0 {
				s.in = pieces{s.in, int(piece)}
			}
			l.accept <- s
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			select {
			case <-s.done:
			case <-ctx.Done():
				t.Fatalf("the connection is still open")
			}
			cancel()

			out := s.out.String()
			if out != "" && !strings.HasPrefix(out, "HTTP/1.") {
				t.Fatalf("response %q", out)
			}
			if strings.Count(out, "\r\nServer: EC2ws") > 1 {
				t.Fatalf("more than one response: %q", out)
			}
			if strings.Contains(out, testSecret) && from == stranger {
				t.Fatalf("a stranger got credentials: %q", out)
			}
			_, body, _ := strings.Cut(out, "\r\n\r\n")
			if strings.HasPrefix(strings.TrimSpace(body), "{") && !strings.Contains(out, " 200 OK") {
				t.Fatalf("an error that is JSON: %q", out)
			}
			if strings.Contains(logged.String(), "panic") {
				t.Fatal(logged.String())
			}
		}
	})
}

// safeBuffer is a bytes.Buffer for several goroutines.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
