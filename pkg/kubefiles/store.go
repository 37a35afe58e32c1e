package kubefiles

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
)

const (
	// settleTime is how long the folder must be quiet before it is read: editors and kubelets replace a file in several
	// steps.
	settleTime = 50 * time.Millisecond
	// maxSettleTime is how long reading may be put off by a folder that is never quiet.
	maxSettleTime = time.Second
	// rescanTime is how often the folder is read without cause: a safety net, for not every file system sends events.
	rescanTime = 30 * time.Second
)

// Store is the objects of a folder. Its ListerWatchers may be used at any time and concurrently; they see changes while
// [Store.Run] runs.
type Store struct {
	logger     *slog.Logger
	folder     folder
	pods       *collection
	accounts   *collection
	namespaces *collection

	// What has been said already, so that it is said once.
	lastFailure string          // of reading the folder
	ignored     map[string]bool // by apiVersion and kind
	missing     map[id]string   // ServiceAccounts that do not exist, by Pod
}

// Open reads the folder dir. Anything wrong with a file is an error, in which errors for all such files are joined,
// each a [*FileError]. Later on such a file is logged, and its last good state stays.
func Open(dir string, logger *slog.Logger) (*Store, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("open folder: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open folder: %s is not a folder", dir)
	}
	s := &Store{
		logger:     logger,
		folder:     folder{dir: dir, files: make(map[string]*file)},
		pods:       newCollection(),
		accounts:   newCollection(),
		namespaces: newCollection(),
		ignored:    make(map[string]bool),
		missing:    make(map[id]string),
	}
	if _, err := s.folder.refresh(); err != nil {
		return nil, err
	}
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(s.folder.files)) {
		file := s.folder.files[name]
		if file.refused != nil {
			faults = append(faults, file.refused)
		}
		file.news = false
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	s.publish()
	return s, nil
}

// Pods lists and watches the pods of a node, as [*corev1.Pod]. A pod without a node is on this one and says so. For the
// empty name it is all pods of all nodes as they were declared.
func (s *Store) Pods(nodeName string) cache.ListerWatcher {
	return &listWatch{kind: kindPod, collection: s.pods, selection: selection{node: nodeName}}
}

// ServiceAccounts lists and watches the ServiceAccounts of a namespace, as *metav1.PartialObjectMetadata. For the empty
// name it is all of them.
func (s *Store) ServiceAccounts(namespace string) cache.ListerWatcher {
	return &listWatch{kind: kindServiceAccount, collection: s.accounts, selection: selection{namespace: namespace}}
}

// Namespaces lists and watches the Namespace of a name, as *metav1.PartialObjectMetadata. For the empty name it is all
// of them.
func (s *Store) Namespaces(name string) cache.ListerWatcher {
	return &listWatch{kind: kindNamespace, collection: s.namespaces, selection: selection{name: name}}
}

// Run follows the changes of the folder until ctx ends, and returns nil then. Without file events, which may be used up
// or unknown to the file system, it goes on by reading the folder now and then. It must be called once.
func (s *Store) Run(ctx context.Context) error {
	var events <-chan fsnotify.Event
	var failures <-chan error
	watch := func() {}
	if watcher, err := fsnotify.NewWatcher(); err != nil {
		s.logger.Warn("cannot watch the folder of Kubernetes objects; reading it periodically",
			"dir", s.folder.dir, "interval", rescanTime, "error", err)
	} else {
		defer watcher.Close()
		events, failures = watcher.Events, watcher.Errors
		// Once more at every rescan, because a folder that was replaced is no longer watched.
		watch = func() { s.report(watcher.Add(s.folder.dir)) }
	}
	rescan := time.NewTicker(rescanTime)
	defer rescan.Stop()
	settled := time.NewTimer(0)
	defer settled.Stop()
	watch()
	var latest time.Time // until when reading may be put off; zero: nothing to read
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-events:
			now := time.Now()
			if latest.IsZero() {
				latest = now.Add(maxSettleTime)
			}
			settled.Reset(min(settleTime, latest.Sub(now)))
		case err := <-failures: // lost events among others
			s.logger.Warn("missed changes in the folder of Kubernetes objects; reading it again",
				"dir", s.folder.dir, "error", err)
			settled.Reset(0)
		case <-settled.C:
			latest = time.Time{}
			s.refresh()
		case <-rescan.C:
			watch()
			s.refresh()
		}
	}
}

// refresh brings what is served up to date with the folder.
func (s *Store) refresh() {
	changed, err := s.folder.refresh()
	s.report(err)
	if !changed {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(s.folder.files)) {
		file := s.folder.files[name]
		if !file.news {
			continue
		}
		file.news = false
		if file.refused != nil {
			s.logger.Error("cannot use a file of Kubernetes objects; its last good state stays",
				"file", file.refused.File, "line", file.refused.Line, "error", file.refused)
		}
	}
	s.publish()
}

// report logs that the folder cannot be read, once for each reason.
func (s *Store) report(err error) {
	if err == nil {
		s.lastFailure = ""
		return
	}
	if s.lastFailure != err.Error() {
		s.lastFailure = err.Error()
		s.logger.Error("cannot read the folder of Kubernetes objects; its last good state stays",
			"dir", s.folder.dir, "error", err)
	}
}

// publish makes what counts in the folder what is served.
func (s *Store) publish() {
	pods, accounts, namespaces := make(map[string]object), make(map[string]object), make(map[string]object)
	spaces := map[string]bool{defaultName: true}
	for _, file := range s.folder.files {
		for _, d := range file.good.objects {
			switch d.id.kind {
			case kindPod:
				pods[d.id.key()] = d.object
				spaces[d.id.namespace] = true
			case kindServiceAccount:
				accounts[d.id.key()] = d.object
				spaces[d.id.namespace] = true
			case kindNamespace:
				namespaces[d.id.key()] = d.object
				spaces[d.id.name] = true
			}
		}
	}
	for space := range spaces {
		addMissing(namespaces, id{kind: kindNamespace, name: space})
		addMissing(accounts, id{kind: kindServiceAccount, namespace: space, name: defaultName})
	}
	// What a pod refers to is there before the pod is.
	changes := s.namespaces.replace(namespaces) + s.accounts.replace(accounts) + s.pods.replace(pods)
	if changes > 0 {
		s.logger.Info("read Kubernetes objects from files", "dir", s.folder.dir, "changes", changes,
			"pods", len(pods), "service_accounts", len(accounts), "namespaces", len(namespaces))
	}
	s.warnOfIgnored()
	s.warnOfMissing(pods, accounts)
}

func addMissing(objects map[string]object, i id) {
	if _, ok := objects[i.key()]; !ok {
		objects[i.key()] = implicit(i)
	}
}

func (s *Store) warnOfIgnored() {
	for _, name := range slices.Sorted(maps.Keys(s.folder.files)) {
		for _, i := range s.folder.files[name].good.ignored {
			if key := i.apiVersion + " " + i.kind; !s.ignored[key] {
				s.ignored[key] = true
				s.logger.Warn("ignoring objects of a kind that is not used", "api_version", i.apiVersion, "kind", i.kind,
					"file", name, "line", i.line)
			}
		}
	}
}

func (s *Store) warnOfMissing(pods, accounts map[string]object) {
	missing := make(map[id]string)
	for _, key := range slices.Sorted(maps.Keys(pods)) {
		pod := pods[key].(*corev1.Pod)
		account := id{kind: kindServiceAccount, namespace: pod.Namespace, name: pod.Spec.ServiceAccountName}
		if _, ok := accounts[account.key()]; ok {
			continue
		}
		podID := id{kind: kindPod, namespace: pod.Namespace, name: pod.Name}
		missing[podID] = account.name
		if s.missing[podID] != account.name {
			s.logger.Warn("a Pod refers to a ServiceAccount that no file declares; declare it", "namespace", pod.Namespace,
				"pod", pod.Name, "service_account", account.name)
		}
	}
	s.missing = missing
}
