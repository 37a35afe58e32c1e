package sts

import (
	"log/slog"
	"time"
)

// Credentials are temporary credentials as STS returned them. They print as their access key ID and expiry only,
// whichever way they reach a log or an error.
type Credentials struct {
	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string // up to 4096 bytes
	Expiration      time.Time
	AssumedRoleARN  string // arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION
}

// String implements fmt.Stringer without the secret parts.
func (c Credentials) String() string {
	return c.AccessKeyID + " until " + c.Expiration.UTC().Format(time.RFC3339)
}

// GoString implements fmt.GoStringer, so that %#v prints no secret either.
func (c Credentials) GoString() string { return "sts.Credentials{" + c.String() + "}" }

// LogValue implements slog.LogValuer without the secret parts.
func (c Credentials) LogValue() slog.Value {
	return slog.GroupValue(slog.String("access_key_id", c.AccessKeyID), slog.Time("expiration", c.Expiration))
}
