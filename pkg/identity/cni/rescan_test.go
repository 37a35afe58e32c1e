package cni

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
)

// blind is a Watcher in a synctest bubble, whose events are the test's.
type blind struct {
	*Watcher
	results string
	dead    atomic.Bool // there are no network namespaces
	meddle  func()      // called once, by the Watcher, when it has told of the start
	log     bytes.Buffer
	stop    func()

	mu   sync.Mutex // guards told
	told []map[string]Sandbox
}

// startBlind waits for the Watcher's first word.
func startBlind(t *testing.T, notify func() (notifier, error)) *blind {
	b := newBlind(t, notify)
	b.start(t)
	b.expect(t, "start", 1, 0)
	return b
}

func newBlind(t *testing.T, notify func() (notifier, error)) *blind {
	dir := t.TempDir()
	b := &blind{results: filepath.Join(dir, resultsFolder)}
	var err error
	b.Watcher, err = New(Config{
		Dir:    dir,
		Exists: func(string) bool { return !b.dead.Load() },
		Changed: func(m map[string]Sandbox) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.told = append(b.told, m)
			if len(b.told) == 1 && b.meddle != nil {
				b.meddle()
			}
		},
		Rescan: 10 * time.Second,
		Logger: slog.New(slog.NewTextHandler(&b.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	b.notify = notify
	return b
}

func (b *blind) start(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(b.stop)
}

// expect checks how often there was a change so far, and how many sandboxes there are since the last one.
func (b *blind) expect(t *testing.T, what string, changes, sandboxes int) {
	t.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.told) != changes || len(b.told[changes-1]) != sandboxes {
		t.Fatalf("%s: was told %v; want %d changes, the last to %d sandboxes", what, b.told, changes, sandboxes)
	}
}

func (b *blind) mkdir(t *testing.T) {
	t.Helper()
	if err := os.Mkdir(b.results, 0o700); err != nil {
		t.Fatal(err)
	}
}

func (b *blind) write(t *testing.T, name, data string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(b.results, name), []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (b *blind) written(t *testing.T, name string) time.Time {
	t.Helper()
	info, err := os.Stat(filepath.Join(b.results, name))
	if err != nil {
		t.Fatal(err)
	}
	return info.ModTime()
}

func (b *blind) setWritten(t *testing.T, name string, written time.Time) {
	t.Helper()
	if err := os.Chtimes(filepath.Join(b.results, name), written, written); err != nil {
		t.Fatal(err)
	}
}

const (
	plainName = "podnet-1-eth0"
	plainFile = `{"kind":"cniCacheV1","containerId":"1","ifName":"eth0","networkName":"podnet","netns":"/run/netns/1",
		"cniArgs":[["K8S_POD_UID","a"]],"result":{}}`
)

// TestWithoutEvents: whatever happens is noticed at the next rescan.
func TestWithoutEvents(t *testing.T) {
	for name, notify := range map[string]func() (notifier, error){
		"no_watches_left": func() (notifier, error) { return notifier{}, errors.New("too many open files") },
		"folder_cannot_be_watched": func() (notifier, error) {
			return notifier{
				add:   func(string) error { return errors.New("no space left on device") },
				close: func() error { return nil },
			}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := startBlind(t, notify)
				rescan := func() { time.Sleep(10 * time.Second) }
				b.mkdir(t)
				b.write(t, plainName, plainFile[:20])
				b.write(t, "podnet-2-eth0", "{")
				rescan()
				b.expect(t, "half a file", 1, 0)
				half := b.written(t, plainName)
				b.write(t, plainName, plainFile)
				b.setWritten(t, plainName, half) // within one tick of the clock of files
				b.expect(t, "before the rescan", 1, 0)
				rescan()
				b.expect(t, "the whole file", 2, 1)
				rescan()
				b.expect(t, "nothing new", 2, 1)

				b.dead.Store(true)
				rescan()
				b.expect(t, "network namespace is gone", 3, 0)
				if n := b.Counts()[Stale]; n != 1 {
					t.Errorf("%d stale results, want 1", n)
				}
				b.dead.Store(false)
				rescan()
				b.expect(t, "network namespace is back", 4, 1)

				if err := os.RemoveAll(b.results); err != nil {
					t.Fatal(err)
				}
				rescan()
				b.expect(t, "folder is gone", 5, 0)

				b.stop()
				const line = "cannot read CNI result;"
				if log := b.log.String(); strings.Count(log, line) != 1 || !strings.Contains(log, "file=podnet-2-eth0") {
					t.Errorf("want one line about the file that stays corrupt, and none about the other:\n%s", log)
				}
			})
		})
	}
}

// TestUnreadableFolder: what was read before stays while the folder cannot be read.
func TestUnreadableFolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBlind(t, func() (notifier, error) { return notifier{}, errors.New("no events") })
		b.mkdir(t)
		b.write(t, plainName, plainFile)
		time.Sleep(10 * time.Second)
		b.expect(t, "file", 2, 1)
		if err := os.Rename(b.results, b.results+".old"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(b.results, nil, 0o600); err != nil { // a file in the folder's place
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		b.expect(t, "no folder", 2, 1)
		b.stop()
		if n := strings.Count(b.log.String(), "cannot read CNI results;"); n != 1 {
			t.Errorf("logged %d times, want once:\n%s", n, &b.log)
		}
	})
}

// TestLostEvents: when the queue of events overflows, all is read again at once.
func TestLostEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := make(chan error)
		b := startBlind(t, func() (notifier, error) {
			return notifier{errors: lost, add: func(string) error { return nil }, close: func() error { return nil }}, nil
		})
		b.mkdir(t)
		b.write(t, plainName, plainFile)
		b.expect(t, "no event", 1, 0)
		lost <- fsnotify.ErrEventOverflow
		b.expect(t, "lost events", 2, 1)
	})
}

// TestBurstIsOneChange: events that are there together are told together.
func TestBurstIsOneChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := make(chan fsnotify.Event, 2)
		b := newBlind(t, func() (notifier, error) {
			return notifier{events: events, add: func(string) error { return nil }, close: func() error { return nil }}, nil
		})
		b.meddle = func() {
			b.mkdir(t)
			b.write(t, plainName, plainFile)
			b.write(t, "podnet-2-eth0", strings.NewReplacer(`"1"`, `"2"`, `"a"`, `"b"`).Replace(plainFile))
			events <- fsnotify.Event{Name: filepath.Join(b.results, plainName), Op: fsnotify.Write}
			events <- fsnotify.Event{Name: filepath.Join(b.results, "podnet-2-eth0"), Op: fsnotify.Write}
		}
		b.start(t)
		b.expect(t, "two files", 2, 2)
	})
}
