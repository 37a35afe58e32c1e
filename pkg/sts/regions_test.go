package sts_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

// inProcess carries requests straight to a handler, with the client's patience: what a network does, inside a bubble.
func inProcess(h http.Handler) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		type answer struct {
			w  *httptest.ResponseRecorder
			ok bool
		}
		done := make(chan answer, 1)
		go func() {
			a := answer{w: httptest.NewRecorder()}
			defer func() {
				a.ok = recover() == nil // awstest aborts the response it does not give
				done <- a
			}()
			in := r.Clone(r.Context())
			in.Host = r.URL.Host
			h.ServeHTTP(a.w, in)
		}()
		select {
		case a := <-done:
			if !a.ok {
				return nil, fmt.Errorf("connection reset")
			}
			return a.w.Result(), nil
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	})
}

// newFailover returns a Minter with two regions to fall back on.
func newFailover(t *testing.T, w *world) *sts.Minter {
	t.Helper()
	m, err := sts.New(sts.Config{
		Region: region, FailoverRegions: []string{"eu-central-1", "eu-north-1"}, Tokens: w.tokens,
		HTTPClient: &http.Client{Transport: inProcess(w.Endpoint(""))}, Observe: w.observed.observe, Timeout: 5 * time.Second,
	})
	check(t, err)
	return m
}

// asked returns the regions called since it was called last.
func (w *world) asked() []string {
	var regions []string
	for _, line := range w.observed.take() {
		f := strings.Fields(line)
		regions = append(regions, f[1]+" "+f[2])
	}
	return regions
}

func TestFailover(t *testing.T) {
	kinds := map[string]*awstest.Outcome{
		"5xx": awstest.InternalFailure(), "hang": awstest.TimedOut(), "reset": awstest.ConnectionReset(),
	}
	codes := map[string]string{"5xx": "InternalFailure", "hang": "Timeout", "reset": "Unreachable"}
	for name, outcome := range kinds {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newAWS(t)
				m := newFailover(t, w)
				mint := func() error {
					_, err := m.Mint(t.Context(), webGrant(), caller)
					return err
				}
				want := func(when string, regions ...string) {
					t.Helper()
					if diff := cmp.Diff(regions, w.asked()); diff != "" {
						t.Errorf("%s (-want +got):\n%s", when, diff)
					}
				}
				const first, second = region, "eu-central-1"
				bad := first + " " + codes[name]
				check(t, mint())
				want("in good times", first+" OK")

				clear, err := w.Inject(awstest.Fault{Region: first, Outcome: outcome})
				check(t, err)
				for range 3 {
					e := wantError(t, mint(), sts.Transient, map[string]string{"5xx": "InternalFailure"}[name])
					if e.Region != first {
						t.Errorf("the error names %s", e.Region)
					}
				}
				for range 3 {
					check(t, mint())
				}
				want("when it fails", bad, bad, bad, second+" OK", second+" OK", second+" OK")

				// One call now and then looks after it, and is made again where it works.
				time.Sleep(31 * time.Second)
				begin := time.Now()
				check(t, mint())
				if took := time.Since(begin); took > 4*time.Second {
					t.Errorf("the look took %s", took)
				}
				check(t, mint())
				want("while it is down", bad, second+" OK", second+" OK")

				clear()
				check(t, mint())
				want("before the next look", second+" OK")
				time.Sleep(31 * time.Second)
				check(t, mint())
				check(t, mint())
				want("when it is back", first+" OK", first+" OK")
			})
		})
	}
}

// TestOneProbeAtATime: a region that hangs holds up one mint, and no other.
func TestOneProbeAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAWS(t)
		m := newFailover(t, w)
		_, err := w.Inject(awstest.Fault{Region: region, Outcome: awstest.TimedOut()})
		check(t, err)
		for range 3 {
			_, err := m.Mint(t.Context(), webGrant(), caller)
			wantError(t, err, sts.Transient, "")
		}
		time.Sleep(time.Minute)
		var mu sync.Mutex
		var took []time.Duration
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				begin := time.Now()
				_, err := m.Mint(t.Context(), webGrant(), caller)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				took = append(took, time.Since(begin))
			})
		}
		wg.Wait()
		slices.Sort(took)
		if took[18] != 0 || took[19] != 3*time.Second {
			t.Errorf("mints took %v, want one of 3s", took)
		}
	})
}

// TestNoReasonToLeave: what one role is told, and throttling, are answers.
func TestNoReasonToLeave(t *testing.T) {
	for name, outcome := range map[string]*awstest.Outcome{
		"throttled":  awstest.Throttled(),
		"slow_down":  {Status: 503, Code: "SlowDown"},
		"denied":     {Status: 403, Code: "AccessDenied"},
		"idp":        {Status: 400, Code: "IDPCommunicationError"},
		"unknown":    {Status: 418, Code: "Teapot"},
		"validation": {Status: 400, Code: "ValidationError"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			m := newFailover(t, w)
			inject(awstest.Fault{Outcome: outcome})(t, w)
			for range 5 {
				_, err := m.Mint(t.Context(), webGrant(), caller)
				if err == nil {
					t.Fatal("no error")
				}
			}
			for _, line := range w.asked() {
				if !strings.HasPrefix(line, region+" ") {
					t.Errorf("asked %s", line)
				}
			}
		})
	}
}

// TestNowAndThen: failures count in a row.
func TestNowAndThen(t *testing.T) {
	w := newWorld(t)
	m := newFailover(t, w)
	for range 4 {
		inject(awstest.Fault{Outcome: awstest.InternalFailure(), Times: 2})(t, w)
		for i := range 3 {
			_, err := m.Mint(t.Context(), webGrant(), caller)
			if (err == nil) != (i == 2) {
				t.Fatalf("mint %d: %v", i, err)
			}
		}
	}
	for _, line := range w.asked() {
		if !strings.HasPrefix(line, region+" ") {
			t.Errorf("asked %s", line)
		}
	}
}

// TestAllRegionsDown: all are tried in turn, and the first that answers is used.
func TestAllRegionsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAWS(t)
		m := newFailover(t, w)
		clear, err := w.Inject(awstest.Fault{Outcome: awstest.InternalFailure()})
		check(t, err)
		for range 30 {
			_, err := m.Mint(t.Context(), webGrant(), caller)
			wantError(t, err, sts.Transient, "InternalFailure")
			time.Sleep(time.Second)
		}
		asked := w.asked()
		for _, region := range []string{region, "eu-central-1", "eu-north-1"} {
			if !slices.Contains(asked[len(asked)-6:], region+" InternalFailure") {
				t.Errorf("%s was given up: %v", region, asked)
			}
		}
		clear()
		for range 3 {
			_, err := m.Mint(t.Context(), webGrant(), caller)
			check(t, err)
		}
		time.Sleep(time.Minute)
		w.asked()
		for range 2 {
			_, err := m.Mint(t.Context(), webGrant(), caller)
			check(t, err)
		}
		if got := w.asked(); got[len(got)-1] != region+" OK" {
			t.Errorf("not back in the first region: %v", got)
		}
	})
}

// TestCallerWhoLeavesSaysNothing about a region.
func TestCallerWhoLeavesSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAWS(t)
		m := newFailover(t, w)
		clear, err := w.Inject(awstest.Fault{Latency: time.Second})
		check(t, err)
		for range 5 {
			ctx, cancel := contextFor(t, 100*time.Millisecond)
			_, err := m.Mint(ctx, webGrant(), caller)
			cancel()
			wantError(t, err, sts.Transient, "")
		}
		time.Sleep(time.Second)
		clear()
		w.asked()
		_, err = m.Mint(t.Context(), webGrant(), caller)
		check(t, err)
		if got := w.asked(); !slices.Equal(got, []string{region + " OK"}) {
			t.Errorf("asked %v", got)
		}
	})
}

// TestKeyRetrievalIsCapped: an issuer whose keys AWS cannot read is an outage at first and a refusal after ten tries in
// a row, for its role alone.
func TestKeyRetrievalIsCapped(t *testing.T) {
	w := newWorld(t)
	const other = "arn:aws:iam::111122223333:role/other"
	check(t, w.PutRole(awstest.Role{
		ARN: other, Trust: awstest.TrustServiceAccount(w.provider, caller.Namespace, caller.ServiceAccount),
	}))
	g := webGrant()
	elsewhere := g
	elsewhere.RoleARN = other
	fault := awstest.Fault{RoleARN: g.RoleARN, Outcome: &awstest.Outcome{
		Status: 400, Code: "InvalidIdentityToken", Message: "Couldn't retrieve verification key from your identity provider",
	}}
	fails := func(g role.Grant, kind sts.Kind, times int) {
		t.Helper()
		for range times {
			_, err := w.minter.Mint(t.Context(), g, caller)
			e := wantError(t, err, kind, "InvalidIdentityToken")
			if !strings.Contains(e.Error(), "openid-configuration") {
				t.Errorf("%v: no remedy", e)
			}
		}
	}
	clear, err := w.Inject(fault)
	check(t, err)
	fails(g, sts.Transient, 9)
	fails(g, sts.Denied, 3)
	_, err = w.minter.Mint(t.Context(), elsewhere, caller)
	check(t, err)
	clear()
	_, err = w.minter.Mint(t.Context(), g, caller)
	check(t, err)
	clear, err = w.Inject(fault)
	check(t, err)
	fails(g, sts.Transient, 5) // counted anew
	clear()
	inject(awstest.Fault{RoleARN: g.RoleARN, Outcome: awstest.Throttled(), Times: 1})(t, w)
	_, err = w.minter.Mint(t.Context(), g, caller)
	wantError(t, err, sts.Throttled, "Throttling")
	inject(fault)(t, w)
	fails(g, sts.Transient, 9)
}
