package proxy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"
)

// sink is a ResponseWriter that costs nothing.
type sink struct{ header http.Header }

func (s *sink) Header() http.Header               { return s.header }
func (s *sink) Write(b []byte) (int, error)       { return len(b), nil }
func (s *sink) WriteString(b string) (int, error) { return len(b), nil }
func (s *sink) WriteHeader(int)                   {}

// warm returns a node that has a session of a token of size bytes for podIP, and logs nothing.
func warm(tb testing.TB, size int) *node {
	n := newNode(tb, func(c *Config) { c.Logger = slog.New(slog.DiscardHandler) })
	n.serve(podIP, "web", time.Now())
	n.sessions.put(testGrant("web"), minted{session: testSession(testGrant("web"), time.Now(), size)})
	return n
}

// warmRequest is the request for credentials as net/http hands it over.
func warmRequest(token string) *http.Request {
	c := &connection{peer: peerAddr{netip.MustParseAddrPort(podIP + ":40000")}}
	r := httptest.NewRequestWithContext(c.within(context.Background()), http.MethodGet, sc+"/web", nil)
	r.Host = metadataHost
	if token != "" {
		r.Header.Set(tokenHeaderKey, token)
	}
	return r
}

// A request that is answered from memory costs two allocations: the connection, and the string of header values.
func TestAllocations(t *testing.T) {
	n := warm(t, 0)
	r := warmRequest("")
	w := &sink{make(http.Header)}
	if got := testing.AllocsPerRun(100, func() { n.serveHTTP(w, r) }); got > 1 {
		t.Errorf("%v allocations for a credential GET beside its connection, want 1", got)
	}
	if w.header.Get("Content-Type") != "text/plain" {
		t.Fatalf("it was not served: %v", w.header)
	}
}

func BenchmarkHandler(b *testing.B) {
	n := warm(b, 1000)
	source := netip.MustParseAddr(podIP)
	for name, token := range map[string]string{
		"v1": "",
		"v2": n.tokens.Load().mint(time.Now(), maxTokenTTL, source, testPod("web").UID),
	} {
		b.Run(name, func(b *testing.B) {
			r := warmRequest(token)
			w := &sink{make(http.Header)}
			b.ReportAllocs()
			for b.Loop() {
				n.serveHTTP(w, r)
			}
		})
	}
}

func BenchmarkTokenVerify(b *testing.B) {
	ring := mustRing(b, testKey)
	text := ring.mint(testStart, 60, tokenSource, "uid-a")
	b.ReportAllocs()
	for b.Loop() {
		tok, err := ring.verify(text, testStart, tokenSource)
		if err != nil || !tok.verifyPod(tokenSource, "uid-a") {
			b.Fatal("refused")
		}
	}
}

func BenchmarkTokenMint(b *testing.B) {
	ring := mustRing(b, testKey)
	b.ReportAllocs()
	for b.Loop() {
		ring.mint(testStart, 60, tokenSource, "uid-a")
	}
}

// BenchmarkConnection measures a credential GET on a connection of its own against a bare net/http handler that
// writes the same bytes and closes too. Both run in turn in every iteration, so that whatever else the machine does
// falls on both; the ratio of the medians counts, below 1 is slower than bare.
func BenchmarkConnection(b *testing.B) {
	for _, size := range []int{1000, 4400} {
		n := warm(b, size)
		// Loopback is the peer here, so it is the pod.
		n.serve("127.0.0.1", "web", time.Now())
		session := testSession(testGrant("web"), time.Now(), size)
		n.sessions.put(testGrant("web"), minted{session: session})
		token := n.tokens.Load().mint(time.Now(), maxTokenTTL, netip.MustParseAddr("127.0.0.1"), testPod("web").UID)

		b.Run(fmt.Sprintf("%dB", len(session.Body)), func(b *testing.B) {
			ours := listen(b)
			n.start(b, ours)
			bare := listen(b)
			server := &http.Server{Handler: bareHandler(session.Body), ReadTimeout: readTimeout}
			go server.Serve(bare)
			defer server.Close()

			v2 := []byte(get(sc+"/web", withToken(token)))
			times := map[net.Listener][]time.Duration{}
			for b.Loop() {
				for _, l := range []net.Listener{bare, ours, ours, bare} {
					times[l] = append(times[l], roundTrip(b, l.Addr().String(), v2, len(session.Body)))
				}
			}
			for _, t := range times {
				slices.Sort(t)
			}
			quantile := func(l net.Listener, q float64) float64 {
				return float64(times[l][int(q*float64(len(times[l])-1))])
			}
			b.ReportMetric(quantile(bare, 0.5)/quantile(ours, 0.5), "p50_bare/ours")
			b.ReportMetric(quantile(ours, 0.99)/quantile(bare, 0.99), "p99_ours/bare")
			b.ReportMetric(quantile(ours, 0.5), "p50_ns")
			b.ReportMetric(0, "ns/op") // of four requests to two servers: means nothing
		})
	}
}

// BenchmarkAllocations counts what a credential GET on a connection of its own allocates more than with a net/http handler
// that allocates nothing. Only the neighbours are fakes; those allocate nothing either.
func BenchmarkAllocations(b *testing.B) {
	const localhost = "127.0.0.1"
	n := warm(b, 1000)
	n.serve(localhost, "web", time.Now())
	session := testSession(testGrant("web"), time.Now(), 1000)
	n.sessions.put(testGrant("web"), minted{session: session})
	ours, bare := listen(b), listen(b)
	n.start(b, ours)
	server := &http.Server{Handler: bareHandler(session.Body)}
	go server.Serve(bare)
	defer server.Close()

	request := []byte(get(sc + "/web"))
	allocations := func(l net.Listener) float64 {
		const times = 500
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range times {
			roundTrip(b, l.Addr().String(), request, len(session.Body))
		}
		runtime.ReadMemStats(&after)
		return float64(after.Mallocs-before.Mallocs) / times
	}
	allocations(ours) // what is allocated once
	allocations(bare)
	more := 0.0
	for b.Loop() {
		more += allocations(ours) - allocations(bare)
	}
	b.ReportMetric(more/float64(b.N), "allocs/request")
	b.ReportMetric(0, "ns/op") // of a thousand requests to two servers: means nothing
}

// bareHandler does the least that gives a client the same bytes.
func bareHandler(body []byte) http.Handler {
	header := http.Header{
		"Accept-Ranges":   {"none"},
		"Connection":      {"close"},
		"Content-Length":  {strconv.Itoa(len(body))},
		"Content-Type":    {"text/plain"},
		"Last-Modified":   {time.Now().UTC().Format(http.TimeFormat)},
		"Server":          {"EC2ws"},
		tokenTTLHeaderKey: {"21600"},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		maps.Copy(w.Header(), header)
		w.Write(body)
	})
}

func listen(b *testing.B) net.Listener {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	return l
}

// roundTrip returns how long one request on a new connection takes, until the server has closed it.
func roundTrip(b *testing.B, address string, request []byte, atLeast int) time.Duration {
	begin := time.Now()
	c, err := net.Dial("tcp", address)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(request); err != nil {
		b.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, c); err != nil || n < int64(atLeast) {
		b.Fatalf("%d bytes, %v", n, err)
	}
	return time.Since(begin)
}
