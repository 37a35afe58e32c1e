package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// programs is the group, below a machine's, of all that is not in a container. With version 2, no process may be in a
// group that has children with controllers (cgroups(7), "no internal processes").
const programs = "/programs"

// machineGroup is the group of a machine in the hierarchy that is mounted at root.
func machineGroup(root, machine string) string { return filepath.Join(root, Cgroup, machine) }

// enterCgroups moves the process into the groups of a machine, which it makes, and makes them the roots of a namespace:
// what is /k8s.io/ID to whoever is in it is below [Cgroup] to all others. The namespace is the calling thread's, and the
// whole process's after exec.
func enterCgroups(machine string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := makeGroup(root, machine); err != nil {
			return fmt.Errorf("make control group: %w", err)
		}
		if err := join(machineGroup(root, machine)); err != nil {
			return err
		}
	}
	// What the process is in now becomes the root.
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare control groups: %w", err)
	}
	for _, root := range roots {
		group := machineGroup(root, machine)
		if err := join(group + programs); err != nil {
			return err
		}
		if err := passOn(group); err != nil { // it is empty only now
			return err
		}
	}
	return nil
}

// mountCgroups shows the groups of a machine in place of the hierarchies that they are in, and nothing else of these. It
// is for the machine's mount namespace.
func mountCgroups(machine string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := mountCgroup(root, machineGroup(root, machine)); err != nil {
			return fmt.Errorf("mount control groups at %s: %w", root, err)
		}
	}
	return nil
}

func mountCgroup(root, group string) error {
	mount, err := unix.OpenTree(unix.AT_FDCWD, group, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	// Not hidden, but gone: runc takes the first mount of a controller that is listed.
	if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.MoveMount(mount, "", unix.AT_FDCWD, root, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func makeGroup(root, machine string) error {
	group := machineGroup(root, machine)
	all := filepath.Dir(group)
	if err := os.MkdirAll(all, 0o755); err != nil {
		return err
	}
	if err := giveProcessors(all, root); err != nil {
		return err
	}
	if err := passOn(all); err != nil {
		return err
	}
	return os.MkdirAll(group+programs, 0o755)
}

// giveProcessors gives a group, and what is made below it from then on, the processors and memory nodes of another one:
// with version 1, a group of controller cpuset takes no process without.
func giveProcessors(group, from string) error {
	err := set(filepath.Join(group, "cgroup.clone_children"), "1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // version 2
	}
	if err != nil {
		return err
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		text, err := os.ReadFile(filepath.Join(from, file))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another controller
		}
		if err != nil {
			return err
		}
		if err := set(filepath.Join(group, file), string(text)); err != nil {
			return err
		}
	}
	return nil
}

// passOn makes the controllers that a group of version 2 has available to its children, as they are with version 1.
func passOn(group string) error {
	text, err := os.ReadFile(filepath.Join(group, "cgroup.controllers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // version 1
	}
	if err != nil {
		return fmt.Errorf("read controllers: %w", err)
	}
	for controller := range strings.FieldsSeq(string(text)) {
		if err := set(filepath.Join(group, "cgroup.subtree_control"), "+"+controller); err != nil {
			return fmt.Errorf("pass on controller %s: %w", controller, err)
		}
	}
	return nil
}

// join moves the process, with all its threads, into a group.
func join(group string) error {
	if err := set(filepath.Join(group, "cgroup.procs"), "0"); err != nil {
		return fmt.Errorf("join control group: %w", err)
	}
	return nil
}

// set writes to a file of a control group, which exists or not as the kernel wants.
func set(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
