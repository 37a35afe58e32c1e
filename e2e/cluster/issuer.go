package main

import (
	"bytes"
	"io"
	"net/http"
	"sync"
)

// remembering asks the issuer each time, and gives the last good answer when it is away: AWS keeps issuers' keys, and
// those of EKS are not the API server's to serve.
type remembering struct {
	http.RoundTripper

	mu   sync.Mutex // guards last
	last map[string][]byte
}

// RoundTrip implements http.RoundTripper. All requests are GETs.
func (m *remembering) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := m.RoundTripper.RoundTrip(r)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		body, known := m.last[r.URL.String()]
		if !known {
			return nil, err
		}
		return &http.Response{
			Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: r,
		}, nil
	}
	if response.StatusCode != http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	m.last[r.URL.String()] = body
	response.Body = io.NopCloser(bytes.NewReader(body))
	return response, nil
}
