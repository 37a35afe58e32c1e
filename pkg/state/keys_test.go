package state

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/podrole/podrole/pkg/cache"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

// TestKeysRotate: the first key signs for a day and verifies for another one; no third is kept.
func TestKeysRotate(t *testing.T) {
	path := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d, err := Open(Config{Path: path, AllowDisk: true})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = d.Close() }()
		keys := func() [][]byte {
			t.Helper()
			keys, err := d.TokenKeys()
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range keys {
				if len(k) != 32 {
					t.Errorf("key of %d bytes", len(k))
				}
			}
			return keys
		}
		first := keys()
		time.Sleep(24*time.Hour - time.Second)
		if again := keys(); len(first) != 1 || len(again) != 1 || !bytes.Equal(first[0], again[0]) {
			t.Error("rotated within the day")
		}
		time.Sleep(time.Second)
		second := keys()
		if len(second) != 2 || !bytes.Equal(second[1], first[0]) || bytes.Equal(second[0], first[0]) {
			t.Errorf("after a day there are %d keys", len(second))
		}
		time.Sleep(24 * time.Hour)
		if third := keys(); len(third) != 2 || !bytes.Equal(third[1], second[0]) {
			t.Errorf("after two days there are %d keys", len(third))
		}
	})
}

// TestBounded: beyond its limit a folder drops what is of least use.
func TestBounded(t *testing.T) {
	d, err := Open(Config{Path: t.TempDir(), AllowDisk: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	d.sessions.limit = 3
	now := time.Now()
	grants := make([]role.Grant, 5)
	for i, life := range []time.Duration{5, 2, 4, 3, 6} {
		grants[i] = role.Grant{
			Namespace: "n", ServiceAccount: string(rune('a' + i)), RoleARN: "r", SessionName: "s", Source: role.WebIdentity,
		}
		err := d.Sessions().Save(&cache.Session{
			Grant: grants[i], Minted: now,
			Credentials: sts.Credentials{
				AccessKeyID: "A", SecretAccessKey: "S", SessionToken: "T", Expiration: now.Add(life * time.Hour),
			},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []bool{true, false, true, false, true} {
		if got := d.Sessions().Load(grants[i]) != nil; got != want {
			t.Errorf("session %d is there: %t", i, got)
		}
	}
}
