package proxy

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// An IMDSv2 token is a statement of ours, signed and not stored, so that it outlives the agent that made it:
//
//	 0     version
//	 1     flags
//	 2.. 3 key ID
//	 4.. 7 expiry, Unix seconds, big endian
//	 8..23 HMAC-SHA256 over the above and the source address, the first half
//	24..39 HMAC-SHA256 over the above, the source address and the pod's UID, the first half
//
// 40 bytes make 56 characters of base64 that end in "==", which is what the service's own look like. There are two
// signatures because the second one needs to know the pod: a request with a bad token is refused before it parks.
// Half of an HMAC-SHA256 still takes 2^128 guesses (RFC 2104, section 5).
const (
	tokenHeader  = 8
	tokenMAC     = sha256.Size / 2
	tokenSize    = tokenHeader + 2*tokenMAC
	tokenLength  = 56 // as text
	tokenVersion = 1
	tokenBound   = 1 << 0 // flag: the pod was known when the token was minted
)

// The lifetimes that a client may ask for, in seconds
// (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html).
const (
	minTokenTTL = 1
	maxTokenTTL = 21600
)

// MinKeySize is the least size of a token key, in bytes.
const MinKeySize = 32

// tokenEncoding puts '-' and '_' where the standard alphabet has '+' and '/', as the service's tokens do.
var tokenEncoding = base64.URLEncoding.Strict()

// errToken is any reason not to take a token. A client learns no more than that.
var errToken = errors.New("the token is not valid here and now")

// keyring signs tokens with its first key and verifies them with all.
type keyring []*key

func newKeyring(keys [][]byte) (keyring, error) {
	if len(keys) == 0 {
		return nil, errors.New("at least one token key is required")
	}
	ring := make(keyring, len(keys))
	for i, secret := range keys {
		if len(secret) < MinKeySize {
			return nil, fmt.Errorf("token key %d has %d bytes, at least %d are required", i, len(secret), MinKeySize)
		}
		ring[i] = newKey(secret)
	}
	return ring, nil
}

// mint returns a token for the pod at source; uid is empty when the pod is not known.
func (r keyring) mint(now time.Time, ttl int, source netip.Addr, uid string) string {
	k := r[0]
	var t token
	t.raw[0] = tokenVersion
	if uid != "" {
		t.raw[1] = tokenBound
	}
	binary.BigEndian.PutUint16(t.raw[2:], k.id)
	binary.BigEndian.PutUint32(t.raw[4:], uint32(now.Unix()+int64(ttl)))
	m := k.macs.Get().(*mac)
	defer k.macs.Put(m)
	copy(t.addressMAC(), m.sum(t.header(), source, ""))
	copy(t.podMAC(), m.sum(t.header(), source, "pod "+uid))
	return tokenEncoding.EncodeToString(t.raw[:])
}

// verify checks all of a token that does not need the pod: form, key, expiry and address. The token it returns is
// good for a pod only if verifyPod says so too.
func (r keyring) verify(text string, now time.Time, source netip.Addr) (token, error) {
	if len(text) != tokenLength {
		return token{}, errToken
	}
	var (
		t   token
		in  [tokenLength]byte
		out [tokenSize + 2]byte // the decoder wants room for what the padding stands for
	)
	copy(in[:], text)
	if n, err := tokenEncoding.Decode(out[:], in[:]); err != nil || n != tokenSize {
		return token{}, errToken
	}
	copy(t.raw[:], out[:])
	if t.raw[0] != tokenVersion || t.raw[1]&^tokenBound != 0 || t.remaining(now) <= 0 {
		return token{}, errToken
	}
	for _, k := range r {
		if k.id == t.keyID() && k.check(t.addressMAC(), t.header(), source, "") {
			t.key = k
			return t, nil
		}
	}
	return token{}, errToken
}

// token is one that has come back.
type token struct {
	raw [tokenSize]byte
	key *key // that verified the address; nil for the zero token, of a request without any
}

func (t *token) header() []byte     { return t.raw[:tokenHeader] }
func (t *token) addressMAC() []byte { return t.raw[tokenHeader : tokenHeader+tokenMAC] }
func (t *token) podMAC() []byte     { return t.raw[tokenHeader+tokenMAC:] }
func (t *token) keyID() uint16      { return binary.BigEndian.Uint16(t.raw[2:]) }

// remaining returns the rest of the token's life in seconds.
func (t *token) remaining(now time.Time) int {
	return int(int64(binary.BigEndian.Uint32(t.raw[4:])) - now.Unix())
}

// verifyPod reports whether the token, once verified for source, is also good for the pod with this UID: the one it
// was minted for, or any pod at that address when none was known then.
func (t *token) verifyPod(source netip.Addr, uid string) bool {
	if t.raw[1]&tokenBound == 0 {
		uid = ""
	}
	return t.key.check(t.podMAC(), t.header(), source, "pod "+uid)
}

// key is one key of the ring. Its ID only saves trying the others: two keys with the same one both work.
type key struct {
	id   uint16
	macs sync.Pool // of *mac: preparing the key costs more than using it
}

func newKey(secret []byte) *key {
	secret = slices.Clone(secret)
	id := sha256.Sum256(append([]byte("podrole token key id\x00"), secret...))
	return &key{
		id:   binary.BigEndian.Uint16(id[:]),
		macs: sync.Pool{New: func() any { return &mac{hash: hmac.New(sha256.New, secret)} }},
	}
}

// check reports, in constant time, whether want is the MAC of the rest.
func (k *key) check(want, header []byte, source netip.Addr, subject string) bool {
	m := k.macs.Get().(*mac)
	defer k.macs.Put(m)
	return subtle.ConstantTimeCompare(want, m.sum(header, source, subject)) == 1
}

// mac is a hash with its key in place, and room to work in.
type mac struct {
	hash hash.Hash
	buf  []byte
}

// sum returns the first half of the MAC, valid until the next call. The message is unambiguous: the header has a
// fixed length, the address says its own, and the subject is the rest.
func (m *mac) sum(header []byte, source netip.Addr, subject string) []byte {
	m.buf = append(m.buf[:0], header...)
	m.buf = append(m.buf, byte(source.BitLen()/8))
	m.buf, _ = source.AppendBinary(m.buf) // never fails
	m.buf = append(m.buf, subject...)
	m.hash.Reset()
	m.hash.Write(m.buf) // never fails
	m.buf = m.hash.Sum(m.buf[:0])
	return m.buf[:tokenMAC]
}
