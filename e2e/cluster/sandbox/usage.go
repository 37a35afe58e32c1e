package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Usage is what a container uses: all processes of a control group.
type Usage struct {
	CPU    time.Duration // since it was started
	Memory int64         // bytes, with the files that the kernel keeps on its behalf
	// WorkingSet is Memory without those files that were not used lately: what the kubelet looks at
	// (https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/).
	WorkingSet int64
}

// Usage returns what the container uses that a process of the machine is in, by the process ID that the machine sees.
func (m *Machine) Usage(pid int) (Usage, error) {
	u, err := m.usage(pid)
	if err != nil {
		return Usage{}, fmt.Errorf("read usage of process %d on %s: %w", pid, m.Name, err)
	}
	return u, nil
}

func (m *Machine) usage(pid int) (u Usage, err error) {
	text, err := os.ReadFile(m.File(filepath.Join("/proc", strconv.Itoa(pid), "cgroup")))
	if err != nil {
		return u, err
	}
	var inactive int64
	if memory, v1 := groupOf(string(text), "memory"); v1 { // version 1 of control groups: a tree for each controller
		cpu, _ := groupOf(string(text), "cpuacct")
		u.CPU, err = number[time.Duration](err, cpu+"/cpuacct.usage", "")
		u.Memory, err = number[int64](err, memory+"/memory.usage_in_bytes", "")
		inactive, err = number[int64](err, memory+"/memory.stat", "total_inactive_file")
	} else {
		group, _ := groupOf(string(text), "")
		u.CPU, err = number[time.Duration](err, group+"/cpu.stat", "usage_usec")
		u.CPU *= time.Microsecond
		u.Memory, err = number[int64](err, group+"/memory.current", "")
		inactive, err = number[int64](err, group+"/memory.stat", "inactive_file")
	}
	u.WorkingSet = u.Memory - inactive
	return u, err
}

// groupOf returns the folder of a process's control group, from what its file cgroup in /proc says of a controller; of none
// with version 2 (cgroups(7)).
func groupOf(text, controller string) (folder string, ok bool) {
	for line := range strings.Lines(text) {
		field := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(field) == 3 && slices.Contains(strings.Split(field[1], ","), controller) {
			return filepath.Join(cgroupRoot, controller, field[2]), true
		}
	}
	return "", false
}

// number returns the one number in a file, or the one behind key where there are several, unless there was an error before.
func number[T ~int64](before error, file, key string) (T, error) {
	if before != nil {
		return 0, before
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		name, value, several := strings.Cut(strings.TrimSpace(line), " ")
		if !several {
			name, value = "", name
		}
		if name == key {
			n, err := strconv.ParseInt(value, 10, 64)
			return T(n), err
		}
	}
	return 0, fmt.Errorf("%s: no number %q", file, key)
}
