package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/podrole/podrole/pkg/cache"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

const kindSession = "session"

// maxLife is more than AWS gives any session: twelve hours.
const maxLife = 13 * time.Hour

// Sessions keeps the Sessions of a Dir, one file each, named by the hash of the whole Grant. It is safe for concurrent
// use.
type Sessions struct{ dir *Dir }

var _ cache.Store = Sessions{}

// Sessions returns the part of d that is a cache.Store.
func (d *Dir) Sessions() Sessions { return Sessions{d} }

// sessionRecord is a Session as it is written, secrets included. It never leaves this package.
type sessionRecord struct {
	header
	Grant           grantRecord   `json:"grant"`
	AccessKeyID     string        `json:"access_key_id"`
	SecretAccessKey string        `json:"secret_access_key"`
	SessionToken    string        `json:"session_token"`
	AssumedRoleARN  string        `json:"assumed_role_arn,omitempty"`
	Minted          time.Time     `json:"minted"`
	Expiration      time.Time     `json:"expiration"`
	RefreshLeft     time.Duration `json:"refresh_left"`
}

// Load implements cache.Store. The Session has no Body. One that cannot be trusted is set aside and not returned.
func (s Sessions) Load(g role.Grant) *cache.Session {
	name := hashed(kindSession, grantRecord(g))
	var session *cache.Session
	ok := s.dir.load(&s.dir.sessions, name, func(data []byte) (err error) {
		session, err = parseSession(name, data)
		return err
	})
	if !ok || !time.Now().Before(session.Credentials.Expiration) {
		return nil
	}
	return session
}

// Save implements cache.Store.
func (s Sessions) Save(session *cache.Session) error {
	c := session.Credentials
	r := sessionRecord{
		header:          header{version, kindSession},
		Grant:           grantRecord(session.Grant),
		AccessKeyID:     c.AccessKeyID,
		SecretAccessKey: c.SecretAccessKey,
		SessionToken:    c.SessionToken,
		AssumedRoleARN:  c.AssumedRoleARN,
		Minted:          session.Minted.Round(0),
		Expiration:      c.Expiration.Round(0),
		RefreshLeft:     session.RefreshLeft,
	}
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode session for %s: not possible", session.Grant.RoleARN) // err may quote
	}
	return s.dir.write(func() error {
		return s.dir.sessions.put(hashed(kindSession, r.Grant), data, validity{until: c.Expiration, expires: true})
	})
}

// Delete implements cache.Store.
func (s Sessions) Delete(g role.Grant) error {
	return s.dir.write(func() error { return s.dir.sessions.remove(hashed(kindSession, grantRecord(g))) })
}

// parseSession reads the file of that name. It returns a Session, without a Body, also with an error.
func parseSession(name string, data []byte) (*cache.Session, error) {
	var r sessionRecord
	s := new(cache.Session)
	if err := decode(data, kindSession, &r); err != nil {
		return s, err
	}
	*s = cache.Session{
		Grant: role.Grant(r.Grant),
		Credentials: sts.Credentials{
			AccessKeyID:     r.AccessKeyID,
			SecretAccessKey: r.SecretAccessKey,
			SessionToken:    r.SessionToken,
			Expiration:      r.Expiration,
			AssumedRoleARN:  r.AssumedRoleARN,
		},
		Minted:      r.Minted,
		RefreshLeft: r.RefreshLeft,
	}
	switch {
	case r.Grant.validate() != nil:
		return s, r.Grant.validate()
	case name != hashed(kindSession, r.Grant):
		return s, errName
	case r.AccessKeyID == "" || r.SecretAccessKey == "" || r.SessionToken == "":
		return s, errors.New("its credentials are incomplete")
	case s.Life() <= 0 || s.Life() > maxLife:
		return s, fmt.Errorf("it is of %s: no session lives as long", s.Life())
	case time.Until(r.Minted) > maxAhead:
		return s, errors.New("it was minted in the future: the clock was set back")
	}
	return s, nil
}
