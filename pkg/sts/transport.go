package sts

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// NewHTTPClient returns the HTTP client that New uses when it is given none: connections are reused, each step has
// a time-out of its own, proxies come from the environment (HTTPS_PROXY, NO_PROXY), redirects are not followed. It
// speaks HTTP/1.1 only: with HTTP/2 all calls would share one connection, and one stalled connection would fail
// the refresh of every role at once.
func NewHTTPClient() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	dialer := &net.Dialer{Timeout: 3 * time.Second, KeepAlive: 15 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
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
