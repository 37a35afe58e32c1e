package state

import (
	"cmp"
	"io/fs"
	"path"
	"slices"
)

const (
	asideName = "aside"
	maxAside  = 16
)

// setAside moves what cannot be used out of the way, for an operator to look at, and says so. The last maxAside are
// kept. Caller holds mu.
func (d *Dir) setAside(name string, problem error) {
	to := path.Join(asideName, path.Base(name))
	_ = d.root.RemoveAll(to) // of the same name: the latest is of more interest
	if err := d.root.Rename(name, to); err != nil {
		d.logger.Warn("state cannot be used, nor set aside", "file", name, "problem", problem, "error", err)
		return
	}
	d.logger.Warn("state cannot be used and was set aside", "file", name, "problem", problem, "aside", to)
	entries, err := fs.ReadDir(d.root.FS(), asideName)
	if err != nil || len(entries) <= maxAside {
		return
	}
	age := func(e fs.DirEntry) int64 {
		info, err := e.Info()
		if err != nil {
			return 0
		}
		return info.ModTime().UnixNano()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(age(a), age(b)) })
	for _, e := range entries[:len(entries)-maxAside] {
		_ = d.root.RemoveAll(path.Join(asideName, e.Name()))
	}
}
