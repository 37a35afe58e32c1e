package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Cgroup is the control group, in every hierarchy, below which each machine has one of its name.
	Cgroup = "/podrole-e2e"
	// cgroupRoot is where control groups are mounted.
	cgroupRoot = "/sys/fs/cgroup"
	// emptyWithin is how long the kernel may take to take killed processes out of their control group.
	emptyWithin = 10 * time.Second
)

// hierarchies returns the folders at which control groups are mounted: one for each controller with version 1, beside
// which there may be one of version 2 without controllers; one for all with version 2 alone.
func hierarchies() ([]string, error) {
	if isGroup(cgroupRoot) {
		return []string{cgroupRoot}, nil
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	var all []string
	for _, entry := range entries {
		// A link is another name for controllers that are mounted together.
		if dir := filepath.Join(cgroupRoot, entry.Name()); entry.IsDir() && isGroup(dir) {
			all = append(all, dir)
		}
	}
	return all, nil
}

func isGroup(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "cgroup.procs"))
	return err == nil
}

// removeCgroups removes the groups of this name, and all below them, whose processes have been killed. One that is not
// empty yet is waited for.
func removeCgroups(name string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		var groups []string
		err := filepath.WalkDir(filepath.Join(root, name), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				groups = append(groups, path)
			}
			return nil // what is gone is gone
		})
		if err != nil {
			return fmt.Errorf("list control groups: %w", err)
		}
		for _, group := range slices.Backward(groups) { // the inner ones first
			if err := removeCgroup(group); err != nil {
				return err
			}
		}
	}
	return nil
}

func removeCgroup(group string) error {
	deadline := time.Now().Add(emptyWithin)
	for {
		err := unix.Rmdir(group)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EBUSY) || time.Now().After(deadline):
			members, _ := os.ReadFile(filepath.Join(group, "cgroup.procs"))
			return fmt.Errorf("remove control group %s, with processes %q: %w", group, strings.Fields(string(members)), err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
