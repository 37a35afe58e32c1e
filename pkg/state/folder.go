package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

const (
	// maxFile bounds what is read of a file. A session with a token of 4 KiB takes some six.
	maxFile = 64 << 10
	// temporary is the prefix of files that have no name yet.
	temporary = ".new-"
)

// validity is what a folder remembers of a file: until when it is of use, and the later the more.
type validity struct {
	until   time.Time
	expires bool // it is of none after that
}

func (v validity) over(now time.Time) bool { return v.expires && !now.Before(v.until) }

// folder is one kind of file, each named by the hash of what it is about. Dir.mu guards it.
type folder struct {
	dir   *Dir
	name  string
	limit int
	files map[string]validity
}

// scan reads the whole folder: sets aside what parse refuses, and removes what has expired and what was never finished.
func (f *folder) scan(parse func(name string, data []byte) (validity, error)) {
	f.files = make(map[string]validity)
	entries, err := fs.ReadDir(f.dir.root.FS(), f.name)
	if err != nil {
		f.dir.logger.Warn("state cannot be listed", "folder", f.name, "error", err)
	}
	for _, e := range entries {
		file := path.Join(f.name, e.Name())
		if strings.HasPrefix(e.Name(), temporary) {
			_ = f.dir.root.RemoveAll(file)
			continue
		}
		data, err := f.dir.read(file)
		var v validity
		if err == nil {
			v, err = parse(e.Name(), data)
		}
		if err != nil {
			f.dir.setAside(file, err)
			continue
		}
		f.files[e.Name()] = v
	}
	f.trim(time.Now(), f.limit)
}

// put writes a file, and makes room for it. Caller is in Dir.write.
func (f *folder) put(name string, data []byte, v validity) error {
	if _, there := f.files[name]; !there {
		f.trim(time.Now(), f.limit-1)
	}
	if err := f.dir.replace(path.Join(f.name, name), data); err != nil {
		return err
	}
	f.files[name] = v
	return nil
}

// remove removes a file that may not be there. Caller is in Dir.write.
func (f *folder) remove(name string) error {
	delete(f.files, name)
	if err := f.dir.root.Remove(path.Join(f.name, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove state: %w", err)
	}
	return nil
}

// trim removes what has expired, and then what is of least use, until limit are left.
func (f *folder) trim(now time.Time, limit int) {
	for name, v := range f.files {
		if v.over(now) {
			_ = f.remove(name) // what stays is found again at the next start
		}
	}
	for len(f.files) > limit {
		least := ""
		for name, v := range f.files {
			if least == "" || v.until.Before(f.files[least].until) {
				least = name
			}
		}
		_ = f.remove(least)
	}
}

// replace writes a file such that nobody ever finds half of it. Caller holds the lock.
func (d *Dir) replace(name string, data []byte) error {
	dir, base := path.Split(name)
	fresh := path.Join(dir, temporary+base)
	if err := d.root.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write state: %w", err)
	}
	f, err := d.root.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = d.root.Rename(fresh, name)
	}
	if err != nil {
		return fmt.Errorf("write state: %w", errors.Join(err, d.root.Remove(fresh)))
	}
	return nil
}

// read returns the content of a file that nobody else could have written or read. The error of one that is not there is
// fs.ErrNotExist.
func (d *Dir) read(name string) ([]byte, error) {
	// Looking before opening: to open a pipe would wait for its other end.
	info, err := d.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, errors.New("not a file")
	case ownerOf(info) != os.Geteuid():
		return nil, fmt.Errorf("belongs to user %d", ownerOf(info))
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("its mode %#o lets others at it", info.Mode().Perm())
	case info.Size() > maxFile:
		return nil, fmt.Errorf("has %d bytes, more than anything written here", info.Size())
	}
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// load has parse read a file, and sets the file aside if it cannot be used. It reports whether there is one that can.
func (d *Dir) load(f *folder, name string, parse func(data []byte) error) bool {
	file := path.Join(f.name, name)
	data, err := d.read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err == nil {
		err = parse(data)
	}
	if err == nil {
		return true
	}
	// That fails where the file cannot be moved either; the next start tries again.
	_ = d.write(func() error {
		delete(f.files, name)
		d.setAside(file, err)
		return nil
	})
	return false
}
