package sts

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssts "github.com/aws/aws-sdk-go-v2/service/sts"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

const (
	// failuresToLeave is how many calls in a row a region must leave without a proper answer before others are asked.
	failuresToLeave = 3
	// probePause is the time between two looks at a region that was left.
	probePause = 30 * time.Second
	// probeTimeout bounds such a look, which delays the mint that takes it.
	probeTimeout = 3 * time.Second
)

// regions are the STS endpoints to ask, in the order of preference. Credentials of each are good everywhere
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/id_credentials_temp_enable-regions.html). Calls go to the first one
// until it fails repeatedly, then to the next; one call at a time finds out whether an earlier one answers again. It is
// safe for concurrent use.
type regions struct {
	list []*region
	mu   sync.Mutex // guards the health of all
}

// region is one endpoint and its health.
type region struct {
	name   string
	client *awssts.Client

	// regions.mu guards the following.
	failures int       // in a row
	failed   time.Time // the last of them
	probing  bool      // a call finds out
}

// pick returns the region for the next call: the first that answers, or an earlier one that is due for a look, which
// probe then says. Regions that were tried for the same mint are left out; nil: there is no other. When none answers it
// is the one that failed the longest ago.
func (r *regions) pick(now time.Time, tried []*region) (best *region, probe bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range r.list {
		switch {
		case slices.Contains(tried, x):
		case x.failures < failuresToLeave:
			return x, false
		case !x.probing && now.Sub(x.failed) >= probePause && r.answers(x):
			x.probing = true
			return x, true
		case best == nil || x.failed.Before(best.failed):
			best = x
		}
	}
	return best, false
}

// answers reports whether a region other than x does: else there is nothing to fall back on, and no need of a probe.
func (r *regions) answers(x *region) bool {
	return slices.ContainsFunc(r.list, func(y *region) bool { return y != x && y.failures < failuresToLeave })
}

// note writes down how a call to x went.
func (r *regions) note(x *region, now time.Time, h health, probe bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if probe {
		x.probing = false
	}
	switch h {
	case answered:
		x.failures = 0
	case failing:
		x.failures++
		x.failed = now
	}
}

// health is what a call says of the region it went to.
type health int

const (
	unclear  health = iota // nothing
	answered               // it is there, whatever it said
	failing                // no answer, or only that it cannot
)

// healthOf reads it from an error of the SDK. That AWS throttles is an answer, and the same in all regions. That the
// caller gave up says nothing, nor that nothing was sent.
func healthOf(ctx context.Context, err error, a answer) health {
	switch {
	case err == nil:
		return answered
	case a.status >= http.StatusInternalServerError && classify(a).kind != Throttled:
		return failing
	case a.status != 0:
		return answered
	}
	if _, ok := errors.AsType[*smithyhttp.RequestSendError](err); ok || errors.Is(context.Cause(ctx), errCallTimeout) {
		return failing
	}
	return unclear
}

// errCallTimeout is the cause when a call's own time was over.
var errCallTimeout = fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)

// newRegions makes the clients. An endpoint that does not exist is an error now, not at the first mint.
func newRegions(cfg Config) (*regions, error) {
	names := append([]string{cfg.Region}, cfg.FailoverRegions...)
	r := new(regions)
	for i, name := range names {
		field := "Region"
		if i > 0 {
			field = "FailoverRegions"
		}
		if name == "" || slices.Contains(names[:i], name) {
			return nil, fmt.Errorf("%s: %q is empty or named twice", field, name)
		}
		opts := awssts.Options{
			Region:     name,
			HTTPClient: httpClient{cfg.HTTPClient},
			// One attempt. The SDK's retryer draws on a token bucket per client, so that the failures of one role would use
			// up the retries of all others.
			Retryer: aws.NopRetryer{},
		}
		if cfg.FIPS {
			opts.EndpointOptions.UseFIPSEndpoint = aws.FIPSEndpointStateEnabled
		}
		if cfg.DualStack {
			opts.EndpointOptions.UseDualStackEndpoint = aws.DualStackEndpointStateEnabled
		}
		if cfg.Endpoint != "" {
			opts.BaseEndpoint = &cfg.Endpoint
		}
		_, err := awssts.NewDefaultEndpointResolverV2().ResolveEndpoint(context.Background(), awssts.EndpointParameters{
			Region: &name, UseFIPS: &cfg.FIPS, UseDualStack: &cfg.DualStack, UseGlobalEndpoint: new(false),
			Endpoint: opts.BaseEndpoint,
		})
		if err != nil {
			return nil, fmt.Errorf("%s: no STS endpoint of %s (FIPS %t, dual-stack %t): %w", field, name, cfg.FIPS,
				cfg.DualStack, err)
		}
		r.list = append(r.list, &region{name: name, client: awssts.New(opts)})
	}
	return r, nil
}
