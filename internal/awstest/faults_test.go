package awstest

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

func inject(t testing.TB, a *AWS, f Fault) (remove func()) {
	t.Helper()
	remove, err := a.Inject(f)
	if err != nil {
		t.Fatal(err)
	}
	return remove
}

func (w *world) assume(ctx context.Context, role string) error {
	_, err := w.client(w.node).AssumeRole(ctx, asPod(role))
	return err
}

func TestFaultOutcomes(t *testing.T) {
	tests := map[string]struct {
		outcome *Outcome
		code    string
		status  int
	}{
		"throttled":   {Throttled(), "Throttling", 400},
		"unavailable": {Unavailable(), "ServiceUnavailable", 503},
		"internal":    {InternalFailure(), "InternalFailure", 500},
		"arbitrary": {
			&Outcome{Status: 403, Code: "RegionDisabledException", Message: "no"}, "RegionDisabledException", 403,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Config{})
			remove := inject(t, w.AWS, Fault{Action: "AssumeRole", Outcome: test.outcome})
			wantCode(t, w.assume(t.Context(), appRole), test.code)
			remove()
			remove()
			wantCode(t, w.assume(t.Context(), appRole), "")
			if got := w.Calls(Filter{Code: test.code}); len(got) != 1 || got[0].Status != test.status {
				t.Errorf("got calls %+v", got)
			}
		})
	}
}

func TestFaultSelectsCalls(t *testing.T) {
	tests := map[string]struct {
		fault       Fault
		app, far    string // outcomes of AssumeRole of either role
		getIdentity string
	}{
		"any":           {Fault{}, "Throttling", "Throttling", "Throttling"},
		"action":        {Fault{Action: "AssumeRole"}, "Throttling", "Throttling", ""},
		"role":          {Fault{RoleARN: farRole}, "", "Throttling", ""},
		"region":        {Fault{Region: region}, "Throttling", "Throttling", "Throttling"},
		"other-region":  {Fault{Region: "us-east-1"}, "", "", ""},
		"other-service": {Fault{Service: "s3"}, "", "", ""},
		"once":          {Fault{Times: 1}, "Throttling", "", ""},
		"certain":       {Fault{Probability: 1}, "Throttling", "Throttling", "Throttling"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Config{})
			test.fault.Outcome = Throttled()
			inject(t, w.AWS, test.fault)
			wantCode(t, w.assume(t.Context(), appRole), test.app)
			wantCode(t, w.assume(t.Context(), farRole), test.far)
			_, err := w.client(w.node).GetCallerIdentity(t.Context(), nil)
			wantCode(t, err, test.getIdentity)
			w.ClearFaults()
			wantCode(t, w.assume(t.Context(), appRole), "")
		})
	}
}

func TestFaultProbabilityIsSeeded(t *testing.T) {
	outcomes := func() string {
		w := newWorld(t, Config{Seed: 7})
		inject(t, w.AWS, Fault{Outcome: Throttled(), Probability: 0.5})
		var s strings.Builder
		for range 40 {
			if w.assume(t.Context(), appRole) != nil {
				s.WriteByte('x')
			} else {
				s.WriteByte('.')
			}
		}
		return s.String()
	}
	first := outcomes()
	if hit := strings.Count(first, "x"); hit < 8 || hit > 32 {
		t.Errorf("got %d of 40 at a probability of one half", hit)
	}
	if second := outcomes(); second != first {
		t.Errorf("got %s, then %s from the same seed", first, second)
	}
}

func TestInjectRefusesNonsense(t *testing.T) {
	w := newWorld(t, Config{})
	for name, f := range map[string]Fault{
		"times": {
			Times: -1}, "probability": {Probability: 1.5}, "latency": {Latency: -1}, "status": {Outcome: &Outcome{Status: 200}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := w.Inject(f); err == nil {
				t.Error("got no error")
			}
		})
	}
}

func TestConnectionReset(t *testing.T) {
	w := newWorld(t, Config{})
	inject(t, w.AWS, Fault{Outcome: ConnectionReset()})
	if err := w.assume(t.Context(), appRole); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a connection reset", err)
	}
	if n := w.Count(Filter{Code: CodeReset}); n != 1 {
		t.Errorf("got %d resets counted, want 1", n)
	}
}

// Time-outs and latency under the bubble's clock: exact, and no goroutine outlives its client.
func TestLatencyFollowsTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		user, err := a.AddUser(User{ARN: "arn:aws:iam::111122223333:user/ops"})
		if err != nil {
			t.Fatal(err)
		}
		client := sts.New(sts.Options{
			Region: region, BaseEndpoint: new("http://sts.example"), Retryer: aws.NopRetryer{},
			HTTPClient:  &http.Client{Transport: handlerTransport{a.Endpoint(region)}},
			Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return user, nil }),
		})
		inject(t, a, Fault{Latency: 1500 * time.Millisecond})
		removeSlow := inject(t, a, Fault{LatencyFunc: func() time.Duration { return 10 * time.Minute }})
		start := time.Now()
		if _, err := client.GetCallerIdentity(t.Context(), nil); err != nil {
			t.Error(err) // the signature is as old as the call was on arrival
		}
		if took := time.Since(start); took != 10*time.Minute+1500*time.Millisecond {
			t.Errorf("took %v", took)
		}
		removeSlow()
		inject(t, a, Fault{Outcome: TimedOut()})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start = time.Now()
		if _, err := client.GetCallerIdentity(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want a time-out", err)
		}
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("took %v, want 5s", took)
		}
		synctest.Wait()
		calls := a.Calls(Filter{Code: CodeClientGone})
		if len(calls) != 1 || calls[0].Latency != 5*time.Second || calls[0].Status != 0 || a.InFlight() != 0 {
			t.Errorf("got calls %+v, %d in flight", calls, a.InFlight())
		}
	})
}

func TestCallsAreOrderedBoundedAndCountedExactly(t *testing.T) {
	w := newWorld(t, Config{RecordLimit: 8})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			role := appRole
			if i%2 == 1 {
				role = farRole
			}
			if err := w.assume(t.Context(), role); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	calls := w.Calls(Filter{})
	if len(calls) != 8 {
		t.Fatalf("got %d calls listed, want the last 8", len(calls))
	}
	for i, c := range calls {
		if i > 0 && c.Start.Before(calls[i-1].Start) {
			t.Errorf("call %d started before its predecessor", i)
		}
		if c.CallerARN != "arn:aws:sts::111122223333:assumed-role/node/i-0123456789abcdef0" || !c.Source.IsValid() ||
			c.SessionName != "pod" || c.Region != region || c.Service != "sts" {
			t.Errorf("got %+v", c)
		}
	}
	app, far := w.Count(Filter{RoleARN: appRole}), w.Count(Filter{RoleARN: farRole, Code: CodeOK})
	if app != 10 || far != 10 {
		t.Errorf("got %d and %d counted, want 10 each", app, far)
	}
	for _, name := range []string{"one", "two", "three"} {
		in := asPod(appRole)
		in.RoleSessionName = &name
		_, err := w.client(w.node).AssumeRole(t.Context(), in)
		wantCode(t, err, "")
	}
	last := w.Calls(Filter{})[5:]
	if last[0].SessionName != "one" || last[1].SessionName != "two" || last[2].SessionName != "three" {
		t.Errorf("got last calls %+v", last)
	}
	w.ResetCalls()
	if n := w.Count(Filter{}); n != 0 || len(w.Calls(Filter{})) != 0 {
		t.Errorf("got %d calls after the reset", n)
	}
}

func TestRegionOfACall(t *testing.T) {
	tests := map[string]struct {
		told, scope, host, want string
	}{
		"scope":       {"", "ap-south-1", "sts.example", "ap-south-1"},
		"host":        {"", "", "sts.eu-central-1.amazonaws.com", "eu-central-1"},
		"host-port":   {"", "", "sts.eu-central-1.amazonaws.com:443", "eu-central-1"},
		"host-fips":   {"", "", "sts-fips.us-west-2.amazonaws.com", "us-west-2"},
		"host-china":  {"", "", "sts.cn-north-1.amazonaws.com.cn", "cn-north-1"},
		"host-global": {"", "", "sts.amazonaws.com", "us-east-1"},
		"told":        {"sa-east-1", "", "127.0.0.1:8080", "sa-east-1"},
		"nothing":     {"", "", "[::1]:8080", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Config{})
			location := "http://" + test.host + "/"
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, location, strings.NewReader(identityForm))
			if err != nil {
				t.Fatal(err)
			}
			if test.scope != "" {
				r = signedAt(t, w.user, http.MethodPost, location, identityForm, "sts", nil, time.Now(), test.scope)
			}
			r.Header.Set("Content-Type", formType)
			if _, err := (handlerTransport{w.Endpoint(test.told)}).RoundTrip(r); err != nil {
				t.Fatal(err)
			}
			if calls := w.Calls(Filter{}); len(calls) != 1 || calls[0].Region != test.want {
				t.Errorf("got %+v, want region %q", calls, test.want)
			}
		})
	}
}
