package sts_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/pkg/sts"
)

func TestHTTPClient(t *testing.T) {
	c := sts.NewHTTPClient()
	transport, ok := c.Transport.(*http.Transport)
	if !ok || transport.Proxy == nil || transport.MaxIdleConnsPerHost < 2 || transport.Protocols.HTTP2() {
		t.Errorf("transport %+v", c.Transport)
	}
	if err := c.CheckRedirect(nil, nil); !errors.Is(err, http.ErrUseLastResponse) {
		t.Errorf("redirects are followed: %v", err)
	}
}

// TestMetadataIsCalledDirectly: no proxy sees a call to the metadata service, whatever NO_PROXY says.
func TestMetadataIsCalledDirectly(t *testing.T) {
	via := &url.URL{Scheme: "http", Host: "proxy:3128"}
	proxy := sts.ProxyExcept(func(*http.Request) (*url.URL, error) { return via, nil }, netip.MustParseAddr("192.0.2.1"))
	for target, want := range map[string]*url.URL{
		"http://169.254.169.254/latest/api/token":        nil,
		"http://169.254.169.254:80/":                     nil,
		"http://[fd00:ec2::254]/latest/meta-data/":       nil,
		"http://[fd00:0ec2:0:0:0:0:0:254]:80/":           nil,
		"http://[::ffff:169.254.169.254]/":               nil,
		"http://192.0.2.1/":                              nil,
		"http://169.254.169.253/":                        via,
		"https://sts.eu-west-1.amazonaws.com/":           via,
		"https://169.254.169.254.example.com/":           via,
		"https://example.com/?x=http://169.254.169.254/": via,
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
		check(t, err)
		if got, err := proxy(r); err != nil || got != want {
			t.Errorf("%s goes through %v (%v), want %v", target, got, err, want)
		}
	}
}

// TestEnvironmentsProxy: the client takes the proxy of the environment, without the metadata addresses. The
// environment is read once per process, so this needs one of its own.
func TestEnvironmentsProxy(t *testing.T) {
	const child = "PODROLE_TEST_CHILD"
	if os.Getenv(child) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestEnvironmentsProxy$")
		cmd.Env = append(os.Environ(), child+"=1", "HTTPS_PROXY=http://proxy:3128", "HTTP_PROXY=http://proxy:3128",
			"NO_PROXY=example.com", "https_proxy=", "http_proxy=", "no_proxy=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	proxy := sts.NewHTTPClient(netip.MustParseAddr("192.0.2.1")).Transport.(*http.Transport).Proxy
	for target, proxied := range map[string]bool{
		"https://sts.eu-west-1.amazonaws.com/": true,
		"https://example.com/":                 false,
		"http://169.254.169.254/":              false,
		"http://[fd00:ec2::254]/":              false,
		"http://192.0.2.1/":                    false,
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
		check(t, err)
		if got, err := proxy(r); err != nil || (got != nil) != proxied {
			t.Errorf("%s goes through %v (%v)", target, got, err)
		}
	}
}

// TestBodyOutlivesItsClose: net/http may look for the end of a body that was closed since. What it then gets must not
// be an error, or it closes the connection under an answer that is still being read.
func TestBodyOutlivesItsClose(t *testing.T) {
	w := newWorld(t)
	answered := false
	m := w.newMinter(t, func(cfg *sts.Config) {
		cfg.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			answered = true
			if n, err := io.Copy(io.Discard, io.LimitReader(r.Body, r.ContentLength)); err != nil || n != r.ContentLength {
				t.Errorf("read %d of %d bytes: %v", n, r.ContentLength, err)
			}
			if err := r.Body.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if n, err := io.Copy(io.Discard, r.Body); err != nil || n != 0 {
				t.Errorf("after the close: %d bytes, %v", n, err)
			}
			return nil, errors.New("seen enough")
		})}
	})
	_, err := m.Mint(t.Context(), webGrant(), caller)
	wantError(t, err, sts.Transient, "")
	if !answered {
		t.Error("no call")
	}
}

// TestStaleConnection: a kept connection that the far end closes in the moment of the next call costs no failure.
func TestStaleConnection(t *testing.T) {
	w := newWorld(t)
	backend := httptest.NewServer(w.Endpoint(region))
	defer backend.Close()
	connections := 0
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			connections++
			serveOnce(t, conn, backend.Listener.Addr().String())
		}
	})
	client := sts.NewHTTPClient()
	m := w.newMinter(t, func(cfg *sts.Config) {
		cfg.Endpoint, cfg.HTTPClient = "http://"+listener.Addr().String(), client
	})
	for range 5 {
		_, err := m.Mint(t.Context(), webGrant(), caller)
		check(t, err)
	}
	client.CloseIdleConnections()
	check(t, listener.Close())
	wg.Wait()
	if n := w.Count(awstest.Filter{}); n != 5 || connections != 5 {
		t.Errorf("%d calls on %d connections", n, connections)
	}
}

// serveOnce passes one request to the backend, keeps the connection open, and closes it when the next one comes.
func serveOnce(t *testing.T, conn net.Conn, backend string) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	r, err := http.ReadRequest(in)
	if err != nil {
		t.Errorf("read request: %v", err)
		return
	}
	if _, ok := r.Header["Idempotency-Key"]; ok {
		t.Error("the mark for the transport went over the wire")
	}
	r.RequestURI, r.URL.Scheme, r.URL.Host = "", "http", backend
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Errorf("pass request on: %v", err)
		return
	}
	defer answer.Body.Close()
	if err := answer.Write(conn); err != nil {
		t.Errorf("write answer: %v", err)
	}
	if _, err := in.Peek(1); err != nil && !errors.Is(err, io.EOF) {
		t.Logf("connection ended: %v", err)
	}
}
