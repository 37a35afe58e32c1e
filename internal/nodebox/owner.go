package nodebox

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// owner is the process that a box belongs to. A process ID alone is given out again; together with the start time it
// is not.
type owner struct {
	pid   int
	start uint64 // clock ticks after boot, field 22 of /proc/PID/stat
}

// currentOwner returns the calling process.
func currentOwner() (owner, error) {
	pid := os.Getpid()
	p, err := readProcess(pid)
	if err != nil {
		return owner{}, err
	}
	return owner{pid: pid, start: p.start}, nil
}

// parseOwner returns the owner that a name made by owner.name, with whatever is appended to it, carries.
func parseOwner(name string) (owner, bool) {
	rest, ours := strings.CutPrefix(name, "podrole-")
	pidText, rest, hasPID := strings.Cut(rest, "-")
	startText, rest, hasStart := strings.Cut(rest, "-")
	if !ours || !hasPID || !hasStart || rest == "" {
		return owner{}, false
	}
	pid, err := strconv.ParseUint(pidText, 10, 31)
	if err != nil || pid == 0 {
		return owner{}, false
	}
	start, err := strconv.ParseUint(startText, 10, 64)
	if err != nil {
		return owner{}, false
	}
	return owner{pid: int(pid), start: start}, true
}

// name returns a new name that nobody else uses and that parseOwner understands.
func (o owner) name() string {
	return fmt.Sprintf("podrole-%d-%d-%s", o.pid, o.start, strings.ToLower(rand.Text()[:8]))
}

// alive reports whether the process still runs. One that merely waits to be reaped does not; one that cannot be looked
// at does.
func (o owner) alive() bool {
	p, err := readProcess(o.pid)
	if err != nil {
		return !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH)
	}
	return p.start == o.start && !p.dead
}

// process is what /proc/PID/stat says that matters here.
type process struct {
	start uint64
	dead  bool
}

func readProcess(pid int) (process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, fmt.Errorf("read process: %w", err)
	}
	p, ok := parseStat(string(stat))
	if !ok {
		return process{}, fmt.Errorf("read process %d: unexpected format of /proc/%d/stat", pid, pid)
	}
	return p, nil
}

// parseStat reads one line of /proc/PID/stat. The second field is the command in parentheses and may hold anything,
// parentheses and spaces included (proc_pid_stat(5)), so fields are counted from the last closing one.
func parseStat(line string) (process, bool) {
	const state, startTime = 3, 22
	end := strings.LastIndexByte(line, ')')
	if end < 0 {
		return process{}, false
	}
	fields := strings.Fields(line[end+1:])
	if len(fields) <= startTime-state {
		return process{}, false
	}
	start, err := strconv.ParseUint(fields[startTime-state], 10, 64)
	if err != nil {
		return process{}, false
	}
	return process{start: start, dead: strings.ContainsAny(fields[0], "ZXx")}, true
}
