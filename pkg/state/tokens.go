package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/podrole/podrole/pkg/sts"
)

const kindToken = "service-account-token"

// maxTokenLife is more than AWS takes a token for: a day.
const maxTokenLife = 25 * time.Hour

// Tokens keeps the ServiceAccount tokens of a Dir, so that an API server that is down does not end sessions across a
// restart either. It is safe for concurrent use.
type Tokens struct{ dir *Dir }

var _ sts.TokenStore = Tokens{}

// Tokens returns the part of d that is an sts.TokenStore.
func (d *Dir) Tokens() Tokens { return Tokens{d} }

type tokenKeyRecord struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"service_account"`
	Audience       string `json:"audience"`
}

type tokenRecord struct {
	header
	Key     tokenKeyRecord `json:"key"`
	Value   string         `json:"value"`
	Issued  time.Time      `json:"issued"`
	Expires time.Time      `json:"expires"`
}

// Load implements sts.TokenStore.
func (t Tokens) Load(k sts.TokenKey) (sts.Token, bool) {
	name := hashed(kindToken, tokenKeyRecord(k))
	var token sts.Token
	ok := t.dir.load(&t.dir.tokens, name, func(data []byte) (err error) {
		_, token, err = parseToken(name, data)
		return err
	})
	return token, ok && time.Now().Before(token.Expires)
}

// Save implements sts.TokenStore.
func (t Tokens) Save(k sts.TokenKey, token sts.Token) error {
	r := tokenRecord{
		header{version, kindToken}, tokenKeyRecord(k), token.Value, token.Issued.Round(0), token.Expires.Round(0),
	}
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode token of %s/%s: not possible", k.Namespace, k.ServiceAccount) // err may quote
	}
	name, v := hashed(kindToken, r.Key), validity{until: token.Expires, expires: true}
	return t.dir.writeOr(
		func() error { return t.dir.tokens.put(name, data, v) },
		func() {
			if len(t.dir.late) < maxTokens {
				t.dir.late[name] = lateToken{data, v}
			}
		},
	)
}

// Delete implements sts.TokenStore.
func (t Tokens) Delete(k sts.TokenKey) error {
	name := hashed(kindToken, tokenKeyRecord(k))
	return t.dir.writeOr(func() error { return t.dir.tokens.remove(name) }, func() { delete(t.dir.late, name) })
}

// lateToken is the file of a token that came while this process did not own the folder. Whoever has tokens does not save
// them twice, unlike sessions and decisions.
type lateToken struct {
	data []byte
	validity
}

// keepLate writes the tokens that came meanwhile, unless a newer one is there. Caller is in locked.
func (d *Dir) keepLate() {
	for name, t := range d.late {
		if kept, there := d.tokens.files[name]; t.over(time.Now()) || there && !kept.until.Before(t.until) {
			continue
		}
		if err := d.tokens.put(name, t.data, t.validity); err != nil {
			d.logger.Warn("token not kept for the next agent", "error", err)
		}
	}
	clear(d.late)
}

// parseToken reads the file of that name.
func parseToken(name string, data []byte) (sts.TokenKey, sts.Token, error) {
	var r tokenRecord
	if err := decode(data, kindToken, &r); err != nil {
		return sts.TokenKey{}, sts.Token{}, err
	}
	token := sts.Token{Value: r.Value, Issued: r.Issued, Expires: r.Expires}
	var err error
	switch life := r.Expires.Sub(r.Issued); {
	case r.Key.Namespace == "" || r.Key.ServiceAccount == "" || r.Key.Audience == "" || r.Value == "":
		err = errors.New("it is incomplete")
	case name != hashed(kindToken, r.Key):
		err = errName
	case life <= 0 || life > maxTokenLife:
		err = fmt.Errorf("it is of %s: no token lives as long", life)
	case time.Until(r.Issued) > maxAhead:
		err = errors.New("it was issued in the future: the clock was set back")
	}
	return sts.TokenKey(r.Key), token, err
}
