package iptables

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/podrole/podrole/internal/nodebox"
)

// boxRunner runs the real programs inside a namespace.
type boxRunner struct{ namespace *nodebox.Namespace }

func (r boxRunner) Run(ctx context.Context, stdin, name string, args ...string) (out []byte, err error) {
	err = r.namespace.Do(func() (err error) {
		out, err = Exec{}.Run(ctx, stdin, name, args...)
		return err
	})
	return out, err
}

// newNode returns the node of a box, with a lock file of its own for the legacy backend.
func newNode(t *testing.T) (*nodebox.Box, boxRunner) {
	t.Helper()
	box := nodebox.ForTest(t, nodebox.Config{})
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(box.Dir, "xtables.lock"))
	return box, boxRunner{box.Node}
}

func TestScenariosOnKernel(t *testing.T) {
	for _, backend := range []Backend{NFT, Legacy} {
		t.Run(string(backend), func(t *testing.T) {
			for name, steps := range scenarios {
				t.Run(name, func(t *testing.T) {
					_, runner := newNode(t)
					got := play(t, runner, backend, steps)
					compareGolden(t, filepath.Join("testdata", name+".golden"), got)
				})
			}
		})
	}
}
