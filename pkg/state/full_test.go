package state_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podrole/podrole/pkg/sts"
)

// smallDisk returns a folder on a file system with room for little, which only this goroutine sees and which goes with it,
// and functions that take all of the room and give it back.
func smallDisk(t *testing.T) (path string, fill, free func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount: run the tests as root")
	}
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and the mount with the thread
	check(t, unix.Unshare(unix.CLONE_NEWNS))
	check(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	disk := t.TempDir()
	check(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { check(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	filler := filepath.Join(disk, "filler")
	fill = func() {
		f, err := os.OpenFile(filler, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		check(t, err)
		defer f.Close()
		for err == nil {
			_, err = f.Write(bytes.Repeat([]byte("x"), 4096))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	return filepath.Join(disk, "state"), fill, func() { check(t, os.Remove(filler)) }
}

func token(account string) (sts.TokenKey, sts.Token) {
	now := time.Now().UTC().Round(0)
	return sts.TokenKey{Namespace: "billing", ServiceAccount: account, Audience: "sts.amazonaws.com"},
		sts.Token{Value: secret, Issued: now, Expires: now.Add(6 * time.Hour)}
}

// TestFullAtTheStart: an agent starts all the same, goes by what is there, and writes as soon as there is room.
func TestFullAtTheStart(t *testing.T) {
	for _, kept := range []bool{true, false} {
		t.Run(map[bool]string{true: "something_is_kept", false: "nothing_is_kept"}[kept], func(t *testing.T) {
			path, fill, free := smallDisk(t)
			if kept {
				d, _ := open(t, path)
				check(t, d.Sessions().Save(session(0)))
				d.Decisions().Put(decision(0))
				_, err := d.TokenKeys()
				check(t, err)
			}
			fill()
			d, l := open(t, path)
			if !d.Superseded() || !strings.Contains(l.String(), "is full") {
				t.Errorf("superseded %t, log:\n%s", d.Superseded(), l)
			}
			if got := d.Sessions().Load(grant(0)); (got != nil) != kept {
				t.Errorf("loaded %+v", got)
			}
			if keys, err := d.TokenKeys(); len(keys) != 1 || (err == nil) != kept {
				t.Errorf("%d keys, %v", len(keys), err)
			}
			check(t, d.Sessions().Save(session(1)))
			key, tok := token("api")
			check(t, d.Tokens().Save(key, tok))
			if err := d.Take(); !errors.Is(err, unix.ENOSPC) || !d.Superseded() {
				t.Errorf("taken without room: %v", err)
			}
			free()
			check(t, d.Take())
			check(t, d.Sessions().Save(session(2)))
			third, l := open(t, path)
			for i, want := range map[int]bool{0: kept, 1: false, 2: true} {
				if got := third.Sessions().Load(grant(i)) != nil; got != want {
					t.Errorf("session %d is kept: %t, want %t", i, got, want)
				}
			}
			if _, ok := third.Tokens().Load(key); !ok {
				t.Error("the token is not kept")
			}
			if l.String() != "" {
				t.Errorf("log:\n%s", l)
			}
		})
	}
}

// TestFullMeanwhile: what is there stays, but for a decision that is no longer true; and what could not be written is when
// there is room.
func TestFullMeanwhile(t *testing.T) {
	path, fill, free := smallDisk(t)
	d, _ := open(t, path)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	decisions := d.Decisions()
	for i := range 2 {
		v := decision(i)
		v.Decided = v.Decided.Add(-time.Minute)
		decisions.Put(v)
	}
	check(t, decisions.Run(ended))
	old := session(0)
	check(t, d.Sessions().Save(old))
	keys, err := d.TokenKeys()
	check(t, err)

	fill()
	fresh := session(0)
	fresh.Credentials.AccessKeyID = "ASIANEWER"
	if err := d.Sessions().Save(fresh); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("saved without room: %v", err)
	}
	if got := d.Sessions().Load(grant(0)); got == nil || got.Credentials.AccessKeyID != old.Credentials.AccessKeyID {
		t.Errorf("the session from before: %+v", got)
	}
	same, changed := decision(0), decision(1)
	changed.Grant.RoleARN = "arn:aws:iam::111122223333:role/other"
	changed.Grant.ExternalID = strings.Repeat("x", 16<<10) // more than the file from before takes
	decisions.Put(same)
	decisions.Put(changed)
	decisions.Confirm(time.Now())
	check(t, decisions.Run(ended))
	roles := func() map[string]string {
		m := make(map[string]string)
		d, _ := open(t, path)
		for _, v := range d.Decisions().Recent(time.Hour) {
			m[v.Workload.UID] = v.Grant.RoleARN
		}
		return m
	}
	if got := decisions.Recent(time.Hour); len(got) != 1 || got[0].Workload != same.Workload {
		t.Errorf("without room: %+v, want the one that is as before", got)
	}
	if _, err := os.Stat(filepath.Join(path, "confirmed")); err == nil {
		t.Error("confirmed, though not all is as it is there")
	}

	free()
	decisions.Confirm(time.Now())
	check(t, decisions.Run(ended))
	if got := roles(); got["uid-0"] != same.Grant.RoleARN || got["uid-1"] != changed.Grant.RoleARN {
		t.Errorf("with room again: %q", got)
	}
	again, _ := open(t, path)
	if after, err := again.TokenKeys(); err != nil || !bytes.Equal(after[0], keys[0]) {
		t.Errorf("the keys are others, %v", err)
	}
}

// TestGone: a folder that was removed is, whether or not another is in its place, and nothing else is.
func TestGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d, _ := open(t, path)
	expect := func(want bool, when string) {
		t.Helper()
		if got := d.Gone(); got != want {
			t.Errorf("%s: gone %t, want %t", when, got, want)
		}
	}
	expect(false, "opened")
	check(t, os.RemoveAll(filepath.Join(path, "sessions")))
	check(t, os.Remove(filepath.Join(path, "lock")))
	expect(false, "emptied")
	check(t, os.Rename(path, path+".old"))
	expect(false, "renamed")
	check(t, os.RemoveAll(path+".old"))
	expect(true, "removed")
	check(t, os.Mkdir(path, 0o700))
	expect(true, "another is in its place")
}

// TestLateTokens: tokens that came while another agent owned the folder are kept once this one owns it again, unless the
// other one had newer ones or they are not to be kept any more.
func TestLateTokens(t *testing.T) {
	path := t.TempDir()
	old, _ := open(t, path)
	fresh, _ := open(t, path)
	for _, account := range []string{"late", "older", "newer", "refused"} {
		key, tok := token(account)
		check(t, old.Tokens().Save(key, tok))
	}
	key, tok := token("newer")
	tok.Expires = tok.Expires.Add(time.Hour)
	check(t, fresh.Tokens().Save(key, tok))
	key, earlier := token("older")
	earlier.Expires = earlier.Expires.Add(-time.Hour)
	check(t, fresh.Tokens().Save(key, earlier))
	key, _ = token("refused")
	check(t, old.Tokens().Delete(key))
	check(t, old.Take())

	third, l := open(t, path)
	for account, want := range map[string]time.Duration{"late": 6 * time.Hour, "older": 6 * time.Hour, "newer": 7 * time.Hour, "refused": 0} {
		key, _ := token(account)
		got, ok := third.Tokens().Load(key)
		if ok != (want > 0) || ok && got.Expires.Sub(got.Issued) != want {
			t.Errorf("%s: %v, %t, want one of %s", account, got, ok, want)
		}
	}
	if l.String() != "" {
		t.Errorf("log:\n%s", l)
	}
}
