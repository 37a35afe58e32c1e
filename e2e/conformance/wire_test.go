package main

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// packet writes an IPv4 packet with a TCP segment in it.
func packet(from, to [4]byte, fromPort, toPort uint16, flags byte, payload string) []byte {
	p := make([]byte, 40, 40+len(payload))
	p[0], p[9] = 0x45, 6
	binary.BigEndian.PutUint16(p[2:], uint16(40+len(payload)))
	copy(p[12:], from[:])
	copy(p[16:], to[:])
	binary.BigEndian.PutUint16(p[20:], fromPort)
	binary.BigEndian.PutUint16(p[22:], toPort)
	p[32], p[33] = 5<<4, flags
	return append(p, payload...)
}

func pod() [4]byte { return [4]byte{198, 18, 1, 1} }

func metadata() [4]byte { return metadataAddress().Addr().As4() }

func ask(port uint16, flags byte, payload string) []byte {
	return packet(pod(), metadata(), port, 80, flags, payload)
}

func reply(port uint16, flags byte, payload string) []byte {
	return packet(metadata(), pod(), 80, port, flags, payload)
}

const (
	syn = 0x02
	ack = 0x10
)

// TestWire: what is heard of a conversation, packet by packet.
func TestWire(t *testing.T) {
	list := "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"
	tests := []struct {
		name    string
		packets [][]byte
		want    []exchange
	}{
		{"nothing", nil, nil},
		{"one", [][]byte{
			ask(5000, syn, ""), reply(5000, syn|ack, ""), ask(5000, ack, ""), ask(5000, ack, list),
			reply(5000, ack, "HTTP/1.1 200 OK\r\nServer: EC2ws\r\n\r\nweb"),
		}, []exchange{{"GET", "/latest/meta-data/iam/security-credentials/", 200}}},
		{"answer_in_pieces", [][]byte{
			ask(5000, syn, ""), ask(5000, ack, list), reply(5000, ack, "HTTP/1.1 404 Not Found\r\n\r\n"), reply(5000, ack, "HTTP/1.1 200 OK"),
		}, []exchange{{"GET", "/latest/meta-data/iam/security-credentials/", 404}}},
		{"opened_again_for_want_of_an_answer", [][]byte{
			ask(5000, syn, ""), ask(5000, syn, ""), ask(5000, ack, list),
		}, []exchange{{"GET", "/latest/meta-data/iam/security-credentials/", 0}}},
		{"port_used_again", [][]byte{
			ask(5000, syn, ""), ask(5000, ack, "PUT /latest/api/token HTTP/1.0\r\n"), ask(5000, syn, ""),
		}, []exchange{{"PUT", "/latest/api/token", 0}, {}}},
		{"container_endpoint", [][]byte{
			packet(pod(), [4]byte{169, 254, 170, 2}, 5000, 80, syn, ""),
			packet(pod(), [4]byte{169, 254, 170, 2}, 5000, 80, ack, "GET /v2/credentials/0f7a HTTP/1.1\r\n"),
			packet([4]byte{169, 254, 170, 2}, pod(), 80, 5000, ack, "HTTP/1.1 200 OK\r\n\r\n"),
		}, []exchange{{"GET", "/v2/credentials/0f7a", 200}}},
		{"somebody_else", [][]byte{
			packet(pod(), [4]byte{192, 0, 2, 1}, 5000, 80, syn, ""), packet(pod(), metadata(), 5000, 8080, syn, ""),
		}, nil},
		{"in_the_middle", [][]byte{ask(5000, ack, list)}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := &wire{current: map[uint16]*exchange{}}
			for _, p := range tt.packets {
				if s, ok := parseSegment(p); ok {
					w.add(s)
				}
			}
			var got []exchange
			for _, e := range w.exchanges {
				got = append(got, *e)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(exchange{})); diff != "" {
				t.Errorf("want -, got +:\n%s", diff)
			}
		})
	}
}

func TestLetters(t *testing.T) {
	for path, want := range map[string]string{
		"/latest/meta-data/iam/security-credentials":        "L",
		"/latest/meta-data/iam/security-credentials/":       "L",
		"/latest/meta-data/iam/security-credentials/web":    "C",
		"/latest/meta-data/iam/security-credentials//web":   "C",
		"/2021-07-15/meta-data/placement/availability-zone": "R",
		"/latest/dynamic/instance-identity/document":        "R",
		"/v2/credentials/0f7a":                              "E",
		"/v1/credentials":                                   "E",
		"/latest/user-data":                                 "?",
		"":                                                  "?",
	} {
		if got := letters([]exchange{{"GET", path, 200}}); got != want {
			t.Errorf("%q: got %s, want %s", path, got, want)
		}
	}
	if got := letters([]exchange{{"PUT", "/latest/api/token", 200}, {"GET", "/latest/meta-data/placement/region", 200}}); got != "TR" {
		t.Errorf("got %s, want TR", got)
	}
}

// FuzzSegment: whatever comes by, it is read or left, and no more is read than there is.
func FuzzSegment(f *testing.F) {
	f.Add(ask(5000, syn, ""))
	f.Add(reply(5000, ack, "HTTP/1.1 200 OK\r\n"))
	f.Add([]byte{0x4f, 0, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, p []byte) {
		s, ok := parseSegment(p)
		if !ok {
			return
		}
		if len(s.payload) > len(p) {
			t.Errorf("%d bytes of payload in %d", len(s.payload), len(p))
		}
		w := &wire{current: map[uint16]*exchange{}}
		s.opens = true
		w.add(s)
		s.opens = false
		w.add(s)
		_ = describe([]exchange{*w.exchanges[0]})
	})
}

// A client that was listed as unable to go to the container credentials endpoint is found out when it does, whatever the
// answer.
func TestGoesThere(t *testing.T) {
	for name, tt := range map[string]struct {
		heard []exchange
		goes  bool
	}{
		"refuses_the_address": {nil, false},
		"falls_back": {[]exchange{
			{"PUT", "/latest/api/token", 200}, {"GET", "/latest/meta-data/iam/security-credentials/", 200},
			{"GET", "/latest/meta-data/iam/security-credentials/a", 200},
		}, false},
		"goes":             {[]exchange{{"GET", "/v1/credentials", 200}}, true},
		"goes_and_fails":   {[]exchange{{"GET", "/v1/credentials", 404}}, true},
		"is_not_answered":  {[]exchange{{"GET", "/v2/credentials/conformance", 0}}, true},
		"goes_and_retries": {[]exchange{{"GET", "/latest/meta-data/placement/region", 200}, {"GET", "/v1/credentials", 503}}, true},
	} {
		if err := goesThere(tt.heard, scenarioFullURI, answer{}); (err != nil) != tt.goes {
			t.Errorf("%s: %v", name, err)
		}
	}
}
