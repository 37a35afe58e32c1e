package sts_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
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
