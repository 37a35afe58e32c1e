package kubefiles

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// FileError is what is wrong with a file.
type FileError struct {
	File string // path
	Line int    // counted from one; zero: the file as a whole
	Err  error  // a *DuplicateError, or opaque
}

// Error implements error.
func (e *FileError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err)
}

// Unwrap returns the cause.
func (e *FileError) Unwrap() error { return e.Err }

// DuplicateError is an object, or the UID of a pod, that a file declares although another file does so already.
type DuplicateError struct {
	Object string // kind and name, or UID
	File   string // path of the other file
	Line   int    // in the other file, counted from one
}

// Error implements error.
func (e *DuplicateError) Error() string {
	return fmt.Sprintf("%s is declared in %s:%d already; keep one", e.Object, e.File, e.Line)
}

// folder is the files of a folder: the last readable state of each, such that together they declare nothing twice.
// It is not safe for concurrent use.
type folder struct {
	dir   string
	files map[string]*file // by name
}

// file is one file of a folder.
type file struct {
	digest  [sha256.Size]byte // of its bytes
	latest  content           // what it holds, if problem is nil
	problem *FileError        // why latest cannot be read
	good    content           // what counts
	current bool              // good is latest
	refused *FileError        // why good is not latest; nil if it is
	news    bool              // refused or current changed since it was last asked for
}

// isObjectFile tells whether a file of that name holds objects. Hidden files are the temporary files of editors and the
// workings of the kubelet's volumes.
func isObjectFile(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// refresh reads what has changed and settles what counts. It reports whether anything did change. The error says that
// the folder could not be read: then everything stays as it is.
func (f *folder) refresh() (bool, error) {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return false, fmt.Errorf("read folder: %w", err)
	}
	present := make(map[string]bool, len(entries))
	changed := false
	for _, e := range entries {
		name := e.Name()
		if !isObjectFile(name) {
			continue
		}
		data, err := readRegular(filepath.Join(f.dir, name))
		if errors.Is(err, errNotRegular) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		present[name] = true
		changed = f.take(name, data, err) || changed
	}
	for name := range f.files {
		if !present[name] {
			delete(f.files, name)
			changed = true
		}
	}
	if changed {
		f.settle()
	}
	return changed, nil
}

// take records what was read of a file, and reports whether it is new.
func (f *folder) take(name string, data []byte, err error) bool {
	digest := sha256.Sum256(data)
	if err != nil {
		digest = sha256.Sum256([]byte("cannot be read: " + err.Error()))
	}
	known := f.files[name]
	if known == nil {
		known = new(file)
		f.files[name] = known
	} else if known.digest == digest {
		return false
	}
	path := filepath.Join(f.dir, name)
	known.digest, known.current, known.refused, known.problem = digest, false, nil, nil
	if err == nil {
		if filepath.Ext(name) == ".json" {
			// JSON may be indented by tabs, YAML may not. A string of JSON holds no tabs.
			data = bytes.ReplaceAll(data, []byte("\t"), []byte(" "))
		}
		known.latest, err = parse(data)
	}
	if err != nil {
		known.problem = &FileError{File: path, Err: err}
		if e, ok := errors.AsType[*lineError](err); ok {
			known.problem.Line, known.problem.Err = e.Line, e.Err
		}
	}
	return true
}

// settle decides which state of each file counts: the latest, unless it cannot be read or declares what another file
// declares. Of two files with the same declaration the one that was there first wins, of two new ones the first by
// name.
func (f *folder) settle() {
	counts := make(map[string]*content, len(f.files))
	refused := make(map[string]*FileError)
	for name, file := range f.files {
		switch {
		case file.problem != nil:
			counts[name], refused[name] = &file.good, file.problem
		default:
			counts[name] = &file.latest
		}
	}
	for {
		// What counted before is free of duplicates, so the files of this list are the only ones to refuse.
		names := slices.SortedFunc(maps.Keys(f.files), func(a, b string) int {
			if newA, newB := f.isNew(a, refused), f.isNew(b, refused); newA != newB {
				if newA {
					return 1
				}
				return -1
			}
			return strings.Compare(a, b)
		})
		name, err := f.firstDuplicate(names, counts)
		if err == nil {
			break
		}
		counts[name], refused[name] = &f.files[name].good, err
	}
	for name, file := range f.files {
		current := refused[name] == nil
		file.news = file.news || current != file.current || message(refused[name]) != message(file.refused)
		file.good, file.current, file.refused = *counts[name], current, refused[name]
	}
}

// isNew tells whether a state of the file is about to count that did not count before.
func (f *folder) isNew(name string, refused map[string]*FileError) bool {
	return refused[name] == nil && !f.files[name].current
}

// firstDuplicate goes through the files and returns the first that declares what one before it does.
func (f *folder) firstDuplicate(names []string, counts map[string]*content) (string, *FileError) {
	type place struct {
		file string
		line int
	}
	objects := make(map[id]place)
	uids := make(map[string]place) // of pods: the agent tells them apart by it
	for _, name := range names {
		for _, d := range counts[name].objects {
			here, what := place{filepath.Join(f.dir, name), d.line}, d.id.String()
			other, found := objects[d.id]
			if uid := string(d.object.GetUID()); !found && d.id.kind == kindPod {
				if other, found = uids[uid]; found {
					what = "the UID of " + what
				}
				uids[uid] = here
			}
			if found {
				return name, &FileError{File: here.file, Line: here.line,
					Err: &DuplicateError{Object: what, File: other.file, Line: other.line}}
			}
			objects[d.id] = here
		}
	}
	return "", nil
}

// message returns the text of an error that may be nil.
func message(err *FileError) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

var errNotRegular = errors.New("not a regular file")

// readRegular reads a file, or what a link leads to. Pipes and devices are not read: that might never end.
func readRegular(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errNotRegular
	}
	if info.Size() > maxFileSize {
		return nil, fmt.Errorf("larger than %d MiB; split it", maxFileSize>>20)
	}
	return os.ReadFile(path)
}
