package state

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/podrole/podrole/pkg/role"
)

// FuzzRecords: no content of a file panics, gets into an error, or comes out as something that would be served though it
// is of another grant, of no life or of the future.
func FuzzRecords(f *testing.F) {
	now := time.Now().UTC()
	g := grantRecord{
		Namespace: "n", ServiceAccount: "s", RoleARN: "arn:aws:iam::1:role/r", SessionName: "x", Source: role.WebIdentity,
	}
	for _, r := range []any{
		sessionRecord{
			header{version, kindSession}, g, "ASIA", "secret", "token", "", now, now.Add(time.Hour), 30 * time.Minute,
		},
		tokenRecord{header{version, kindToken}, tokenKeyRecord{"n", "s", "a"}, "token", now, now.Add(time.Hour)},
		decisionRecord{header{version, kindDecision}, workloadRecord{"n", "p", "u", "s"}, g, "policy", now, "", time.Time{}, "spot/*"},
		keyRing{header{version, kindKeys}, []keyRecord{{make([]byte, keySize), now}}},
		ownerRecord{header{version, "owner"}, 7, "id"},
		confirmedRecord{header{version, kindConfirmed}, now},
	} {
		data, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(data[:len(data)/2])
		f.Add([]byte(strings.Replace(string(data), `"version":1`, `"version":2`, 1)))
	}
	f.Add([]byte(`null`))
	f.Add([]byte(`{"version":1,"kind":"session","minted":"secretsecretsecret"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		quoted := func(err error) {
			if err != nil && len(data) > 12 && strings.Contains(err.Error(), string(data)) {
				t.Errorf("the content is in the error %q", err)
			}
		}
		var named struct {
			Grant    grantRecord    `json:"grant"`
			Key      tokenKeyRecord `json:"key"`
			Workload workloadRecord `json:"workload"`
		}
		_ = json.Unmarshal(data, &named)
		name := hashed(kindSession, named.Grant)
		s, err := parseSession(name, data)
		quoted(err)
		if err == nil && (s.Life() <= 0 || s.Life() > maxLife || time.Until(s.Minted) > maxAhead ||
			s.Grant != role.Grant(named.Grant) || s.Credentials.SecretAccessKey == "") {
			t.Errorf("took %+v", s)
		}
		if _, err := parseSession(hashed(kindSession, grantRecord{}), data); err == nil {
			t.Error("took a session of no grant")
		}
		_, token, err := parseToken(hashed(kindToken, named.Key), data)
		quoted(err)
		if err == nil && (token.Value == "" || !token.Expires.After(token.Issued)) {
			t.Errorf("took %#v", token)
		}
		v, err := parseDecision(hashed(kindDecision, named.Workload.UID), data)
		quoted(err)
		if err == nil && (v.Workload.UID == "" || v.Workload.Namespace != v.Grant.Namespace) {
			t.Errorf("took %+v", v)
		}
		ring, err := parseKeys(data)
		quoted(err)
		if err == nil && (len(ring.Keys) == 0 || len(ring.Keys[0].Secret) != keySize) {
			t.Error("took a ring without keys")
		}
		_, err = parseConfirmed(data)
		quoted(err)
	})
}
