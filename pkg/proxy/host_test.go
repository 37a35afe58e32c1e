package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"net/url"
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

const injected = "Host:\r\n"

// Which Host headers mean which service: addresses in all their spellings, and never a name.
func TestHosts(t *testing.T) {
	well := hosts{metadata: DefaultAddresses()}
	both := hosts{metadata: DefaultAddresses(), container: containerAddresses()}
	own := hosts{metadata: []netip.Addr{netip.MustParseAddr("10.255.0.80"), netip.MustParseAddr("fd12::80")}}
	tests := []struct {
		host            string
		well, both, own service
	}{
		{"", serviceMetadata, serviceMetadata, serviceMetadata},
		{"169.254.169.254", serviceMetadata, serviceMetadata, serviceNone},
		{"169.254.169.254:80", serviceMetadata, serviceMetadata, serviceNone},
		{"169.254.169.254:", serviceMetadata, serviceMetadata, serviceNone},
		{"[fd00:ec2::254]", serviceMetadata, serviceMetadata, serviceNone},
		{"[fd00:ec2::254]:80", serviceMetadata, serviceMetadata, serviceNone},
		{"[fd00:ec2::254]:", serviceMetadata, serviceMetadata, serviceNone},
		{"[FD00:EC2::254]", serviceMetadata, serviceMetadata, serviceNone},
		{"[fd00:ec2:0:0:0:0:0:254]", serviceMetadata, serviceMetadata, serviceNone},
		{"[fd00:0ec2::0.0.2.84]:80", serviceMetadata, serviceMetadata, serviceNone},
		{"[::ffff:169.254.169.254]", serviceMetadata, serviceMetadata, serviceNone},
		{"169.254.170.2", serviceNone, serviceContainer, serviceNone},
		{"169.254.170.2:80", serviceNone, serviceContainer, serviceNone},
		{"169.254.170.23", serviceNone, serviceContainer, serviceNone},
		{"[fd00:ec2::23]", serviceNone, serviceContainer, serviceNone},
		{"[FD00:EC2:0::23]:", serviceNone, serviceContainer, serviceNone},
		{"10.255.0.80", serviceNone, serviceNone, serviceMetadata},
		{"10.255.0.80:80", serviceNone, serviceNone, serviceMetadata},
		{"[fd12::80]:80", serviceNone, serviceNone, serviceMetadata},
	}
	for _, host := range []string{
		"localhost", "rebound.example", "rebound.example:80", "169.254.169.254.nip.example", "169.254.169.254.", "instance-data",
		"169.254.169.254:8080", "169.254.169.254:080", "169.254.169.254:80:80", "169.254.169.254::", "169.254.169.254 ", "169.254.169.25",
		"169.254.43518", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.169.0254", "[169.254.169.254]", "169.254.169.254]",
		"fd00:ec2::254", "fd00:ec2::254:80", "[fd00:ec2::254", "fd00:ec2::254]", "[fd00:ec2::254]:443", "[fd00:ec2::254%25eth0]", "[fd00:ec2::254%eth0]",
		"[::ffff:169.254.169.254%rebound.example]", "[::ffff:169.254.170.2%eth0]:80", "[::ffff:10.255.0.80%1]", "169.254.169.254%eth0",
		"[[fd00:ec2::254]]", "[]", "[", "]", ":", ":80", "@169.254.169.254", "x@169.254.169.254", "169.254.169.254/", "0.0.0.0", "[::]",
	} {
		tests = append(tests, struct {
			host            string
			well, both, own service
		}{host: host})
	}
	for _, tt := range tests {
		if got := well.service(tt.host); got != tt.well {
			t.Errorf("Host %q means service %d, want %d", tt.host, got, tt.well)
		}
		if got := both.service(tt.host); got != tt.both {
			t.Errorf("Host %q means service %d with the container endpoint, want %d", tt.host, got, tt.both)
		}
		if got := own.service(tt.host); got != tt.own {
			t.Errorf("Host %q means service %d at other addresses, want %d", tt.host, got, tt.own)
		}
	}
	for _, host := range []string{"169.254.169.254", "169.254.169.254:80", "[fd00:ec2::254]:80", "169.254.170.2"} {
		if n := testing.AllocsPerRun(100, func() { both.service(host) }); n > 0 {
			t.Errorf("Host %q: %v allocations", host, n)
		}
	}
}

// FuzzParseHost: what is taken for an address is one, as anybody else would read it.
func FuzzParseHost(f *testing.F) {
	for _, seed := range []string{"169.254.169.254:80", "[fd00:ec2::254]", "[::ffff:1.2.3.4]:", "[::ffff:1.2.3.4%zone]", "rebound.example", "[]:", "]:[", ":"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, host string) {
		got := parseHost(host)
		if !got.IsValid() {
			return
		}
		u, err := url.Parse("http://" + strings.ReplaceAll(host, "%", "%25") + "/")
		if err != nil || u.Host == "" || u.User != nil || u.Port() != "" && u.Port() != "80" {
			t.Fatalf("%q is taken for %v, and is no host: %v", host, got, err)
		}
		if want, err := netip.ParseAddr(u.Hostname()); err != nil || want.Zone() != "" || want.Unmap() != got {
			t.Fatalf("%q is taken for %v, want %v, %v", host, got, want, err)
		}
	})
}

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
