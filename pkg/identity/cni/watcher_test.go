package cni_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podrole/podrole/pkg/identity/cni"
)

// node is a node's folders and the Watcher over them.
type node struct {
	dir, netns string
	watcher    *cni.Watcher
	changes    chan map[string]cni.Sandbox
}

// startNode runs a Watcher that nothing but events wakes, and waits for its first word.
func startNode(t *testing.T) *node {
	n := &node{dir: t.TempDir(), netns: t.TempDir(), changes: make(chan map[string]cni.Sandbox, 1000)}
	n.start(t, time.Hour, slog.New(slog.DiscardHandler))
	if first := n.next(t); len(first) != 0 {
		t.Fatalf("an empty node has %v", first)
	}
	return n
}

func (n *node) start(t *testing.T, rescan time.Duration, logger *slog.Logger) {
	t.Helper()
	var err error
	n.watcher, err = cni.New(cni.Config{
		Dir:       n.dir,
		NetNSDirs: []string{n.netns},
		Changed:   func(m map[string]cni.Sandbox) { n.changes <- m },
		Rescan:    rescan,
		Logger:    logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.watcher.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// next returns what the Watcher tells next.
func (n *node) next(t *testing.T) map[string]cni.Sandbox {
	t.Helper()
	select {
	case m := <-n.changes:
		return m
	case <-time.After(10 * time.Second):
		t.Fatal("no change within 10 s")
		return nil
	}
}

// expect waits until the Watcher tells of exactly these pods, by UID.
func (n *node) expect(t *testing.T, uids ...string) {
	t.Helper()
	for {
		if got := slices.Sorted(maps.Keys(n.next(t))); slices.Equal(got, uids) {
			return
		}
	}
}

func (n *node) mkdir(t *testing.T) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(n.dir, "results"), 0o700); err != nil {
		t.Fatal(err)
	}
}

// file returns the path and the content of the result of a pod's sandbox.
func (n *node) file(t *testing.T, id, uid string) (string, []byte) {
	name, data := result(t, map[string]any{
		"containerId": id,
		"netns":       filepath.Join(n.netns, id),
		"cniArgs":     [][2]string{{"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", uid}, {"K8S_POD_UID", uid}},
		"result":      map[string]any{},
	})
	return filepath.Join(n.dir, "results", name), data
}

// add makes a sandbox, and its result as libcni writes it.
func (n *node) add(t *testing.T, id, uid string) {
	t.Helper()
	n.unshare(t, id)
	path, data := n.file(t, id, uid)
	n.write(t, path, data)
}

// age makes the result of a sandbox older than any other. The clock of files has ticks of some milliseconds.
func (n *node) age(t *testing.T, id, uid string) {
	t.Helper()
	path, _ := n.file(t, id, uid)
	if err := os.Chtimes(path, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
}

func (n *node) unshare(t *testing.T, id string) { n.write(t, filepath.Join(n.netns, id), nil) }

func (n *node) write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (n *node) remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func TestFilesComeAndGo(t *testing.T) {
	n := startNode(t)
	n.mkdir(t)
	n.add(t, "1", "a")
	n.expect(t, "a")
	n.add(t, "2", "b")
	n.expect(t, "a", "b")
	path, _ := n.file(t, "1", "a")
	n.remove(t, path)
	n.expect(t, "b")
}

func TestFolderIsDeletedAndMadeAnew(t *testing.T) {
	n := startNode(t)
	for round := range 3 {
		uid := fmt.Sprint(round)
		n.mkdir(t)
		n.add(t, "box"+uid, uid)
		n.expect(t, uid)
		n.remove(t, filepath.Join(n.dir, "results"))
		n.expect(t)
	}
}

func TestFolderIsReplaced(t *testing.T) {
	n := startNode(t)
	n.mkdir(t)
	n.add(t, "1", "a")
	n.expect(t, "a")
	if err := os.Rename(filepath.Join(n.dir, "results"), filepath.Join(n.dir, "old")); err != nil {
		t.Fatal(err)
	}
	n.expect(t)
	n.mkdir(t)
	n.add(t, "2", "b")
	n.expect(t, "b")
}

func TestSandboxEndsBeforeItsFile(t *testing.T) {
	n := startNode(t)
	n.mkdir(t)
	n.add(t, "1", "a")
	n.expect(t, "a")
	n.remove(t, filepath.Join(n.netns, "1"))
	n.expect(t)
	if got := n.watcher.Counts()[cni.Stale]; got != 1 {
		t.Errorf("%d stale results, want 1", got)
	}
}

// TestFileIsWrittenInPieces: libcni creates the file and writes into it, so it may be read before it is complete.
func TestFileIsWrittenInPieces(t *testing.T) {
	n := startNode(t)
	n.mkdir(t)
	n.unshare(t, "1")
	path, data := n.file(t, "1", "a")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	pieces := slices.Collect(slices.Chunk(data, len(data)/3))
	want := []string{}
	for i, piece := range pieces {
		if i > 0 {
			// Another pod's file, later than the piece, so that the piece was read.
			uid := fmt.Sprint("other", i)
			n.add(t, uid, uid)
			want = append(want, uid)
			n.expect(t, want...)
		}
		if _, err := file.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	n.expect(t, slices.Insert(want, 0, "a")...)
}

func TestSandboxIsMadeAnew(t *testing.T) {
	n := startNode(t)
	n.mkdir(t)
	n.add(t, "1", "a")
	n.expect(t, "a")
	n.age(t, "1", "a")
	n.add(t, "2", "a")
	for n.next(t)["a"].ID != "2" {
	}
}

func TestBurst(t *testing.T) {
	n := startNode(t)
	n.mkdir(t)
	var uids []string
	for i := range 200 {
		uid := fmt.Sprintf("pod%03d", i)
		uids = append(uids, uid)
		n.add(t, "box"+uid, uid)
	}
	n.expect(t, uids...)
}

func TestCounts(t *testing.T) {
	n := &node{dir: t.TempDir(), netns: t.TempDir(), changes: make(chan map[string]cni.Sandbox, 10)}
	n.mkdir(t)
	results := filepath.Join(n.dir, "results")
	for _, folder := range []string{"two-networks", "no-pod-uid", "before-libcni-0.8", "vpc-cni"} {
		for name, data := range fixtures(t, folder) {
			n.write(t, filepath.Join(results, name), data)
		}
	}
	n.add(t, "1", "a")
	n.add(t, "2", "a")
	n.age(t, "1", "a")
	n.write(t, filepath.Join(results, "net-3-eth0"), []byte(`{"kind":`))
	path, data := n.file(t, "4", "big")
	n.write(t, path, append(data, strings.Repeat(" ", 2<<20)...))
	path, data = n.file(t, "5", "b")
	n.write(t, path, []byte(strings.ReplaceAll(string(data), n.netns, "/proc/1")))
	if err := os.Mkdir(filepath.Join(results, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	n.start(t, time.Hour, slog.New(slog.DiscardHandler))
	n.expect(t, "a")
	want := map[cni.Verdict]int{
		cni.Counted: 1, cni.Superseded: 1, cni.Stale: 2, cni.Loopback: 1, cni.Secondary: 1, cni.NoPodUID: 1,
		cni.NoNetNS: 1, cni.UnknownFormat: 1, cni.Corrupt: 2,
	}
	if diff := cmp.Diff(want, n.watcher.Counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := cni.Config{Dir: "/x", Changed: func(map[string]cni.Sandbox) {}, Logger: slog.New(slog.DiscardHandler)}
	if _, err := cni.New(good); err != nil {
		t.Errorf("good config: %v", err)
	}
	for name, spoil := range map[string]func(*cni.Config){
		"no_dir":          func(c *cni.Config) { c.Dir = "" },
		"no_callback":     func(c *cni.Config) { c.Changed = nil },
		"no_logger":       func(c *cni.Config) { c.Logger = nil },
		"negative_rescan": func(c *cni.Config) { c.Rescan = -1 },
	} {
		bad := good
		spoil(&bad)
		if _, err := cni.New(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestNetNSExists(t *testing.T) {
	here := filepath.Join(t.TempDir(), "box")
	if cni.NetNSExists(here) {
		t.Error("exists before it is made")
	}
	if err := os.WriteFile(here, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if !cni.NetNSExists(here) {
		t.Error("does not exist")
	}
}
