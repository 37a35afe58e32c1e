package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

// Minter turns a Grant into credentials. *sts.Minter implements it.
type Minter interface {
	// Mint returns new credentials for g; pod is a pod that wants g. What to do about an error is its sts.KindOf. It
	// must be safe for concurrent use and return soon after ctx ends.
	Mint(ctx context.Context, g role.Grant, pod role.Workload) (sts.Credentials, error)
}

// Preparer is implemented by a Minter that keeps what only a live pod can renew, such as ServiceAccount tokens.
// *sts.Minter implements it.
type Preparer interface {
	// Prepare is called when a Grant that has a Session gets a pod after having had none, so that the Grant can still be
	// minted for when that pod is gone. It returns soon after ctx ends. Its failure is no mint's.
	Prepare(ctx context.Context, g role.Grant, pod role.Workload)
}

// Store keeps Sessions from one process to the next. It must be safe for concurrent use, and quick: Want waits for
// Load.
type Store interface {
	// Load returns the Session kept for exactly g, with or without its Body, or nil.
	Load(g role.Grant) *Session
	// Save keeps s in place of what was kept for its Grant.
	Save(s *Session) error
	// Delete forgets what is kept for g, if anything.
	Delete(g role.Grant) error
}

// Config configures a Cache.
type Config struct {
	// Minter makes the credentials. Required.
	Minter Minter
	// Render writes the metadata service's answer for credentials minted at the given time. Called once per mint;
	// must be safe for concurrent use. Required.
	Render func(sts.Credentials, time.Time) []byte
	// Rate is the number of mints per second, retries included, that this node starts at most. Default 10. AWS counts
	// all nodes of an account and region together (600 calls per second): a higher rate recovers one node sooner and
	// throttles a large cluster earlier. A mint is one call to STS, two when a ServiceAccount token was refused.
	Rate float64
	// Burst is the number of mints that may start at once after a calm time. Default 10.
	Burst int
	// Concurrency is the number of mints under way at most. Default 32. A quarter of it is kept for first mints, so that
	// refreshes and retries that hang leave room for pods that have nothing yet.
	Concurrency int
	// MintTimeout bounds one mint. Default 30 s, which is room for a ServiceAccount token, a refused call and a second
	// one.
	MintTimeout time.Duration
	// Store keeps Sessions from one process to the next. One that was kept is served only after Want for its Grant, and
	// costs no mint while it is good. Optional: every process starts cold.
	Store Store
	// Linger is how long a released Grant is refreshed as if a pod wanted it, so that the pod of an hourly CronJob finds
	// its Session. Default: one life of the Session, which is about two mints more per Grant that goes. Negative: not
	// at all. Whatever it is, a Session is kept until it expires.
	Linger time.Duration
	// MaxReleased is the number of released Grants kept. Default 1024. The one unused for longest goes first.
	MaxReleased int
	// Logger is told when the fortune of a Grant changes, not at every try. Optional.
	Logger *slog.Logger
	// Observe is told how every mint ended. It must not block and must be safe for concurrent use. Optional.
	Observe func(Outcome)
	// Rand returns numbers in [0,1) for jitter. It need not be safe for concurrent use. Default math/rand/v2.Float64.
	Rand func() float64
}

// Outcome is how one mint ended.
type Outcome struct {
	Grant role.Grant
	Pod   role.Workload // the pod it was minted for
	Err   error         // nil: there is a new Session
	Took  time.Duration
	// Changed says that the mint before this one ended otherwise (another sts.Kind, or success), or that there was
	// none: what is worth an Event.
	Changed bool
}

// complete returns cfg with its defaults, or an error that names the field at fault.
func (cfg Config) complete() (Config, error) {
	var errs []error
	require := func(ok bool, field, rule string) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s %s", field, rule))
		}
	}
	setDefault(&cfg.Rate, 10)
	setDefault(&cfg.Burst, 10)
	setDefault(&cfg.Concurrency, 32)
	setDefault(&cfg.MintTimeout, 30*time.Second)
	setDefault(&cfg.MaxReleased, 1024)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Observe == nil {
		cfg.Observe = func(Outcome) {}
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Float64
	}
	require(cfg.Minter != nil, "Minter", "is required")
	require(cfg.Render != nil, "Render", "is required")
	require(cfg.Rate > 0, "Rate", "must be positive")
	require(cfg.Burst > 0, "Burst", "must be positive")
	require(cfg.Concurrency > 0, "Concurrency", "must be positive")
	require(cfg.MintTimeout > 0, "MintTimeout", "must be positive")
	require(cfg.MaxReleased > 0, "MaxReleased", "must be positive")
	if err := errors.Join(errs...); err != nil {
		return Config{}, fmt.Errorf("new cache: %w", err)
	}
	return cfg, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
