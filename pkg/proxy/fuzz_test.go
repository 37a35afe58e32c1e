package proxy

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podrole/podrole/pkg/proxy/metadata"
	"github.com/podrole/podrole/pkg/role"
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

// upstreamPaths are what may be asked of the node's own metadata service on behalf of the pods of FuzzConnection: what
// every pod reads, and what two patterns allow, with the listings that lead there.
var upstreamPaths = regexp.MustCompile(`^(` + strings.Join([]string{
	`meta-data/placement/(region|availability-zone|availability-zone-id)`,
	`meta-data/services/(domain|partition)`,
	`dynamic/instance-identity/document`,
	`meta-data/spot(/[\w.,:@=+-]+)?`,
	`meta-data/network(/interfaces(/macs(/[\w.,:@=+-]+)*)?)?`,
}, "|") + `)$`)

// FuzzConnection: whatever bytes come in, the connection ends, nothing panics, no answer is JSON but the ones that
// should be, secrets go only to the pod that asks for its own role, and nothing goes to the node's own metadata service
// but the paths that pods are allowed.
func FuzzConnection(f *testing.F) {
	const macs = "/latest/meta-data/network/interfaces/macs/"
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
		get("/latest/" + macPath + "/vpc-id"), get("/2021-07-15/" + macPath + "//"), get("/latest/meta-data/spot/instance-action"),
		get("/latest/meta-data/network/"), get(macs + "..%2f..%2f..%2fiam%2finfo"), get(macs + "%2e%2e/%252e%252e/iam/info"),
		get(macs + "a%3fb"), get(macs + "a%0d%0aX-Forwarded-For:%20x"), get(macs + "http:%2f%2fx/"), get(macs + strings.Repeat("a/", 300)),
		get("/latest/meta-data/spot/a%3fb"), get("/latest/meta-data/spot/a%2520b"), get("/latest/meta-data/"), get("/latest/dynamic/"),
		get("/latest/meta-data/spot/../identity-credentials/ec2/info"), get("/latest/dynamic/instance-identity/pkcs7"),
		at("169.254.170.2", "/v2/credentials/x"), at("[fd00:ec2::23]", "/v1/credentials", "Authorization: x"),
		at("169.254.170.2", "/v2/credentials/../../latest/user-data"),
	} {
		f.Add([]byte(seed), uint8(0))
		f.Add([]byte(seed), uint8(3))
	}

	var logged safeBuffer
	u := newUpstream()
	store := u.store(mustPatterns(f, "spot/*")...)
	allowances := fakeAllowances{newMemory[role.Workload, []metadata.Pattern]()}
	allowances.put(testPod("web"), mustPatterns(f, "network/interfaces/macs/**"))
	n := newNode(f, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&logged, nil))
		c.Metadata, c.Allowances, c.ContainerCredentials = store, allowances, true
		c.Wait = 20 * time.Millisecond
	})
	n.serve(podIP, "web", time.Now())
	l := newPipes()
	n.start(f, l)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- store.Run(ctx) }()
	f.Cleanup(func() { cancel(); <-ended })

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
			if strings.Contains(out, "vpc-1") && from == stranger {
				t.Fatalf("a stranger got what only one pod may read: %q", out)
			}
			if strings.Contains(out, nodeSecret) {
				t.Fatalf("a pod got what is the node's: %q", out)
			}
			_, body, _ := strings.Cut(out, "\r\n\r\n")
			if json := strings.Contains(out, "\r\nContent-Type: application/json"); strings.HasPrefix(strings.TrimSpace(body), "{") &&
				!strings.Contains(out, " 200 OK") && !json {
				t.Fatalf("an error that is JSON: %q", out)
			}
			if strings.Contains(logged.String(), "panic") {
				t.Fatal(logged.String())
			}
		}
		asked, odd := u.paths()
		for path := range asked {
			if !upstreamPaths.MatchString(path) {
				t.Errorf("the node's metadata service was asked for %q", path)
			}
		}
		if len(odd) > 0 {
			t.Errorf("the node's metadata service got more than paths: %q", odd)
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
