package sts

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"
)

// NewHTTPClient returns the HTTP client that New uses when it is given none: connections are reused, each step has
// a time-out of its own, proxies come from the environment (HTTPS_PROXY, NO_PROXY), redirects are not followed. The
// metadata service's own addresses, and those given, are never called through a proxy, whatever NO_PROXY says: it would
// answer with the role of the host that the proxy runs on, or with nothing.
//
// The client speaks HTTP/1.1 only: with HTTP/2 all calls would share one connection, and one stalled connection would
// fail the refresh of every role at once.
func NewHTTPClient(direct ...netip.Addr) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	dialer := &net.Dialer{Timeout: 3 * time.Second, KeepAlive: 15 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                 proxyExcept(http.ProxyFromEnvironment, direct),
			DialContext:           dialer.DialContext,
			Protocols:             protocols,
			TLSHandshakeTimeout:   5 * time.Second,
			ResponseHeaderTimeout: 10 * time.Second,
			MaxIdleConns:          32,
			MaxIdleConnsPerHost:   32,
			IdleConnTimeout:       90 * time.Second,
		},
		// A redirect would carry the token or the signature to an address nobody configured.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// proxyExcept returns proxy without the metadata service's addresses and those in direct.
func proxyExcept(proxy func(*http.Request) (*url.URL, error), direct []netip.Addr) func(*http.Request) (*url.URL, error) {
	direct = append([]netip.Addr{
		netip.AddrFrom4([4]byte{169, 254, 169, 254}),
		netip.MustParseAddr("fd00:ec2::254"),
	}, direct...)
	return func(r *http.Request) (*url.URL, error) {
		if a, err := netip.ParseAddr(r.URL.Hostname()); err == nil && slices.Contains(direct, a.Unmap().WithZone("")) {
			return nil, nil
		}
		return proxy(r)
	}
}

// httpClient is what the SDK sends its requests with. It puts the body, a form of a few kilobytes, into a reader that
// net/http knows to be in memory, which matters twice:
//
// The SDK's own reader is closed as soon as there is an answer. If net/http has not yet seen that it is at its end, it
// takes the io.EOF of the closed reader's WriteTo for a failure and closes the connection, and an answer of more than
// a buffer, such as one with a 4 KiB session token, is cut off (aws/smithy-go, NewSafeReadCloser).
//
// And a request that can be sent again is, where a kept connection turns out to have been closed by the far end
// meanwhile. Assuming a role twice does no harm. That is no attempt of the SDK's: nothing was answered yet.
type httpClient struct{ *http.Client }

// Do implements aws.HTTPClient.
func (c httpClient) Do(in *http.Request) (*http.Response, error) {
	out := in.Clone(in.Context())
	if in.Body != nil {
		body, err := io.ReadAll(in.Body)
		if err != nil {
			return nil, fmt.Errorf("read request body: %w", err)
		}
		out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		out.Body, _ = out.GetBody()
	}
	out.Header["Idempotency-Key"] = nil // tells http.Transport, and is not sent (its documentation)
	return c.Client.Do(out)
}
