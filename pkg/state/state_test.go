package state_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/podrole/podrole/pkg/cache"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/state"
	"github.com/podrole/podrole/pkg/sts"
)

const secret = "wJalrXUtnFEMIsecret"

func grant(i int) role.Grant {
	return role.Grant{
		Namespace: "billing", ServiceAccount: fmt.Sprintf("api-%d", i), RoleARN: "arn:aws:iam::111122223333:role/app",
		ExternalID: "4711", Duration: time.Hour, SessionName: "billing.api@n1", Audience: "sts.amazonaws.com",
		Tags: role.Tags{Cluster: "prod", Namespace: "billing", ServiceAccount: "api"}, Source: role.AssumeRole,
	}
}

func session(i int) *cache.Session {
	now := time.Now().UTC().Round(0)
	return &cache.Session{
		Grant: grant(i),
		Credentials: sts.Credentials{
			AccessKeyID: fmt.Sprintf("ASIA%d", i), SecretAccessKey: secret, SessionToken: secret + secret,
			Expiration: now.Add(time.Hour), AssumedRoleARN: "arn:aws:sts::111122223333:assumed-role/app/x",
		},
		Minted: now, RefreshLeft: 31 * time.Minute,
	}
}

func decision(i int) state.Decision {
	g := grant(i)
	return state.Decision{
		Workload: role.Workload{
			Namespace: g.Namespace, Name: fmt.Sprintf("api-%d-0", i), UID: fmt.Sprintf("uid-%d", i),
			ServiceAccount: g.ServiceAccount,
		},
		Grant: g, Decided: time.Now().UTC().Round(0), MetadataAllow: "spot/*",
	}
}

// log is a logger's output.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func open(t *testing.T, path string) (*state.Dir, *log) {
	t.Helper()
	l := new(log)
	d, err := state.Open(state.Config{Path: path, AllowDisk: true, Logger: slog.New(slog.NewJSONHandler(l, nil))})
	check(t, err)
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if strings.Contains(l.String(), secret) {
			t.Errorf("a secret was logged:\n%s", l)
		}
	})
	return d, l
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// files returns the names of the files under path, and fails the test if one could be read by others.
func files(t *testing.T, path string) []string {
	t.Helper()
	var names []string
	check(t, filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 && !strings.Contains(name, "aside") {
			t.Errorf("%s has mode %s", name, info.Mode())
		}
		if !e.IsDir() {
			rel, _ := filepath.Rel(path, name)
			names = append(names, rel)
		}
		return nil
	}))
	return names
}

func TestSessionsOutliveTheirAgent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d, _ := open(t, path)
	for i := range 3 {
		check(t, d.Sessions().Save(session(i)))
	}
	newer := session(1)
	newer.Credentials.AccessKeyID = "ASIANEWER"
	check(t, d.Sessions().Save(newer))
	check(t, d.Sessions().Delete(grant(2)))
	check(t, d.Sessions().Delete(grant(77)))

	d, l := open(t, path)
	for _, want := range []*cache.Session{session(0), newer} {
		got := d.Sessions().Load(want.Grant)
		if got == nil {
			t.Fatalf("no session of %s", want.Grant.ServiceAccount)
		}
		want.Minted, want.Credentials.Expiration = got.Minted, got.Credentials.Expiration
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("session (-want +got):\n%s", diff)
		}
	}
	for name, g := range map[string]role.Grant{"deleted": grant(2), "unknown": grant(3), "changed": func() role.Grant {
		g := grant(0)
		g.ExternalID = ""
		return g
	}()} {
		if got := d.Sessions().Load(g); got != nil {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	if n := len(files(t, filepath.Join(path, "sessions"))); n != 2 {
		t.Errorf("%d files", n)
	}
	if l.String() != "" {
		t.Errorf("log:\n%s", l)
	}
}

func TestExpiredIsRemoved(t *testing.T) {
	path := t.TempDir()
	d, _ := open(t, path)
	s := session(0)
	s.Minted = s.Minted.Add(-2 * time.Hour)
	s.Credentials.Expiration = s.Credentials.Expiration.Add(-2 * time.Hour)
	check(t, d.Sessions().Save(s))
	if d.Sessions().Load(s.Grant) != nil {
		t.Error("an expired session was returned")
	}
	check(t, d.Sessions().Save(session(1))) // makes room
	if n := len(files(t, filepath.Join(path, "sessions"))); n != 1 {
		t.Errorf("%d files, want the one that has not expired", n)
	}
	check(t, d.Sessions().Save(s))
	_, l := open(t, path)
	if n := len(files(t, filepath.Join(path, "sessions"))); n != 1 {
		t.Errorf("%d files after a restart", n)
	}
	if l.String() != "" {
		t.Errorf("log:\n%s", l)
	}
}

// TestOneWriter: the agent that was there before reads on, but whatever it writes from then on is not written.
func TestOneWriter(t *testing.T) {
	path := t.TempDir()
	old, oldLog := open(t, path)
	check(t, old.Sessions().Save(session(0)))
	oldKeys, err := old.TokenKeys()
	check(t, err)

	fresh, _ := open(t, path)
	newKeys, err := fresh.TokenKeys()
	check(t, err)
	if diff := cmp.Diff(oldKeys, newKeys); diff != "" {
		t.Errorf("the keys were not adopted:\n%s", diff)
	}
	if old.Superseded() {
		t.Error("superseded before it wrote")
	}
	before := files(t, path)
	stale := session(0)
	stale.Credentials.AccessKeyID = "ASIASTALE"
	check(t, old.Sessions().Save(stale))
	check(t, old.Sessions().Delete(grant(0)))
	check(t, old.Sessions().Save(session(9)))
	check(t, old.Tokens().Save(sts.TokenKey{Namespace: "n", ServiceAccount: "s", Audience: "a"}, sts.Token{Value: secret}))
	if keys, err := old.TokenKeys(); err != nil || !cmp.Equal(keys, oldKeys) {
		t.Errorf("the keys of the one before: %v", err)
	}
	if got := fresh.Sessions().Load(grant(0)); got == nil || got.Credentials.AccessKeyID != "ASIA0" {
		t.Errorf("session after the stale agent wrote: %+v", got)
	}
	if diff := cmp.Diff(before, files(t, path)); diff != "" {
		t.Errorf("files (-before +after):\n%s", diff)
	}
	if n := strings.Count(oldLog.String(), "another agent has taken over"); n != 1 || !old.Superseded() {
		t.Errorf("said so %d times:\n%s", n, oldLog)
	}
	check(t, fresh.Sessions().Save(session(5)))
	if fresh.Superseded() {
		t.Error("the new one is superseded")
	}
}

// TestWritersAtOnce: many processes' worth of writers and takeovers leave nothing half-written.
func TestWritersAtOnce(t *testing.T) {
	path := t.TempDir()
	var wg sync.WaitGroup
	for range 4 {
		d, _ := open(t, path)
		for i := range 4 {
			wg.Go(func() {
				for range 25 {
					if err := d.Sessions().Save(session(i)); err != nil {
						t.Error(err)
					}
					if s := d.Sessions().Load(grant(i)); s != nil && s.Grant != grant(i) {
						t.Errorf("loaded %+v", s.Grant)
					}
				}
			})
		}
	}
	wg.Wait()
	d, l := open(t, path)
	for i := range 4 {
		if d.Sessions().Load(grant(i)) == nil {
			t.Errorf("session %d is gone", i)
		}
	}
	if l.String() != "" {
		t.Errorf("log:\n%s", l)
	}
	for _, name := range files(t, path) {
		if strings.Contains(name, ".new-") {
			t.Errorf("left behind: %s", name)
		}
	}
}

func TestStoppedWriterDoesNotHoldUpForEver(t *testing.T) {
	path := t.TempDir()
	d, _ := open(t, path)
	f, err := os.Open(filepath.Join(path, "lock"))
	check(t, err)
	defer f.Close()
	check(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	if err := d.Sessions().Save(session(0)); err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("Save: %v", err)
	}
	check(t, unix.Flock(int(f.Fd()), unix.LOCK_UN))
	check(t, d.Sessions().Save(session(0)))
}

// TestSetAside: whatever cannot be trusted is moved away with a warning, and the agent starts.
func TestSetAside(t *testing.T) {
	root := os.Geteuid() == 0
	tests := []struct {
		name  string
		spoil func(t *testing.T, file string)
	}{
		{"empty", write("")},
		{"cut_off", func(t *testing.T, file string) { check(t, os.Truncate(file, 100)) }},
		{"not_json", write(secret)},
		{"other_version", replace(`"version":1`, `"version":2`)},
		{"other_kind", replace(`"kind":"session"`, `"kind":"decision"`)},
		{"bad_time", replace(`"minted":"`, `"minted":"`+secret)},
		{"other_grant", replace("4711", "4712")},
		{"no_secret", replace(`"secret_access_key":"`+secret+`"`, `"secret_access_key":""`)},
		{"minted_in_the_future", replace(`":"20`, `":"21`)},
		{"lives_for_ever", replace(`"expiration":"20`, `"expiration":"21`)},
		{"huge", func(t *testing.T, file string) {
			data, err := os.ReadFile(file)
			check(t, err)
			check(t, os.WriteFile(file, append(data, bytes.Repeat([]byte(" "), 1<<20)...), 0o600))
		}},
		{"mode", func(t *testing.T, file string) { check(t, os.Chmod(file, 0o644)) }},
		{"owner", func(t *testing.T, file string) {
			if !root {
				t.Skip("only root can give files away: run the tests as root")
			}
			check(t, os.Chown(file, 12345, -1))
		}},
		{"link", func(t *testing.T, file string) {
			check(t, os.Rename(file, file+"x"))
			check(t, os.Symlink(filepath.Base(file)+"x", file))
		}},
		{"pipe", func(t *testing.T, file string) {
			check(t, os.Remove(file))
			check(t, unix.Mkfifo(file, 0o600))
		}},
		{"folder", func(t *testing.T, file string) {
			check(t, os.Remove(file))
			check(t, os.MkdirAll(filepath.Join(file, "x"), 0o700))
		}},
	}
	for _, tt := range tests {
		for _, when := range []string{"at_start", "while_it_runs"} {
			t.Run(tt.name+"/"+when, func(t *testing.T) {
				path := t.TempDir()
				d, l := open(t, path)
				check(t, d.Sessions().Save(session(0)))
				check(t, d.Sessions().Save(session(1)))
				name := ""
				for _, f := range files(t, filepath.Join(path, "sessions")) {
					if data, err := os.ReadFile(filepath.Join(path, "sessions", f)); err == nil && bytes.Contains(data, []byte("ASIA0")) {
						name = f
					}
				}
				tt.spoil(t, filepath.Join(path, "sessions", name))
				if when == "at_start" {
					d, l = open(t, path)
				}
				if s := d.Sessions().Load(grant(0)); s != nil {
					t.Errorf("loaded %+v", s)
				}
				if d.Sessions().Load(grant(1)) == nil {
					t.Error("the other session is gone")
				}
				if _, err := os.Lstat(filepath.Join(path, "aside", name)); err != nil {
					t.Errorf("not set aside: %v", err)
				}
				if !strings.Contains(l.String(), `"level":"WARN"`) || !strings.Contains(l.String(), name) {
					t.Errorf("log:\n%s", l)
				}
				check(t, d.Sessions().Save(session(0)))
				if d.Sessions().Load(grant(0)) == nil {
					t.Error("cannot be saved again")
				}
			})
		}
	}
}

func write(text string) func(*testing.T, string) {
	return func(t *testing.T, file string) { check(t, os.WriteFile(file, []byte(text), 0o600)) }
}

func replace(old, new string) func(*testing.T, string) {
	return func(t *testing.T, file string) {
		data, err := os.ReadFile(file)
		check(t, err)
		if !bytes.Contains(data, []byte(old)) {
			t.Fatalf("no %q in %s", old, data)
		}
		check(t, os.WriteFile(file, bytes.ReplaceAll(data, []byte(old), []byte(new)), 0o600))
	}
}

// TestForeignFiles: what is not ours at all.
func TestForeignFiles(t *testing.T) {
	path := t.TempDir()
	check(t, os.WriteFile(filepath.Join(path, "sessions"), []byte("x"), 0o600))
	check(t, os.Mkdir(filepath.Join(path, "owner"), 0o700))
	check(t, os.WriteFile(filepath.Join(path, "keys"), []byte("{}"), 0o600))
	check(t, os.Mkdir(filepath.Join(path, "tokens"), 0o700))
	for i := range 40 {
		check(t, os.WriteFile(filepath.Join(path, "tokens", fmt.Sprint("foreign", i)), nil, 0o600))
	}
	check(t, os.WriteFile(filepath.Join(path, "tokens", ".new-x"), nil, 0o600))
	d, l := open(t, path)
	check(t, d.Sessions().Save(session(0)))
	keys, err := d.TokenKeys()
	check(t, err)
	if len(keys) != 1 || d.Superseded() || d.Sessions().Load(grant(0)) == nil {
		t.Errorf("%d keys, superseded %t", len(keys), d.Superseded())
	}
	if n := strings.Count(l.String(), "set aside"); n != 43 {
		t.Errorf("%d warnings, want 43", n)
	}
	if n := len(files(t, filepath.Join(path, "aside"))); n > 16 {
		t.Errorf("%d files aside", n)
	}
	if n := len(files(t, filepath.Join(path, "tokens"))); n != 0 {
		t.Errorf("%d foreign files left", n)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	check(t, os.WriteFile(file, nil, 0o600))
	tests := map[string]string{"no_path": "", "no_parent": filepath.Join(dir, "a", "b"), "a_file": file}
	if os.Geteuid() == 0 {
		tests["owner"] = filepath.Join(dir, "owner")
		check(t, os.Mkdir(tests["owner"], 0o700))
		check(t, os.Chown(tests["owner"], 12345, -1))
	}
	for name, path := range tests {
		t.Run(name, func(t *testing.T) {
			if d, err := state.Open(state.Config{Path: path, AllowDisk: true}); err == nil {
				t.Errorf("opened %+v", d)
			} else if !strings.Contains(err.Error(), "open state directory "+path) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// TestMemory: without leave, only a file system that is memory will do.
func TestMemory(t *testing.T) {
	isMemory := func(path string) bool {
		var s unix.Statfs_t
		check(t, unix.Statfs(path, &s))
		return s.Type == unix.TMPFS_MAGIC
	}
	if disk := t.TempDir(); !isMemory(disk) {
		if _, err := state.Open(state.Config{Path: filepath.Join(disk, "s")}); !errors.Is(err, state.ErrNotMemory) {
			t.Errorf("on a disk: %v", err)
		}
	}
	const shm = "/dev/shm"
	if _, err := os.Stat(shm); err != nil || !isMemory(shm) {
		t.Skip("no tmpfs at /dev/shm: mount one to run this test")
	}
	path, err := os.MkdirTemp(shm, "podrole-test-")
	check(t, err)
	defer os.RemoveAll(path)
	check(t, os.Chmod(path, 0o755)) // as the kubelet leaves it
	d, err := state.Open(state.Config{Path: path})
	check(t, err)
	check(t, d.Sessions().Save(session(0)))
	files(t, path)
	check(t, d.Close())
}

func TestTokensOutliveTheirAgent(t *testing.T) {
	path := t.TempDir()
	d, _ := open(t, path)
	now := time.Now().UTC().Round(0)
	k := sts.TokenKey{Namespace: "billing", ServiceAccount: "api", Audience: "sts.amazonaws.com"}
	want := sts.Token{Value: secret, Issued: now, Expires: now.Add(6 * time.Hour)}
	check(t, d.Tokens().Save(k, want))
	expired := k
	expired.ServiceAccount = "old"
	check(t, d.Tokens().Save(expired, sts.Token{Value: secret, Issued: now.Add(-2 * time.Hour), Expires: now.Add(-time.Hour)}))
	if got, ok := d.Tokens().Load(expired); ok {
		t.Errorf("expired: got %#v", got)
	}
	d, _ = open(t, path)
	if got, ok := d.Tokens().Load(k); !ok || got != want {
		t.Errorf("got %#v, %t", got, ok)
	}
	other := k
	other.Audience = "vault"
	for _, k := range []sts.TokenKey{other, expired} {
		if got, ok := d.Tokens().Load(k); ok {
			t.Errorf("%v: got %#v", k, got)
		}
	}
	check(t, d.Tokens().Delete(k))
	if _, ok := d.Tokens().Load(k); ok {
		t.Error("still there")
	}
	if text := fmt.Sprintf("%v %+v %#v", want, want, want); strings.Contains(text, secret) {
		t.Errorf("a token prints as %s", text)
	}
}

func TestDecisions(t *testing.T) {
	path := t.TempDir()
	d, l := open(t, path)
	decisions := d.Decisions()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { check(t, decisions.Run(ctx)) })
	aged := func(i int, age time.Duration) state.Decision {
		v := decision(i)
		v.Decided = v.Decided.Add(-age)
		return v
	}
	decisions.Put(aged(0, time.Minute))
	decisions.Put(aged(1, time.Hour))
	decisions.Put(aged(2, time.Minute))
	decisions.Delete("uid-2")
	kept := aged(3, 0)
	kept.Unreadable, kept.Until = "bad ARN", time.Now().UTC().Round(0).Add(time.Hour)
	decisions.Put(kept)
	over := aged(4, 0)
	over.Unreadable, over.Until = "bad ARN", time.Now().Add(-time.Second)
	decisions.Put(over)
	cancel()
	wg.Wait()

	uids := func(of []state.Decision) []string {
		var all []string
		for _, v := range of {
			all = append(all, v.Workload.UID)
		}
		slices.Sort(all)
		return all
	}
	d, _ = open(t, path)
	decisions = d.Decisions()
	if diff := cmp.Diff([]string{"uid-0", "uid-3"}, uids(decisions.Recent(30*time.Minute))); diff != "" {
		t.Errorf("recent (-want +got):\n%s", diff)
	}
	for _, got := range decisions.Recent(time.Minute) {
		if got != kept {
			t.Errorf("got %+v, want %+v", got, kept)
		}
	}
	// Confirmed: as old as the confirmation.
	decisions.Confirm(time.Now().Add(-10 * time.Minute))
	check(t, decisions.Run(ctx)) // which has ended: what is pending is written all the same
	if diff := cmp.Diff([]string{"uid-0", "uid-1", "uid-3"}, uids(decisions.Recent(30*time.Minute))); diff != "" {
		t.Errorf("recent after a confirmation (-want +got):\n%s", diff)
	}
	decisions.Retain(map[string]bool{"uid-1": true, "uid-9": true})
	if diff := cmp.Diff([]string{"uid-1"}, uids(decisions.Recent(24*time.Hour))); diff != "" {
		t.Errorf("retained (-want +got):\n%s", diff)
	}
	if l.String() != "" {
		t.Errorf("log:\n%s", l)
	}
}

// TestTake: an agent that was superseded writes again once it has taken the folder back, and goes on from what the other
// one wrote.
func TestTake(t *testing.T) {
	path := t.TempDir()
	old, _ := open(t, path)
	fresh, _ := open(t, path)
	check(t, fresh.Sessions().Save(session(1)))
	check(t, old.Sessions().Save(session(2)))
	if !old.Superseded() {
		t.Fatal("not superseded")
	}
	check(t, old.Take())
	check(t, old.Sessions().Save(session(3)))
	check(t, fresh.Sessions().Save(session(4)))
	third, _ := open(t, path)
	for i, want := range map[int]bool{1: true, 2: false, 3: true, 4: false} {
		if got := third.Sessions().Load(grant(i)) != nil; got != want {
			t.Errorf("session %d is kept: %t, want %t", i, got, want)
		}
	}
}

// TestRemove: what agents kept goes, what is not theirs stays.
func TestRemove(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	check(t, state.Remove(path)) // there is none
	d, _ := open(t, path)
	check(t, d.Sessions().Save(session(1)))
	_, err := d.TokenKeys()
	check(t, err)
	d.Decisions().Confirm(time.Now())
	check(t, os.WriteFile(filepath.Join(path, "another"), nil, 0o600))
	check(t, state.Remove(path))
	if diff := cmp.Diff([]string{"another"}, names(t, path)); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	check(t, os.Remove(filepath.Join(path, "another")))
	check(t, state.Remove(path))
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

func names(t *testing.T, path string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(path)
	check(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
