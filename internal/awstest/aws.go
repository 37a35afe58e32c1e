package awstest

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// Config configures a stand-in. The zero value is usable.
type Config struct {
	// Now is the clock of signatures, tokens and sessions; time.Now when nil. Injected latency always waits on
	// time.Timer, so inside a testing/synctest bubble leave Now nil and both follow the bubble's clock.
	Now func() time.Time
	// MaxClockSkew is how far the date of a signed request may lie from Now; 5 minutes when zero, which is what AWS
	// allows for JSON services and stricter than STS, whose refusals speak of 15 minutes. S3 always allows 15.
	MaxClockSkew time.Duration
	// SessionTokenSize is the length of session tokens in characters; 1024 when zero, at most 8192. AWS leaves the size
	// open (https://docs.aws.amazon.com/STS/latest/APIReference/API_Credentials.html).
	SessionTokenSize int
	// SessionLifetime maps the DurationSeconds asked to the life a session really gets; nil gives what was asked.
	// See [AWS.SetSessionLifetime].
	SessionLifetime func(asked time.Duration) time.Duration
	// Seed seeds the dice of faults that have a probability. Equal seeds and call sequences give equal outcomes.
	Seed uint64
	// RecordLimit bounds the calls that [AWS.Calls] can list, oldest dropped first; 16384 when zero. [AWS.Count] stays
	// exact beyond it.
	RecordLimit int
}

// AWS is one AWS: accounts' users and roles, OIDC providers, sessions, resources, injected faults and the record of
// calls. All methods are safe for concurrent use.
type AWS struct {
	now       func() time.Time
	maxSkew   time.Duration
	tokenSize int

	iam      iam
	sessions sessions
	faults   faults
	calls    calls
	store    resources
	services map[string]service
}

// New returns an empty stand-in: no user, no role, no provider.
func New(cfg Config) (*AWS, error) {
	if cfg.SessionTokenSize < 0 || cfg.SessionTokenSize > 8192 {
		return nil, fmt.Errorf("session token size %d: want 1 to 8192 characters, or 0 for the default", cfg.SessionTokenSize)
	}
	if cfg.MaxClockSkew < 0 || cfg.RecordLimit < 0 {
		return nil, errors.New("negative clock skew or record limit")
	}
	a := &AWS{now: cfg.Now, maxSkew: cfg.MaxClockSkew, tokenSize: cfg.SessionTokenSize}
	if a.now == nil {
		a.now = time.Now
	}
	if a.maxSkew == 0 {
		a.maxSkew = 5 * time.Minute
	}
	if a.tokenSize == 0 {
		a.tokenSize = 1024
	}
	a.iam.init()
	a.sessions.init(cfg.SessionLifetime)
	a.faults.init(cfg.Seed)
	a.calls.init(cfg.RecordLimit)
	a.store.init()
	a.services = map[string]service{
		"sts":            stsService{a},
		"s3":             s3Service{a},
		"kms":            kmsService{a},
		"secretsmanager": secretsService{a},
	}
	return a, nil
}

// Endpoint returns the handler of a listener that speaks for all services in a region. The service is the one named in
// the signature's credential scope, as at AWS; unsigned requests go to STS, the only service that answers any.
//
// region is what the listener stands for. A signature scoped to another region is refused, as a regional endpoint does.
// An empty region accepts every region and believes the scope, or for unsigned calls the Host header
// (sts.REGION.amazonaws.com and its FIPS and China forms; sts.amazonaws.com is us-east-1).
func (a *AWS) Endpoint(region string) http.Handler { return &endpoint{aws: a, region: region} }

// iam is the identities of all accounts.
type iam struct {
	mu        sync.RWMutex // guards the following
	users     map[string]*user
	roles     map[string]*role
	providers map[string]*provider
}

func (i *iam) init() {
	i.users = map[string]*user{}
	i.roles = map[string]*role{}
	i.providers = map[string]*provider{}
}
