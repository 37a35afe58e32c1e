package main

import (
	"fmt"
	"os"
)

// stateDir makes a folder for what outlives an agent, in memory as the manifests have it, and returns the flag that
// names it.
func stateDir() (flag string, remove func() error, err error) {
	dir, err := os.MkdirTemp("/dev/shm", "podrole-bench-")
	if err != nil {
		return "", nil, fmt.Errorf("make state folder: %w", err)
	}
	return "--state-dir=" + dir, func() error { return os.RemoveAll(dir) }, nil
}
