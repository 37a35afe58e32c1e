package cni

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// maxFileSize bounds what is read of a file. Results with dozens of interfaces and their network's configuration take
// some kilobytes.
const maxFileSize = 1 << 20

// folder is the files in the folder of results, as last read. It is not safe for concurrent use.
type folder struct {
	dir   string
	files map[string]*file // by name
}

// file is a file as last read.
type file struct {
	size    int64
	written time.Time

	sandbox Sandbox     // if problem is nil
	problem *ParseError // why there is no sandbox

	suspected, reported bool // corrupt at a rescan; logged
}

// scan reads the files that are new or changed, and forgets those that are gone. A folder that does not exist is an
// empty one. After an error all is as it was.
func (f *folder) scan() error {
	entries, err := os.ReadDir(f.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read folder: %w", err)
	}
	present := make(map[string]bool, len(entries))
	for _, e := range entries {
		present[e.Name()] = true
		if info, err := e.Info(); err != nil || !f.knows(e.Name(), info) {
			f.read(e.Name())
		}
	}
	for name := range f.files {
		if !present[name] {
			delete(f.files, name)
		}
	}
	return nil
}

func (f *folder) knows(name string, info fs.FileInfo) bool {
	known := f.files[name]
	return known != nil && known.size == info.Size() && known.written.Equal(info.ModTime())
}

// read reads one file. libcni does not replace files, it writes into them, so that there may be half of one; then there
// is another event to come.
func (f *folder) read(name string) {
	info, data, err := readRegular(filepath.Join(f.dir, name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotRegular) {
		delete(f.files, name)
		return
	}
	var read file
	if info != nil {
		read.size, read.written = info.Size(), info.ModTime()
	}
	if err == nil {
		read.sandbox, err = Parse(name, data)
		read.sandbox.Written = read.written
	}
	if err != nil {
		var ok bool
		if read.problem, ok = errors.AsType[*ParseError](err); !ok {
			read.problem = &ParseError{File: name, Verdict: Corrupt, Err: err}
		}
	}
	f.files[name] = &read
}

var errNotRegular = errors.New("not a regular file")

// readRegular reads a file. What it returns about the file is no younger than the data, so that a later look at the
// file shows whether it changed.
func readRegular(path string) (fs.FileInfo, []byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, errNotRegular
	}
	opened, err := os.Open(path)
	if err != nil {
		return info, nil, err
	}
	defer opened.Close()
	data, err := io.ReadAll(io.LimitReader(opened, maxFileSize+1))
	if err == nil && len(data) > maxFileSize {
		err = fmt.Errorf("larger than %d bytes", maxFileSize)
	}
	return info, data, err
}
