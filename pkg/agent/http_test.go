package agent

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestRemoveSocket: what an agent that is gone left behind makes room, and a file that somebody named by mistake stays.
func TestRemoveSocket(t *testing.T) {
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "file"), filepath.Join(dir, "socket")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as when it was killed
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{file: true, socket: false, filepath.Join(dir, "none"): false} {
		removeSocket(path)
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s is there: %t, want %t", filepath.Base(path), err == nil, want)
		}
	}
}
