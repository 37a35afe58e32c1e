package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	resultsFolder = "results"
	defaultRescan = 10 * time.Second
	// eventBuffer lets the events of a burst be taken together.
	eventBuffer = 256
)

// Config is what a Watcher is made of.
type Config struct {
	// Dir is the folder that the runtime keeps its folder "results" in, /var/lib/cni as a rule; required. It is the one
	// to mount: results may be made later, and made anew.
	Dir string
	// NetNSDirs are the folders in which network namespaces appear and disappear; default: /run/netns. They are watched
	// so that the end of a sandbox is noticed at once, not at the next rescan.
	NetNSDirs []string
	// Exists tells whether the network namespace at a path of the node exists; default: NetNSExists.
	Exists func(netns string) bool
	// Changed is called with all current sandboxes by pod UID: once at the start, also when there are none, and
	// whenever they changed; required. It is called by one goroutine, and must neither block nor change the map.
	Changed func(map[string]Sandbox)
	// Rescan is how often all is looked at without an event; default: 10 s.
	Rescan time.Duration
	// Logger is required.
	Logger *slog.Logger
}

// Watcher follows the CNI results of this node.
type Watcher struct {
	cfg    Config
	notify func() (notifier, error)

	mu     sync.Mutex // guards counts
	counts map[Verdict]int
}

// notifier tells that something happened in a folder. Losing an event is an error.
type notifier struct {
	events <-chan fsnotify.Event
	errors <-chan error
	add    func(dir string) error // again: no error, and a folder that was replaced is watched anew
	close  func() error
}

// New returns a Watcher that knows nothing until Run.
func New(cfg Config) (*Watcher, error) {
	if cfg.Dir == "" || cfg.Changed == nil || cfg.Logger == nil {
		return nil, errors.New("new CNI watcher: Dir, Changed and Logger are required")
	}
	if cfg.Rescan < 0 {
		return nil, fmt.Errorf("new CNI watcher: Rescan is %s; want a positive duration, or 0 for the default", cfg.Rescan)
	}
	if cfg.Rescan == 0 {
		cfg.Rescan = defaultRescan
	}
	if cfg.Exists == nil {
		cfg.Exists = NetNSExists
	}
	if cfg.NetNSDirs == nil {
		cfg.NetNSDirs = []string{"/run/netns"}
	}
	cfg.Dir = filepath.Clean(cfg.Dir)
	return &Watcher{cfg: cfg, notify: inotify}, nil
}

// NetNSExists tells whether there is a file at a path, of which /var/run is /run also where the link between them is
// missing, as in an image of nothing but a binary.
func NetNSExists(netns string) bool {
	if rest, ok := strings.CutPrefix(netns, "/var/run/"); ok {
		netns = "/run/" + rest
	}
	_, err := os.Stat(netns)
	return err == nil
}

// Counts returns how many files there are of each verdict, now. All verdicts are in it. It is safe for concurrent use.
func (w *Watcher) Counts() map[Verdict]int {
	counts := make(map[Verdict]int, len(Verdicts()))
	for _, v := range Verdicts() {
		counts[v] = 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.Copy(counts, w.counts)
	return counts
}

// Run follows the files until ctx ends, and returns nil then. Without file events, which may be used up, it goes on by
// rescans. It must be called once.
func (w *Watcher) Run(ctx context.Context) error {
	n, err := w.notify()
	if err != nil {
		w.cfg.Logger.Warn("cannot watch CNI results; reading them periodically", "dir", w.cfg.Dir,
			"interval", w.cfg.Rescan, "error", err)
		n = notifier{add: func(string) error { return nil }, close: func() error { return nil }}
	}
	f := &follower{
		Watcher: w,
		watch:   n.add,
		results: filepath.Join(w.cfg.Dir, resultsFolder),
	}
	f.files = folder{dir: f.results, files: make(map[string]*file)}
	rescan := time.NewTicker(w.cfg.Rescan)
	defer rescan.Stop()
	f.rescan()
	f.publish()
	for {
		select {
		case <-ctx.Done():
			if err := n.close(); err != nil {
				return fmt.Errorf("stop watching CNI results: %w", err)
			}
			return nil
		case e := <-n.events:
			f.event(e)
			f.drain(n.events)
		case err := <-n.errors:
			w.cfg.Logger.Warn("missed changes of CNI results; reading all of them", "dir", w.cfg.Dir, "error", err)
			f.rescan()
		case <-rescan.C:
			f.rescan()
			f.complain()
		}
		f.publish()
	}
}

// follower is a Watcher at work. It belongs to the goroutine of Run.
type follower struct {
	*Watcher
	watch     func(dir string) error
	results   string // path
	files     folder
	published bool
	last      map[string]Sandbox // as published
	failure   string             // why the folder could not be read, as logged
}

// drain takes the events that are there, so that a burst is published once.
func (f *follower) drain(events <-chan fsnotify.Event) {
	for range eventBuffer {
		select {
		case e := <-events:
			f.event(e)
		default:
			return
		}
	}
}

func (f *follower) event(e fsnotify.Event) {
	switch {
	case e.Name == f.results || e.Name == f.cfg.Dir:
		f.rescan()
	case filepath.Dir(e.Name) == f.results:
		f.files.read(filepath.Base(e.Name))
	}
	// Anything else is about a namespace: publish asks about those that matter.
}

// rescan watches and reads everything anew. Folders are watched before they are read, so that nothing is missed.
func (f *follower) rescan() {
	for _, dir := range append([]string{f.cfg.Dir, f.results}, f.cfg.NetNSDirs...) {
		if err := f.watch(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			f.cfg.Logger.Debug("cannot watch folder; relying on rescans", "dir", dir, "error", err)
		}
	}
	err := f.files.scan()
	if err == nil {
		f.failure = ""
	} else if f.failure != err.Error() {
		f.failure = err.Error()
		f.cfg.Logger.Error("cannot read CNI results; what was read before stays", "dir", f.results, "error", err)
	}
}

// publish judges what was read, and tells if that changed anything.
func (f *follower) publish() {
	counts := make(map[Verdict]int)
	var all []Sandbox
	for _, file := range f.files.files {
		if file.problem != nil {
			counts[file.problem.Verdict]++
		} else {
			all = append(all, file.sandbox)
		}
	}
	current, verdicts := judge(all, f.cfg.Exists)
	for _, v := range verdicts {
		counts[v]++
	}
	f.mu.Lock()
	f.counts = counts
	f.mu.Unlock()
	if f.published && reflect.DeepEqual(f.last, current) {
		return
	}
	f.published, f.last = true, current
	f.cfg.Changed(maps.Clone(current))
}

// complain logs the files that stay corrupt, once each. One that is being written is complete by the time it counts.
func (f *follower) complain() {
	for _, file := range f.files.files {
		if file.problem == nil || file.problem.Verdict != Corrupt {
			continue
		}
		if file.suspected && !file.reported {
			file.reported = true
			f.cfg.Logger.Warn("cannot read CNI result; its pod is known by the API alone", "dir", f.results,
				"file", file.problem.File, "error", file.problem)
		}
		file.suspected = true
	}
}

// inotify is the notifier of this machine.
func inotify() (notifier, error) {
	w, err := fsnotify.NewBufferedWatcher(eventBuffer)
	if err != nil {
		return notifier{}, fmt.Errorf("watch files: %w", err)
	}
	return notifier{events: w.Events, errors: w.Errors, add: w.Add, close: w.Close}, nil
}
