package nodebox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Sweep removes the namespaces, processes and folders of boxes whose owner no longer runs. Boxes of running processes
// are left alone. It is safe to call at any time, also from several processes at once.
func Sweep() error {
	namespaces, err := abandoned(netnsDir)
	if err != nil {
		return err
	}
	var errs []error
	ids := make(map[namespaceID]bool, len(namespaces))
	for _, path := range namespaces {
		if id, err := identifyNamespace(path); err == nil {
			ids[id] = true
		} else if !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if len(ids) > 0 {
		// Processes are found by their namespace: while one is left, so must the namespace be, for the next Sweep.
		if err := endProcesses(ids); err != nil {
			return wrapf(errors.Join(append(errs, err)...), "sweep")
		}
	}
	for _, path := range namespaces {
		errs = append(errs, removeNamespaceFile(path))
	}
	folders, err := abandoned(os.TempDir())
	errs = append(errs, err)
	for _, path := range folders {
		errs = append(errs, wrapf(os.RemoveAll(path), "remove folder"))
	}
	return wrapf(errors.Join(errs...), "sweep")
}

// abandoned lists what processes that no longer run left in dir.
func abandoned(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	var paths []string
	for _, entry := range entries {
		if o, ok := parseOwner(entry.Name()); ok && !o.alive() {
			paths = append(paths, filepath.Join(dir, entry.Name()))
		}
	}
	return paths, nil
}
