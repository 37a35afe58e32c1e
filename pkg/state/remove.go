package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Remove takes away what agents kept in the folder, and the folder if nothing else is in it. There may be none. No agent
// should have it open.
func Remove(path string) error {
	root, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove state: %w", err)
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return fmt.Errorf("remove state: %w", err)
	}
	ours := map[string]bool{
		"sessions": true, "tokens": true, "decisions": true, asideName: true,
		keysName: true, ownerName: true, lockName: true, confirmedName: true,
	}
	var errs []error
	left := 0
	for _, e := range entries {
		if !ours[e.Name()] && !strings.HasPrefix(e.Name(), temporary) {
			left++
			continue
		}
		if err := root.RemoveAll(e.Name()); err != nil {
			errs = append(errs, fmt.Errorf("remove state: %w", err))
		}
	}
	if left == 0 && len(errs) == 0 {
		_ = os.Remove(path) // in a container it is a mount point, and stays
	}
	return errors.Join(errs...)
}
