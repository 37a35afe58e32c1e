package nodebox

import (
	"log/slog"
	"os"
	"testing"
)

// ForTest builds a box for one test or benchmark and closes it when that ends. It skips where it lacks root.
func ForTest(t testing.TB, c Config) *Box {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root: run the tests as root, for example with sudo make test")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	b, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}
