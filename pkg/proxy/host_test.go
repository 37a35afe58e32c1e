package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
)

// source is a connection of which only the reading half is there.
type source struct {
	net.Conn
	io.Reader
}

func (s source) Read(p []byte) (int, error) { return s.Reader.Read(p) }

const injected = "Host: 169.254.169.254\r\n"

func TestHostConn(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"absent", "GET / HTTP/1.1\r\nA: b\r\n\r\n", "GET / HTTP/1.1\r\nA: b\r\n" + injected + "\r\n"},
		{"no_header", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\n" + injected + "\r\n"},
		{"lf", "GET / HTTP/1.1\nA: b\n\n", "GET / HTTP/1.1\nA: b\n" + injected + "\n"},
		{"body", "PUT / HTTP/1.1\r\n\r\nHost: x\r\n\r\n", "PUT / HTTP/1.1\r\n" + injected + "\r\nHost: x\r\n\r\n"},
		{"present", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"},
		{"any_case", "GET / HTTP/1.1\r\nhOST: x\r\n\r\n", "GET / HTTP/1.1\r\nhOST: x\r\n\r\n"},
		{"empty", "GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET / HTTP/1.1\r\nHost:\r\n\r\n"},
		{"last", "GET / HTTP/1.1\r\nA: b\r\nHost: x\r\n\r\n", "GET / HTTP/1.1\r\nA: b\r\nHost: x\r\n\r\n"},
		{"longer_name", "GET / HTTP/1.1\r\nHosts: x\r\n\r\n", "GET / HTTP/1.1\r\nHosts: x\r\n" + injected + "\r\n"},
		{"in_a_value", "GET / HTTP/1.1\r\nA: Host: x\r\n\r\n", "GET / HTTP/1.1\r\nA: Host: x\r\n" + injected + "\r\n"},
		{"second_head", "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n"},
		{"cut_in_line", "GET / HT", "GET / HT"},
		{"cut_before_newline", "GET / HTTP/1.1\r\n\r", "GET / HTTP/1.1\r\n\r"},
		{"lone_cr", "GET / HTTP/1.1\r\n\rA: b\r\n\r\n", "GET / HTTP/1.1\r\n\rA: b\r\n" + injected + "\r\n"},
		{"large", "GET / HTTP/1.1\r\nA: " + strings.Repeat("b", 9000) + "\r\n\r\n",
			"GET / HTTP/1.1\r\nA: " + strings.Repeat("b", 9000) + "\r\n" + injected + "\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for name, cut := range map[string]func(io.Reader) io.Reader{
				"whole":        func(r io.Reader) io.Reader { return r },
				"bytes":        iotest.OneByteReader,
				"halves":       iotest.HalfReader,
				"data_and_eof": iotest.DataErrReader,
			} {
				for _, size := range []int{1, 2, 3, 7, 512, 4096} {
					c := &hostConn{Conn: source{Reader: cut(strings.NewReader(tt.in))}}
					got, err := readBy(c, size)
					if err != nil || got != tt.want {
						t.Errorf("%s, %d bytes at a time: %q, %v; want %q", name, size, got, err, tt.want)
					}
				}
			}
		})
	}
}

// readBy reads r to its end with a buffer of size bytes.
func readBy(r io.Reader, size int) (string, error) {
	var all bytes.Buffer
	p := make([]byte, size)
	for {
		n, err := r.Read(p)
		all.Write(p[:n])
		if errors.Is(err, io.EOF) {
			return all.String(), nil
		}
		if err != nil {
			return all.String(), err
		}
	}
}

// FuzzHostConn: whatever comes in, in pieces of whatever size, goes out, with one field more at most.
func FuzzHostConn(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nA: b\r\n\r\nbody"), uint8(3), uint8(5))
	f.Add([]byte("GET / HTTP/1.1\nHost: b\n\n"), uint8(1), uint8(1))
	f.Add([]byte("\r\n\r\r\n\n"), uint8(2), uint8(1))
	f.Fuzz(func(t *testing.T, in []byte, piece, size uint8) {
		var r io.Reader = bytes.NewReader(in)
		if piece > 0 {
			r = pieces{r, int(piece)}
		}
		got, err := readBy(&hostConn{Conn: source{Reader: r}}, int(size)+1)
		if err != nil {
			t.Fatal(err)
		}
		if want := withHost(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	})
}

// pieces reads at most so many bytes at a time.
type pieces struct {
	io.Reader
	size int
}

func (p pieces) Read(b []byte) (int, error) { return p.Reader.Read(b[:min(len(b), p.size)]) }

// withHost does what hostConn does, with all of the input at hand.
func withHost(in []byte) string {
	host, at := false, 0
	for line := range bytes.Lines(in) {
		switch text := string(bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))); {
		case text == "" && line[len(line)-1] == '\n':
			if host {
				return string(in)
			}
			return string(in[:at]) + injected + string(in[at:])
		case len(text) >= 5 && strings.EqualFold(text[:5], "host:"):
			host = true
		}
		at += len(line)
	}
	return string(in)
}
