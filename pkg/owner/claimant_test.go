package owner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func nothing(context.Context) error { return nil }

// forbidden is a change that must not be made.
func forbidden(t testing.TB) func(context.Context) error {
	return func(context.Context) error {
		t.Helper()
		t.Error("the rules were changed")
		return nil
	}
}

func open(t testing.TB, dir string) *Claimant {
	t.Helper()
	c, err := Open(Config{Dir: dir})
	check(t, err)
	t.Cleanup(c.Resign)
	return c
}

func mustClaim(t testing.TB, c *Claimant) {
	t.Helper()
	changed := false
	check(t, c.Claim(t.Context(), func(context.Context) error { changed = true; return nil }))
	if !changed {
		t.Fatal("claimed without a change")
	}
}

func mustOwn(t testing.TB, c *Claimant) {
	t.Helper()
	changed := false
	does, err := c.Do(t.Context(), func(context.Context) error { changed = true; return nil })
	if err != nil || !does || !changed {
		t.Fatalf("owns %t, changed %t, %v; want all", does, changed, err)
	}
}

// mustRegain is for an agent above which a claim was that nobody holds any more.
func mustRegain(t testing.TB, c *Claimant) {
	t.Helper()
	mustStandBy(t, c)
	check(t, c.Wait(t.Context()))
	mustOwn(t, c)
}

func mustStandBy(t testing.TB, c *Claimant) {
	t.Helper()
	if does, err := c.Do(t.Context(), forbidden(t)); err != nil || does {
		t.Fatalf("owns %t, %v; want it to stand by", does, err)
	}
}

// waits calls Wait, and returns what gets its result.
func waits(t testing.TB, c *Claimant) (result chan error) {
	t.Helper()
	result = make(chan error, 1)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); wg.Wait() })
	wg.Go(func() { result <- c.Wait(ctx) })
	return result
}

func stillWaits(t testing.TB, result chan error) {
	t.Helper()
	select {
	case err := <-result:
		t.Fatalf("waits no longer: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
}

func files(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	check(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestTakeover(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	old, fresh, third := open(t, dir), open(t, dir), open(t, dir)
	mustStandBy(t, old) // it has claimed nothing
	mustClaim(t, old)
	mustOwn(t, old)
	mustClaim(t, fresh)
	mustOwn(t, fresh)
	mustStandBy(t, old)
	waiting := waits(t, old)
	stillWaits(t, waiting)

	mustClaim(t, third)
	mustStandBy(t, fresh)
	third.Resign()
	check(t, fresh.Wait(t.Context()))
	mustOwn(t, fresh)
	stillWaits(t, waiting)
	fresh.Resign()
	check(t, <-waiting)
	mustOwn(t, old)
	mustStandBy(t, fresh)
}

// TestFailedClaim: a change that fails leaves the former owner in charge of what it left behind, and may be tried
// again.
func TestFailedClaim(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	old, fresh := open(t, dir), open(t, dir)
	mustClaim(t, old)
	fault := errors.New("xtables lock")
	for range 3 {
		if err := fresh.Claim(t.Context(), func(context.Context) error { return fault }); !errors.Is(err, fault) {
			t.Fatal(err)
		}
		mustStandBy(t, fresh)
		mustRegain(t, old)
		mustOwn(t, old)
	}
	claims := slices.DeleteFunc(files(t, dir), func(name string) bool { return !strings.HasPrefix(name, claimPrefix) })
	if len(claims) > 2 {
		t.Errorf("%q: claims that failed pile up", claims)
	}
	mustClaim(t, fresh)
	mustStandBy(t, old)
	if does, err := fresh.Do(t.Context(), func(context.Context) error { return fault }); !does || !errors.Is(err, fault) {
		t.Errorf("owns %t, %v", does, err)
	}
}

func TestClaimsOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	old, fresh := open(t, dir), open(t, dir)
	mustClaim(t, old)
	mustClaim(t, fresh)
	if err := old.Claim(t.Context(), forbidden(t)); err == nil {
		t.Error("a stale agent took back")
	}
	mustOwn(t, fresh)
}

func TestWait(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	c, other := open(t, dir), open(t, dir)
	check(t, c.Wait(t.Context())) // for nobody
	mustClaim(t, c)
	check(t, c.Wait(t.Context())) // it owns
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- other.Wait(ctx) }()
	stillWaits(t, result)
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.Resign()
	check(t, other.Wait(t.Context()))
}

func TestResign(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	old, fresh := open(t, dir), open(t, dir)
	mustClaim(t, old)
	begun, end := make(chan bool), make(chan bool)
	result := make(chan error, 1)
	go func() {
		result <- fresh.Claim(t.Context(), func(context.Context) error { close(begun); <-end; return nil })
	}()
	<-begun
	old.patience = 20 * time.Millisecond
	waiting := waits(t, old)
	fresh.Resign() // in the middle of its change
	if _, err := old.Do(t.Context(), forbidden(t)); err == nil {
		t.Error("two changes at once")
	}
	close(end)
	if err := <-result; !errors.Is(err, ErrResigned) {
		t.Error(err)
	}
	check(t, <-waiting)
	mustOwn(t, old)
	mustStandBy(t, fresh)
	if err := fresh.Claim(t.Context(), forbidden(t)); !errors.Is(err, ErrResigned) {
		t.Error(err)
	}
	if err := fresh.Wait(t.Context()); !errors.Is(err, ErrResigned) {
		t.Error(err)
	}
	fresh.Resign()
}

// TestLockedOut: an agent that is stuck in a change holds up nobody for ever, and is named.
func TestLockedOut(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	stuck, other := open(t, dir), open(t, dir)
	begun, end := make(chan bool), make(chan bool)
	var wg sync.WaitGroup
	wg.Go(func() {
		check(t, stuck.Claim(t.Context(), func(context.Context) error { close(begun); <-end; return nil }))
	})
	<-begun
	other.patience = 20 * time.Millisecond
	err := other.Claim(t.Context(), forbidden(t))
	if err == nil || !strings.Contains(err.Error(), "generation 1") || !strings.Contains(err.Error(), "fuser -v "+dir) {
		t.Errorf("%v; want one that says who", err)
	}
	other.patience = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := other.Claim(ctx, forbidden(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	open(t, dir) // needs no lock
	close(end)
	wg.Wait()
	mustClaim(t, other)
}

// TestLockedOutByAStranger: who waits does not take itself for the one it waits for.
func TestLockedOutByAStranger(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	before, c := open(t, dir), open(t, dir)
	mustClaim(t, before)
	mustClaim(t, c)
	f, err := openFolder(dir) // as by one that has claimed nothing yet, or by a program that outlives its agent
	check(t, err)
	defer f.unlock()
	check(t, f.lock(t.Context(), 0, claim{}))
	c.patience, before.patience = time.Millisecond, time.Millisecond
	if _, err := c.Do(t.Context(), forbidden(t)); err == nil || strings.Contains(err.Error(), "generation") {
		t.Errorf("%v; want one that names no generation", err)
	}
	if _, err := before.Do(t.Context(), forbidden(t)); err == nil || !strings.Contains(err.Error(), "generation 2") {
		t.Errorf("%v; want one that names the newer agent", err)
	}
}

// TestConcurrently: agents and their goroutines keep each other out.
func TestConcurrently(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	var inside, changes atomic.Int32
	alone := func(context.Context) error {
		if inside.Add(1) != 1 {
			t.Error("two changes at once")
		}
		changes.Add(1)
		inside.Add(-1)
		return nil
	}
	var wg sync.WaitGroup
	for range 4 {
		c := open(t, dir)
		for range 3 {
			wg.Go(func() {
				_ = c.Claim(t.Context(), alone) // one of three does
				for range 20 {
					if _, err := c.Do(t.Context(), alone); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	if changes.Load() < 4 {
		t.Errorf("%d changes", changes.Load())
	}
}

// TestFolder: whatever happens to the folder, its agents agree again.
func TestFolder(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir string){
		"left_alone": func(*testing.T, string) {},
		"removed":    func(t *testing.T, dir string) { check(t, os.RemoveAll(dir)) },
		"emptied": func(t *testing.T, dir string) {
			for _, name := range files(t, dir) {
				check(t, os.Remove(filepath.Join(dir, name)))
			}
		},
		"moved_away":  func(t *testing.T, dir string) { check(t, os.Rename(dir, dir+".old")) },
		"open_to_all": func(t *testing.T, dir string) { check(t, os.Chmod(dir, 0o777)) },
		"written_to": func(t *testing.T, dir string) {
			for _, name := range files(t, dir) {
				check(t, os.WriteFile(filepath.Join(dir, name), []byte("hello"), 0))
			}
		},
		"foreign_files": func(t *testing.T, dir string) {
			for _, name := range []string{"claim-9-X", "redirect", "claim-", "claim-07-X"} {
				check(t, os.WriteFile(filepath.Join(dir, name), []byte("{}"), 0o600))
			}
			check(t, os.Mkdir(filepath.Join(dir, "claim-8-FOLDER"), 0o700))
			check(t, os.Symlink("/dev/zero", filepath.Join(dir, "claim-8-LINK")))
		},
		"killed_while_claiming": func(t *testing.T, dir string) {
			check(t, unix.Mkfifo(filepath.Join(dir, nameless), 0o600))
		},
		"nameless_folder": func(t *testing.T, dir string) {
			check(t, os.MkdirAll(filepath.Join(dir, nameless, "x"), 0o700))
		},
		"claims_of_the_dead": func(t *testing.T, dir string) {
			for _, name := range []string{"claim-9-X", "claim-10-X", "claim-2-X"} {
				check(t, unix.Mkfifo(filepath.Join(dir, name), 0o600))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "claims")
			old, fresh := open(t, dir), open(t, dir)
			mustClaim(t, old)
			mustClaim(t, fresh)
			mustStandBy(t, old)
			waiting := waits(t, old)
			stillWaits(t, waiting)
			spoil(t, dir)
			check(t, fresh.Wait(t.Context())) // for nobody: what looks like newer claims is held by no agent
			mustOwn(t, fresh)
			mustStandBy(t, old)
			third := open(t, dir)
			mustClaim(t, third)
			mustStandBy(t, fresh)
			if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("%v, %v", info.Mode(), err)
			}
			third.Resign()
			mustRegain(t, fresh)
			stillWaits(t, waiting)
			fresh.Resign()
			check(t, <-waiting)
			mustOwn(t, old)
			mustClaim(t, open(t, dir))
			for _, name := range files(t, dir) {
				info, err := os.Lstat(filepath.Join(dir, name))
				if check(t, err); info.Mode().Type() == fs.ModeNamedPipe && info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %s", name, info.Mode())
				}
			}
		})
	}
}

// TestFolderReplacedMeanwhile: who gets the lock of a folder that is no longer there has got nothing.
func TestFolderReplacedMeanwhile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	first, waiting, fresh := open(t, dir), open(t, dir), open(t, dir)
	mustClaim(t, first)
	waiting.patience = time.Hour
	var wg sync.WaitGroup
	hold := func(do func(context.Context, func(context.Context) error) error) (release func()) {
		begun, end := make(chan bool), make(chan bool)
		wg.Go(func() { check(t, do(t.Context(), func(context.Context) error { close(begun); <-end; return nil })) })
		<-begun
		return func() { close(end) }
	}
	var together atomic.Bool
	endFirst := hold(func(ctx context.Context, change func(context.Context) error) error {
		_, err := first.Do(ctx, change)
		return err
	})
	claimed := make(chan bool)
	wg.Go(func() {
		defer close(claimed)
		check(t, waiting.Claim(t.Context(), func(context.Context) error {
			if together.Load() {
				t.Error("two changes at once")
			}
			return nil
		}))
	})
	select { // let it wait
	case <-claimed:
		t.Fatal("two changes at once")
	case <-time.After(20 * time.Millisecond):
	}
	check(t, os.RemoveAll(dir))
	together.Store(true)
	endFresh := hold(fresh.Claim)
	endFirst()
	select {
	case <-claimed:
	case <-time.After(20 * time.Millisecond):
	}
	together.Store(false)
	endFresh()
	wg.Wait()
	mustOwn(t, waiting)
}

func TestBadFolder(t *testing.T) {
	parent := t.TempDir()
	for name, tt := range map[string]struct {
		dir     string
		prepare func(t *testing.T, dir string)
	}{
		"relative":       {dir: "claims"},
		"empty":          {dir: ""},
		"without_parent": {dir: filepath.Join(parent, "missing", "claims")},
		"a_file": {filepath.Join(parent, "file"), func(t *testing.T, dir string) {
			check(t, os.WriteFile(dir, nil, 0o600))
		}},
		"of_another_user": {filepath.Join(parent, "other"), func(t *testing.T, dir string) {
			if os.Geteuid() != 0 {
				t.Skip("needs root: only root can give a folder away")
			}
			check(t, os.Mkdir(dir, 0o700))
			check(t, os.Chown(dir, 65534, 65534))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.prepare != nil {
				tt.prepare(t, tt.dir)
			}
			if c, err := Open(Config{Dir: tt.dir}); err == nil {
				t.Errorf("%+v", c)
			} else {
				t.Log(err)
			}
		})
	}
}

// TestWrittenTo: what somebody writes to a pipe does not end its claim, nor keep it alive.
func TestWrittenTo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	f, err := openFolder(dir)
	check(t, err)
	defer f.close()
	c := claim{1, "X"}
	pipe, err := f.hold(c)
	check(t, err)
	for range 2 {
		check(t, os.WriteFile(filepath.Join(dir, c.String()), make([]byte, 200), 0))
		l, err := f.look(c)
		if err != nil || l == nil {
			t.Fatalf("%v, %v; want it alive", l, err)
		}
		l.close()
	}
	check(t, os.WriteFile(filepath.Join(dir, c.String()), make([]byte, 200), 0))
	l, err := f.look(c)
	check(t, err)
	check(t, pipe.Close())
	check(t, l.awaitEnd(t.Context()))
	l.close()
	if l, err := f.look(c); err != nil || l != nil {
		t.Errorf("%v, %v; want it ended", l, err)
	}
}

func TestNoGenerationLeft(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	c := open(t, dir)
	last := filepath.Join(dir, fmt.Sprintf("claim-%d-X", uint64(math.MaxUint64)))
	check(t, unix.Mkfifo(last, 0o600))
	if err := c.Claim(t.Context(), forbidden(t)); err == nil {
		t.Fatal("claimed")
	}
	check(t, os.Remove(last))
	mustClaim(t, c)
}

// TestLog: one line for each time that the Redirect changes hands, whatever the number of sweeps.
func TestLog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	var log bytes.Buffer
	c, err := Open(Config{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	check(t, err)
	defer c.Resign()
	check(t, os.WriteFile(filepath.Join(dir, "redirect"), nil, 0o600))
	mustClaim(t, c)
	other := open(t, dir)
	mustClaim(t, other)
	for range 3 {
		mustStandBy(t, c)
	}
	other.Resign()
	check(t, c.Wait(t.Context()))
	for range 3 {
		mustOwn(t, c)
	}
	fault := errors.New("xtables lock")
	if err := open(t, dir).Claim(t.Context(), func(context.Context) error { return fault }); !errors.Is(err, fault) {
		t.Fatal(err)
	}
	mustRegain(t, c)
	var got []string
	for line := range strings.Lines(log.String()) {
		_, line, _ = strings.Cut(strings.TrimSpace(line), "level=")
		got = append(got, strings.ReplaceAll(line, dir, "DIR"))
	}
	want := []string{
		`WARN msg="files that are no claims do not belong here, and are ignored" folder=DIR files=[redirect]`,
		`INFO msg="this agent owns the redirect" generation=1`,
		`INFO msg="another agent owns the redirect; this one stands by" generation=1 newer_generation=2`,
		`INFO msg="the newer agents are gone; this one owns the redirect again" generation=1`,
		`INFO msg="a newer claim to the redirect has come and gone; this agent owns it still" generation=1 newer_generation=3`,
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("log:\n%s\nwant:\n%s", g, w)
	}
}
