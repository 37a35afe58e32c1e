package agent

import (
	"errors"
	"net/http"
	"net/netip"
	"testing"
)

func TestBaseOfProfile(t *testing.T) {
	for profile, want := range map[string]string{
		"arn:aws:iam::111122223333:instance-profile/node":            "arn:aws:iam::111122223333:role/",
		"arn:aws-cn:iam::111122223333:instance-profile/path/to/node": "arn:aws-cn:iam::111122223333:role/",
		"arn:aws:iam::111122223333:role/node":                        "",
		"":                                                           "",
	} {
		if got, err := baseOfProfile(profile); got != want || (err == nil) != (want != "") {
			t.Errorf("baseOfProfile(%q) = %q, %v; want %q", profile, got, err, want)
		}
	}
}

func TestAnswersIMDSv1(t *testing.T) {
	for status, want := range map[int]bool{http.StatusOK: true, http.StatusUnauthorized: false, http.StatusForbidden: false} {
		client := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.Header.Get("X-Aws-Ec2-Metadata-Token") != "" || r.URL.Host != "192.0.2.1:80" {
				t.Errorf("asked %s with %v", r.URL, r.Header)
			}
			return &http.Response{StatusCode: status, Body: http.NoBody, Request: r}, nil
		})}
		if got, err := answersIMDSv1(t.Context(), client, netip.MustParseAddr("192.0.2.1")); got != want || err != nil {
			t.Errorf("%d: got %t, %v", status, got, err)
		}
	}
	broken := &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) { return nil, errors.New("refused") })}
	if _, err := answersIMDSv1(t.Context(), broken, netip.MustParseAddr("192.0.2.1")); err == nil {
		t.Error("no error of a service that cannot be reached")
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
