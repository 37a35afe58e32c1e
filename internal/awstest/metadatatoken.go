package awstest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"
)

// token issues a session token: its expiry in nanoseconds and the HMAC of that, 56 characters in all.
func (m *Metadata) token(seconds int) string {
	expiry := m.aws.now().Add(time.Duration(seconds) * time.Second)
	raw := binary.BigEndian.AppendUint64(nil, uint64(expiry.UnixNano()))
	return base64.URLEncoding.EncodeToString(append(raw, m.mac(raw)...))
}

func (m *Metadata) mac(raw []byte) []byte {
	h := hmac.New(sha256.New, m.key)
	h.Write(raw)
	return h.Sum(nil)
}

// tokenLeft returns the whole seconds that a token has left, at least 1 for one that is valid, 0 for one that is not.
func (m *Metadata) tokenLeft(token string) int {
	raw, err := base64.URLEncoding.DecodeString(token)
	if err != nil || len(raw) != 8+sha256.Size || !hmac.Equal(m.mac(raw[:8]), raw[8:]) {
		return 0
	}
	left := time.Unix(0, int64(binary.BigEndian.Uint64(raw[:8]))).Sub(m.aws.now())
	if left <= 0 {
		return 0
	}
	return max(int(left/time.Second), 1)
}
