package nodebox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	modulePath   = "github.com/podrole/podrole"
	agentPackage = modulePath + "/cmd/agent"
)

// BuildAgent builds the agent once per process, with or without the race detector, and returns the path of its
// binary. The working directory must be inside the podrole module, as in any of its tests; a module nested in it will
// do. The binary stays until a later New or Sweep of another process; RemoveBuilds removes it sooner.
func BuildAgent(ctx context.Context, race bool) (string, error) {
	path, err := buildAgent(ctx, race)
	return path, wrapf(err, "build agent")
}

func buildAgent(ctx context.Context, race bool) (string, error) {
	dir, err := buildDir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", dir, err)
	}
	binary, mode := filepath.Join(dir, "podrole"), "-race=false"
	if race {
		binary, mode = filepath.Join(dir, "podrole-race"), "-race=true"
	}
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	// Under another name first: a build that was cut short must not pass for a whole one.
	unfinished := binary + ".unfinished"
	cmd := exec.CommandContext(ctx, "go", "build", mode, "-o", unfinished, agentPackage)
	cmd.Dir = root
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, output)
	}
	return binary, os.Rename(unfinished, binary)
}

// RemoveBuilds removes what BuildAgent built in this process.
func RemoveBuilds() error {
	dir, err := buildDir()
	if err != nil {
		return err
	}
	return wrapf(os.RemoveAll(dir), "remove agent builds")
}

// buildDir is the same throughout a process, and swept after it.
func buildDir() (string, error) {
	o, err := currentOwner()
	if err != nil {
		return "", err
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("podrole-%d-%d-builds", o.pid, o.start)), nil
}

// moduleRoot returns the root of the podrole module that the working directory is in.
func moduleRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		found, err := declaresModule(filepath.Join(dir, "go.mod"))
		if err != nil {
			return "", err
		}
		if found {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no module %s above %s; run from inside its source tree", modulePath, start)
		}
	}
}

func declaresModule(goMod string) (bool, error) {
	file, err := os.Open(goMod)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) == 2 && fields[0] == "module" {
			return fields[1] == modulePath, nil
		}
	}
	return false, lines.Err()
}
