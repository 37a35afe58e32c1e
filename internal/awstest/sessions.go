package awstest

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// Session describes temporary credentials that were issued, without their secrets: it tells whose credentials a client
// holds from their access key ID alone.
type Session struct {
	AccessKeyID    string
	RoleARN        string
	SessionName    string
	AssumedRoleARN string // arn:PARTITION:sts::ACCOUNT:assumed-role/ROLE/SESSION
	Action         string // how it came to be: AssumeRole, AssumeRoleWithWebIdentity, InstanceProfile or Issue
	Issued         time.Time
	Expires        time.Time
	Tags           map[string]string
}

// session is temporary credentials. It is immutable.
type session struct {
	Session
	principal  principal
	secret     string
	token      string
	transitive map[string]bool // keys of the tags that a chained session inherits
	identity   string          // source identity; inherited by chained sessions
}

type sessions struct {
	mu       sync.RWMutex // guards the following
	byKey    map[string]*session
	lifetime func(time.Duration) time.Duration
	sweepAt  int // size at which expired sessions are dropped
}

func (s *sessions) init(lifetime func(time.Duration) time.Duration) {
	s.byKey = map[string]*session{}
	s.lifetime = lifetime
	s.sweepAt = 4096
}

// SetSessionLifetime replaces the mapping from the duration asked of STS to the life that new sessions get, so that
// hours of rotations fit into minutes: an hour asked may give twelve seconds. The duration asked is validated as ever
// and Expiration tells the truth. nil gives what was asked. Credentials of the metadata service are not affected.
func (a *AWS) SetSessionLifetime(f func(asked time.Duration) time.Duration) {
	a.sessions.mu.Lock()
	defer a.sessions.mu.Unlock()
	a.sessions.lifetime = f
}

// ScaleLifetime returns a mapping for SetSessionLifetime that divides the duration asked, with a floor of one second,
// the resolution of an Expiration.
func ScaleLifetime(divisor float64) func(time.Duration) time.Duration {
	return func(asked time.Duration) time.Duration {
		return max(time.Duration(float64(asked)/divisor), time.Second)
	}
}

// LookupSession returns the session of an access key ID, also after it expired (for an hour at least).
func (a *AWS) LookupSession(accessKeyID string) (Session, bool) {
	if s := a.sessions.get(accessKeyID); s != nil {
		out := s.Session
		out.Tags = maps.Clone(s.Tags)
		return out, true
	}
	return Session{}, false
}

// Issue mints a session of a role without a call to STS and without asking its trust policy: credentials for a test
// that is not about how it got them. lifetime is an hour when zero; a negative one gives credentials that have expired.
func (a *AWS) Issue(roleARN, sessionName string, lifetime time.Duration) (aws.Credentials, error) {
	r := a.iam.role(roleARN)
	if r == nil {
		return aws.Credentials{}, fmt.Errorf("issue session: no role %s: put it first", roleARN)
	}
	if lifetime == 0 {
		lifetime = time.Hour
	}
	s := a.sessions.mint(a.now(), a.tokenSize, mintRequest{role: r, name: sessionName, action: "Issue", exact: lifetime})
	return s.credentials(), nil
}

// credentials returns the session in the SDK's form.
func (s *session) credentials() aws.Credentials {
	return aws.Credentials{
		AccessKeyID: s.AccessKeyID, SecretAccessKey: s.secret, SessionToken: s.token, Source: "awstest",
		CanExpire: true, Expires: s.Expires, AccountID: s.principal.account,
	}
}

// mintRequest is what shapes a session once it has been allowed.
type mintRequest struct {
	role       *role
	name       string
	action     string
	asked      time.Duration // goes through the lifetime mapping
	exact      time.Duration // instead of asked: does not
	tags       map[string]string
	transitive map[string]bool
	identity   string
}

func (s *sessions) mint(now time.Time, tokenSize int, r mintRequest) *session {
	assumed := arn{
		partition: r.role.arn.partition, service: "sts", account: r.role.arn.account,
		resource: "assumed-role/" + r.role.arn.name() + "/" + r.name,
	}.String()
	minted := &session{
		Session: Session{
			AccessKeyID: "ASIA" + randomID(), RoleARN: r.role.arn.String(), SessionName: r.name,
			AssumedRoleARN: assumed, Action: r.action, Issued: now, Tags: r.tags,
		},
		principal: principal{
			kind: sessionPrincipal, arn: assumed, userID: r.role.id + ":" + r.name, account: r.role.arn.account,
			partition: r.role.arn.partition, roleARN: r.role.arn.String(), tags: r.tags,
		},
		secret: randomBase64(40), token: randomBase64(tokenSize), transitive: r.transitive, identity: r.identity,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	life := r.exact
	if life == 0 {
		if life = r.asked; s.lifetime != nil {
			life = s.lifetime(r.asked)
		}
	}
	// Expiration is told in whole seconds; the session ends exactly when it says.
	minted.Expires = now.Add(life).Truncate(time.Second).UTC()
	s.byKey[minted.AccessKeyID] = minted
	if len(s.byKey) >= s.sweepAt {
		maps.DeleteFunc(s.byKey, func(_ string, x *session) bool { return now.Sub(x.Expires) > time.Hour })
		s.sweepAt = 2*len(s.byKey) + 4096
	}
	return minted
}

func (s *sessions) get(accessKeyID string) *session {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byKey[accessKeyID]
}

// randomBase64 returns n random characters of the standard base64 alphabet: / and + included, as AWS's secrets and
// tokens have them, so that clients which forget to escape are found out.
func randomBase64(n int) string {
	raw := make([]byte, n*3/4+1)
	rand.Read(raw) // never fails
	return strings.TrimRight(base64.StdEncoding.EncodeToString(raw), "=")[:n]
}
