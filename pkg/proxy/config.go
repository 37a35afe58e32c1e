package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"time"

	"github.com/podrole/podrole/pkg/cache"
	"github.com/podrole/podrole/pkg/proxy/metadata"
	"github.com/podrole/podrole/pkg/role"
)

// Identifier says which pod has a source address. Its methods are called concurrently.
type Identifier interface {
	// Lookup answers at once, from memory. False means not known, which is not the same as none.
	Lookup(source netip.Addr) (role.Workload, bool)
	// Await returns as soon as the pod is known, and an error when ctx ends before that.
	Await(ctx context.Context, source netip.Addr) (role.Workload, error)
}

// Decider says which role a pod may use. It is called concurrently.
type Decider interface {
	// Decide returns the pod's Grant as soon as there is a decision. An error that is a *role.Denial is one too;
	// any other error means that ctx ended before there was any.
	Decide(ctx context.Context, w role.Workload) (role.Grant, error)
}

// Sessions holds the credentials of Grants. It is called concurrently.
type Sessions interface {
	// Get returns the Session of g as soon as there is one. An *sts.Error of kind Denied says that there will be
	// none; any other error, that there is none yet.
	Get(ctx context.Context, g role.Grant) (*cache.Session, error)
}

// Metadata answers what pods may read besides their credentials. It is called concurrently.
type Metadata interface {
	// Read returns what is at r.Path, and whether there is anything there that the pod may read. It returns at once for
	// what every pod may read at all times, if it does not vary. An error means that it is not known yet.
	Read(ctx context.Context, r metadata.Request) (body []byte, found bool, err error)
	// Varies reports whether a pod may read more at a path than every pod may, if that is something. It returns at once.
	Varies(path string) bool
}

// Allowances says what single pods may read of the node's metadata. It is called concurrently.
type Allowances interface {
	// MetadataAllowed returns what a pod may read besides what every pod may, as soon as that is decided. An error means
	// that ctx ended before.
	MetadataAllowed(ctx context.Context, w role.Workload) ([]metadata.Pattern, error)
}

// Defaults of Config.
const (
	DefaultWait  = 900 * time.Millisecond
	DefaultGrace = 2 * time.Second
)

// DefaultRate is a Config.Rate for pods in general: about what an instance has on EC2, whose services at link-local
// addresses take 1024 packets a second together (https://docs.aws.amazon.com/vpc/latest/userguide/AmazonDNS-concepts.html,
// quotas), at ten packets a request.
const DefaultRate = 100

// Config is what a Server is made of.
type Config struct {
	Identity Identifier // required
	Roles    Decider    // required
	Sessions Sessions   // required

	// Keys sign IMDSv2 tokens: the first one signs, all of them verify. Required: at least one, each of at least
	// MinKeySize random bytes. Whoever keeps them across restarts keeps tokens valid across restarts.
	Keys [][]byte

	// IMDSv1 allows requests without a token, as SDKs from before November 2019 send them.
	IMDSv1 bool

	// Addresses are those at which pods call the metadata service: a request whose Host is anything else is refused.
	// Optional: DefaultAddresses.
	Addresses []netip.Addr

	// ContainerCredentials answers as the container credentials endpoint, too: see containerAddresses. Whoever leads pods
	// to it at those addresses leads them to the same listener. It asks for no token, with or without IMDSv1.
	ContainerCredentials bool

	// Metadata is what pods may read besides their credentials. Optional: nothing.
	Metadata Metadata

	// Allowances say which pods may read more of Metadata than every pod may. Optional: none.
	Allowances Allowances

	// Wait is how long a request may park in all, for identity, decision and session together. Optional:
	// DefaultWait, below the one second after which most SDKs give up.
	Wait time.Duration

	// Rate is how many requests per second one source address may make in the long run. It may save up to five seconds'
	// worth of them for a burst, as when a pod with many processes starts. What is beyond that is delayed, and closed
	// without an answer when it is not due within a second. Optional: no limit. See DefaultRate.
	Rate float64

	// Grace is how long Serve lets requests in flight finish once it is told to stop. Optional: DefaultGrace.
	Grace time.Duration

	// Observe is called once per request that reached the handler, with the status code sent and the time from the
	// parsed request to the answer. Optional. It must not block.
	Observe func(route Route, code int, took time.Duration)

	// Logger gets refusals at debug level and what an operator should look at above it, rate-limited. Optional:
	// nothing is logged.
	Logger *slog.Logger

	// Now is the clock that tokens and credentials expire by. Optional: time.Now.
	Now func() time.Time
}

// withDefaults returns c with the optional fields filled in, or what is wrong with it.
func (c Config) withDefaults() (Config, error) {
	var errs []error
	if c.Identity == nil || c.Roles == nil || c.Sessions == nil {
		errs = append(errs, errors.New("identity, roles and sessions are required"))
	}
	if c.Wait < 0 || c.Grace < 0 {
		errs = append(errs, fmt.Errorf("wait (%v) and grace (%v) must not be negative", c.Wait, c.Grace))
	}
	if c.Rate < 0 || math.IsNaN(c.Rate) || math.IsInf(c.Rate, 0) {
		errs = append(errs, fmt.Errorf("rate (%v) must be a number, and not negative", c.Rate))
	}
	for _, a := range c.Addresses {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			errs = append(errs, fmt.Errorf("address %v of the metadata service must be an IPv4 or IPv6 address without a zone", a))
		}
	}
	if len(c.Addresses) == 0 {
		c.Addresses = DefaultAddresses()
	}
	if c.Wait == 0 {
		c.Wait = DefaultWait
	}
	if c.Grace == 0 {
		c.Grace = DefaultGrace
	}
	if c.Metadata == nil {
		c.Metadata = metadata.NewStore(metadata.Config{})
	}
	if c.Observe == nil {
		c.Observe = func(Route, int, time.Duration) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c, errors.Join(errs...)
}
