package kubefiles

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// logBuffer is where a Store under test logs to.
type logBuffer struct {
	mu   sync.Mutex // guards the following
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// count returns how many lines hold all of parts.
func (l *logBuffer) count(parts ...string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for line := range strings.Lines(l.text.String()) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			n++
		}
	}
	return n
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// write puts a file into dir the way careful editors do: under another name first.
func write(t *testing.T, dir, name, text string) {
	t.Helper()
	temporary := filepath.Join(dir, "."+name+".tmp")
	if err := os.WriteFile(temporary, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temporary, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

// pod returns the YAML of a pod; spec may be empty.
func pod(name, spec string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {containers: [], %s}\n---\n", name, spec)
}

func open(t *testing.T, dir string, log *logBuffer) *Store {
	t.Helper()
	s, err := Open(dir, log.logger())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// names lists what lw serves, sorted, in one string.
func names(t *testing.T, lw cache.ListerWatcher) string {
	t.Helper()
	list, err := cache.ToListerWithContext(lw).ListWithContext(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	switch list := list.(type) {
	case *corev1.PodList:
		for _, o := range list.Items {
			all = append(all, o.Namespace+"/"+o.Name)
		}
	case *metav1.PartialObjectMetadataList:
		for _, o := range list.Items {
			all = append(all, o.Namespace+"/"+o.Name)
		}
	}
	return strings.Join(all, " ")
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "pods.yaml", pod("a", "")+pod("b", "nodeName: node-2")+pod("c", "nodeName: node-1, serviceAccountName: ghost"))
	write(t, dir, "accounts.yml", "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: app, namespace: shop}\n")
	write(t, dir, "space.json", "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Namespace\",\n\t\"metadata\": {\"name\": \"empty\"}\n}\n")
	write(t, dir, "config.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: v1\nkind: ConfigMap\n")
	write(t, dir, ".hidden.yaml", "{")
	write(t, dir, "notes.txt", "{")
	if err := os.Mkdir(filepath.Join(dir, "folder.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	var log logBuffer
	s := open(t, dir, &log)
	for _, c := range []struct {
		what string
		from cache.ListerWatcher
		want string
	}{
		{"pods_of_node-1", s.Pods("node-1"), "default/a default/c"},
		{"pods_of_node-2", s.Pods("node-2"), "default/a default/b"},
		{"all_pods", s.Pods(""), "default/a default/b default/c"},
		{"accounts", s.ServiceAccounts(""), "default/default empty/default shop/app shop/default"},
		{"accounts_of_shop", s.ServiceAccounts("shop"), "shop/app shop/default"},
		{"namespaces", s.Namespaces(""), "/default /empty /shop"},
		{"one_namespace", s.Namespaces("shop"), "/shop"},
		{"no_namespace", s.Namespaces("nowhere"), ""},
	} {
		if got := names(t, c.from); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
	if n := log.count("ConfigMap", "level=WARN"); n != 1 {
		t.Errorf("%d warnings for the ignored kind, want 1", n)
	}
	if n := log.count("service_account=ghost", "pod=c", "level=WARN"); n != 1 {
		t.Errorf("%d warnings for the missing ServiceAccount, want 1", n)
	}
	list, err := s.Pods("node-1").(*listWatch).List(metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list.(*corev1.PodList).Items {
		if p.Spec.NodeName != "node-1" {
			t.Errorf("%s says it is on %q", p.Name, p.Spec.NodeName)
		}
	}
}

func TestOpenFaults(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", pod("a", ""))
	write(t, dir, "b.yaml", "\n"+pod("b", "")+pod("a", ""))
	write(t, dir, "c.yaml", "apiVersion: v1\nkind: Pod\nmetdata: {}\n")
	write(t, dir, "d.yaml", strings.ReplaceAll(pod("d", ""), "name: d", "name: d, uid: one")+
		strings.ReplaceAll(pod("e", ""), "name: e", "name: e, uid: one"))
	_, err := Open(dir, new(logBuffer).logger())
	if err == nil {
		t.Fatal("accepted")
	}
	var got []string
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
		got = append(got, strings.ReplaceAll(e.Error(), dir, "DIR"))
	}
	want := []string{
		"DIR/b.yaml:7: Pod default/a is declared in DIR/a.yaml:1 already; keep one",
		`DIR/c.yaml:3: unknown field "metdata"`,
		"DIR/d.yaml:6: the UID of Pod default/e is declared in DIR/d.yaml:1 already; keep one",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, ok := errors.AsType[*DuplicateError](err); !ok {
		t.Error("no DuplicateError")
	}
	if e, ok := errors.AsType[*FileError](err); !ok || e.File != filepath.Join(dir, "b.yaml") || e.Line != 7 {
		t.Errorf("FileError %+v", e)
	}
	if _, err := Open(filepath.Join(dir, "none"), new(logBuffer).logger()); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Open(filepath.Join(dir, "a.yaml"), new(logBuffer).logger()); err == nil {
		t.Error("a file was accepted as a folder")
	}
}

// TestEdits goes through states of one folder, one after the other.
func TestEdits(t *testing.T) {
	dir := t.TempDir()
	var log logBuffer
	write(t, dir, "a.yaml", pod("a", ""))
	s := open(t, dir, &log)
	remove := func(name string) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		name string
		edit func()
		want string
		logs int // how many errors in all
	}{
		{"nothing", func() {}, "a", 0},
		{"bad_edit_keeps_last_good_state", func() { write(t, dir, "a.yaml", "kind: [") }, "a", 1},
		{"said_once", func() {}, "a", 1},
		{"other_bad_edit", func() { write(t, dir, "a.yaml", pod("b", "x: 1")) }, "a", 2},
		{"others_go_on", func() { write(t, dir, "c.yaml", pod("c", "")) }, "a c", 2},
		{"good_edit", func() { write(t, dir, "a.yaml", pod("b", "")) }, "b c", 2},
		{"new_duplicate", func() { write(t, dir, "0.yaml", pod("c", "")+pod("d", "")) }, "b c", 3},
		{"duplicate_gone", func() { remove("c.yaml") }, "b c d", 3},
		{"edit_to_a_duplicate", func() { write(t, dir, "a.yaml", pod("c", "")+pod("e", "")) }, "b c d", 4},
		{"other_side_gives_way", func() { write(t, dir, "0.yaml", pod("d", "")) }, "c d e", 4},
		{"two_files_swap", func() {
			write(t, dir, "0.yaml", pod("c", ""))
			write(t, dir, "a.yaml", pod("d", ""))
		}, "c d", 4},
		{"renamed", func() {
			if err := os.Rename(filepath.Join(dir, "a.yaml"), filepath.Join(dir, "z.yaml")); err != nil {
				t.Fatal(err)
			}
		}, "c d", 4},
		{"removed_while_bad", func() { write(t, dir, "z.yaml", "?") }, "c d", 5},
		{"removed", func() { remove("z.yaml") }, "c", 5},
		{"emptied", func() { write(t, dir, "0.yaml", "") }, "", 5},
	} {
		step.edit()
		s.refresh()
		got := strings.ReplaceAll(names(t, s.Pods("n")), "default/", "")
		if got != step.want {
			t.Errorf("%s: %q, want %q", step.name, got, step.want)
		}
		if n := log.count("level=ERROR"); n != step.logs {
			t.Errorf("%s: %d errors logged, want %d\n%s", step.name, n, step.logs, log.text.String())
		}
	}
	if log.count("level=ERROR", "file="+filepath.Join(dir, "a.yaml"), "line=4") == 0 {
		t.Errorf("no error names file and line:\n%s", log.text.String())
	}
}

func TestFolderGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "objects")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "a.yaml", pod("a", ""))
	var log logBuffer
	s := open(t, dir, &log)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s.refresh()
	s.refresh()
	if got := names(t, s.Pods("n")); got != "default/a" {
		t.Errorf("served %q", got)
	}
	if n := log.count("level=ERROR", "cannot read the folder"); n != 1 {
		t.Errorf("%d errors, want 1", n)
	}
}

// legacy is a client of before streaming lists.
type legacy struct{ *listWatch }

// IsWatchListSemanticsUnSupported is how client-go asks.
func (legacy) IsWatchListSemanticsUnSupported() bool { return true }

// both runs a test with streaming lists, client-go's default, and with lists and watches.
func both(t *testing.T, test func(t *testing.T, as func(cache.ListerWatcher) cache.ListerWatcher)) {
	t.Run("streaming", func(t *testing.T) {
		test(t, func(lw cache.ListerWatcher) cache.ListerWatcher { return lw })
	})
	t.Run("list_and_watch", func(t *testing.T) {
		test(t, func(lw cache.ListerWatcher) cache.ListerWatcher { return legacy{lw.(*listWatch)} })
	})
}

// seen is what an informer's handlers were told.
type seen struct {
	mu      sync.Mutex // guards the following
	events  []string
	changed chan struct{} // closed and replaced with every event
}

func (s *seen) add(verb string, o any) {
	if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = d.Obj
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, verb+" "+o.(metav1.Object).GetName())
	close(s.changed)
	s.changed = make(chan struct{})
}

// await waits until the events satisfy done, and returns and forgets them.
func (s *seen) await(t *testing.T, done func(events []string) bool) []string {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		s.mu.Lock()
		events, changed := s.events, s.changed
		if done(events) {
			s.events = nil
			s.mu.Unlock()
			return events
		}
		s.mu.Unlock()
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("waited too long; saw %d events, last %v", len(events), events[max(0, len(events)-10):])
		}
	}
}

// informer runs an informer on lw until the test ends.
func informer(t *testing.T, lw cache.ListerWatcher, kind interface {
	metav1.Object
	object
}) (cache.SharedIndexInformer, *seen) {
	t.Helper()
	s := &seen{changed: make(chan struct{})}
	i := cache.NewSharedIndexInformer(lw, kind, 0, nil)
	// In place, as transforms may: what it gets must be nobody else's.
	if err := i.SetTransform(func(o any) (any, error) {
		if m, ok := o.(metav1.Object); ok {
			m.SetManagedFields(nil)
			m.SetLabels(map[string]string{"trimmed": "true"})
		}
		return o, nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { s.add("add", o) },
		UpdateFunc: func(_, o any) { s.add("update", o) },
		DeleteFunc: func(o any) { s.add("delete", o) },
	}); err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { i.RunWithContext(t.Context()) })
	t.Cleanup(running.Wait)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), i.HasSynced) {
		t.Fatal("not synced")
	}
	return i, s
}

// run runs the Store until the test ends.
func run(t *testing.T, s *Store) {
	t.Helper()
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Run(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(running.Wait)
}

func TestInformerFollowsFiles(t *testing.T) {
	both(t, func(t *testing.T, as func(cache.ListerWatcher) cache.ListerWatcher) {
		dir := t.TempDir()
		write(t, dir, "a.yaml", pod("a", "nodeName: n")+pod("b", "nodeName: other"))
		var log logBuffer
		s := open(t, dir, &log)
		run(t, s)
		_, pods := informer(t, as(s.Pods("n")), &corev1.Pod{})
		_, spaces := informer(t, as(s.Namespaces("shop")), &metav1.PartialObjectMetadata{})

		sequence := func(want ...string) {
			t.Helper()
			got := pods.await(t, func(events []string) bool { return len(events) >= len(want) })
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		}
		sequence("add a")
		write(t, dir, "a.yaml", pod("a", "nodeName: n, hostNetwork: true")+pod("b", "nodeName: n"))
		sequence("update a", "add b")
		write(t, dir, "a.yaml", pod("a", "nodeName: other")+pod("b", "nodeName: n"))
		sequence("delete a")
		write(t, dir, "a.yaml", pod("a", "nodeName: other")+pod("b", "nodeName: n, serviceAccountName: other"))
		sequence("delete b", "add b")
		write(t, dir, "b.yml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {a: b}}\n")
		spaces.await(t, func(events []string) bool { return slices.Contains(events, "add shop") })
		if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
			t.Fatal(err)
		}
		sequence("delete b")
	})
}

func TestInformerSurvivesBursts(t *testing.T) {
	const pods = 10_000
	both(t, func(t *testing.T, as func(cache.ListerWatcher) cache.ListerWatcher) {
		c := newCollection()
		lw := &listWatch{kind: kindPod, collection: c, selection: selection{node: "n"}}
		i, events := informer(t, as(lw), &corev1.Pod{})
		want := make(map[string]object, pods)
		for n := range pods {
			name := fmt.Sprintf("p%d", n)
			want["default/"+name] = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
			if n%1000 == 0 {
				c.replace(want) // in ten bursts, while the informer reads
			}
		}
		c.replace(want)
		events.await(t, func(e []string) bool { return len(e) >= pods })
		if got := len(i.GetStore().ListKeys()); got != pods {
			t.Errorf("%d pods, want %d", got, pods)
		}
		c.replace(nil)
		events.await(t, func(e []string) bool { return len(e) >= pods })
		if got := len(i.GetStore().ListKeys()); got != 0 {
			t.Errorf("%d pods, want none", got)
		}
	})
}

func TestManyFilesAtOnce(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, new(logBuffer))
	run(t, s)
	i, events := informer(t, s.Pods("n"), &corev1.Pod{})
	for n := range 300 {
		write(t, dir, fmt.Sprintf("%d.yaml", n), pod(fmt.Sprintf("a%d", n), "")+pod(fmt.Sprintf("b%d", n), ""))
	}
	events.await(t, func(e []string) bool { return len(e) >= 600 })
	if got := len(i.GetStore().ListKeys()); got != 600 {
		t.Errorf("%d pods, want 600", got)
	}
}

// TestMountedConfigMap changes the folder as the kubelet changes a ConfigMap volume: by another target of a link.
func TestMountedConfigMap(t *testing.T) {
	dir := t.TempDir()
	mount := func(version, text string) {
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, version), "a.yaml", text)
		if err := os.Symlink(version, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	mount("..1", pod("a", ""))
	if err := os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, new(logBuffer))
	run(t, s)
	_, events := informer(t, s.Pods("n"), &corev1.Pod{})
	events.await(t, func(e []string) bool { return slices.Contains(e, "add a") })
	mount("..2", pod("b", ""))
	events.await(t, func(e []string) bool { return slices.Contains(e, "delete a") && slices.Contains(e, "add b") })
}
