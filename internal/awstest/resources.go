package awstest

import (
	"crypto/cipher"
	"sync"
	"time"
)

// resources are what the services besides STS hold.
type resources struct {
	mu      sync.RWMutex        // guards the following
	buckets map[string][]bucket // by account
	keys    map[string]kmsKey   // by ARN
	secrets map[string]secret   // by ARN
}

type bucket struct {
	name    string
	created time.Time
}

type kmsKey struct {
	arn     arn
	aead    cipher.AEAD
	created time.Time
}

type secret struct {
	arn     arn
	name    string
	value   string
	version string
	created time.Time
}

func (r *resources) init() {
	r.buckets = map[string][]bucket{}
	r.keys = map[string]kmsKey{}
	r.secrets = map[string]secret{}
}
