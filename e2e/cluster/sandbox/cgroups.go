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
	// Cgroup is the control group, in every hierarchy, below which all containers of a sandbox are.
	Cgroup = "/podrole-e2e"
	// cgroupRoot is where control groups are mounted.
	cgroupRoot = "/sys/fs/cgroup"
	// emptyWithin is how long the kernel may take to take killed processes out of their control group.
	emptyWithin = 10 * time.Second
)

// removeCgroups removes the control groups of a sandbox that has ended. One that is not empty yet is waited for.
func removeCgroups() error {
	// With version 1 there is a folder for each controller, with version 2 one for all.
	roots, err := filepath.Glob(cgroupRoot + "/*" + Cgroup)
	if err != nil {
		return fmt.Errorf("find control groups: %w", err)
	}
	for _, root := range append(roots, cgroupRoot+Cgroup) {
		var groups []string
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
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
