package state

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

const (
	kindKeys = "token-keys"
	keysName = "keys"
	keySize  = 32
	// keyPeriod is how long a key signs. Tokens live six hours at most, so that no token outlives the second key of the
	// ring.
	keyPeriod = 24 * time.Hour
)

// keyRing is the record of the keys of IMDSv2 tokens, the one that signs first.
type keyRing struct {
	header
	Keys []keyRecord `json:"keys"`
}

type keyRecord struct {
	Secret []byte    `json:"secret"`
	Made   time.Time `json:"made"`
}

// TokenKeys returns the keys of IMDSv2 tokens: the first signs, all of them verify. There are two at most. The owner
// makes the first one when there is none, and a new one when it has signed for a day; calling it now and then is what
// rotates them. Whoever is not the owner gets the ring as it is, so that two agents take each other's tokens.
//
// An error comes with keys of this process alone: tokens are then good until it ends.
func (d *Dir) TokenKeys() (keys [][]byte, err error) {
	var ring keyRing
	err = d.write(func() error {
		var err error
		if ring, err = d.readKeys(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.setAside(keysName, err)
		}
		now := time.Now()
		if len(ring.Keys) > 0 && now.Sub(ring.Keys[0].Made) < keyPeriod {
			return nil
		}
		ring.add(now)
		data, err := json.Marshal(ring)
		if err != nil {
			return errors.New("encode token keys: not possible")
		}
		return d.replace(keysName, data)
	})
	if len(ring.Keys) == 0 { // not the owner
		if ring, _ = d.readKeys(); len(ring.Keys) == 0 {
			ring.add(time.Now())
			err = errors.Join(err, errors.New("no token keys to adopt"))
		}
	}
	for _, k := range ring.Keys {
		keys = append(keys, k.Secret)
	}
	if err != nil {
		return keys, fmt.Errorf("keep token keys: %w", err)
	}
	return keys, nil
}

// add puts a new key first, and keeps one other.
func (r *keyRing) add(now time.Time) {
	secret := make([]byte, keySize)
	rand.Read(secret) // never fails
	r.header = header{version, kindKeys}
	r.Keys = append([]keyRecord{{secret, now.Round(0)}}, r.Keys[:min(len(r.Keys), 1)]...)
}

func (d *Dir) readKeys() (keyRing, error) {
	data, err := d.read(keysName)
	if err != nil {
		return keyRing{}, err
	}
	return parseKeys(data)
}

func parseKeys(data []byte) (keyRing, error) {
	var r keyRing
	if err := decode(data, kindKeys, &r); err != nil {
		return keyRing{}, err
	}
	if n := len(r.Keys); n < 1 || n > 2 {
		return keyRing{}, fmt.Errorf("it holds %d keys, not one or two", n)
	}
	for _, k := range r.Keys {
		switch {
		case len(k.Secret) != keySize:
			return keyRing{}, fmt.Errorf("a key of %d bytes, not %d", len(k.Secret), keySize)
		case time.Until(k.Made) > maxAhead:
			return keyRing{}, errors.New("a key was made in the future: the clock was set back")
		}
	}
	return r, nil
}
