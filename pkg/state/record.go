package state

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/podrole/podrole/pkg/role"
)

// version is that of every record. A change that an older agent would misread takes a higher one: records of another
// version are set aside, which costs a few calls to STS once.
const version = 1

// maxAhead is how far in the future something may have happened: the clock was corrected since.
const maxAhead = 2 * time.Minute

// header begins every record.
type header struct {
	Version int    `json:"version"`
	Kind    string `json:"kind"`
}

func (h header) check(kind string) error {
	if h.Version != version || h.Kind != kind {
		return fmt.Errorf("a record of another kind or version: want %s, version %d", kind, version)
	}
	return nil
}

// decode reads a record. What encoding/json says of bad input may quote it, so none of that gets out.
func decode(data []byte, kind string, record interface{ check(kind string) error }) error {
	if err := json.Unmarshal(data, record); err != nil {
		return errors.New("not a record: damaged JSON")
	}
	return record.check(kind)
}

// hashed is the name of the file about a key, and the same for equal keys only.
func hashed(kind string, key any) string {
	data, err := json.Marshal(key)
	if err != nil {
		panic(err) // structs of strings and numbers always encode
	}
	sum := sha256.Sum256(append([]byte(kind+"\x00"), data...))
	return hex.EncodeToString(sum[:])
}

// grantRecord is a Grant as it is written. The conversion holds at compile time that no field is left out.
type grantRecord struct {
	Namespace      string        `json:"namespace"`
	ServiceAccount string        `json:"service_account"`
	RoleARN        string        `json:"role_arn"`
	ExternalID     string        `json:"external_id,omitempty"`
	Duration       time.Duration `json:"duration"`
	SessionName    string        `json:"session_name"`
	Audience       string        `json:"audience,omitempty"`
	Tags           role.Tags     `json:"tags,omitzero"`
	Source         role.Source   `json:"source"`
}

func (g grantRecord) validate() error {
	if g.Namespace == "" || g.ServiceAccount == "" || g.RoleARN == "" || g.SessionName == "" || g.Source == "" {
		return errors.New("its grant is incomplete")
	}
	return nil
}

// workloadRecord is a Workload as it is written.
type workloadRecord struct {
	Namespace      string `json:"namespace"`
	Name           string `json:"name"`
	UID            string `json:"uid"`
	ServiceAccount string `json:"service_account"`
}

var errName = errors.New("its name is not that of its content")
