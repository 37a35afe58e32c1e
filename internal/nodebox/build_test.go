package nodebox

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBuildAgentOnce(t *testing.T) {
	t.Cleanup(func() {
		if err := RemoveBuilds(); err != nil {
			t.Error(err)
		}
	})
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if path, err := BuildAgent(cancelled, false); err == nil {
		t.Errorf("a cancelled build left %s", path)
	}
	dir, err := buildDir()
	if err != nil {
		t.Fatal(err)
	}
	for race, name := range map[bool]string{false: "podrole", true: "podrole-race"} {
		built := filepath.Join(dir, name)
		if err := os.WriteFile(built, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		// Would fail if it built again.
		if got, err := BuildAgent(cancelled, race); err != nil || got != built {
			t.Errorf("BuildAgent = %q, %v, want %q", got, err, built)
		}
	}
	if o, ok := parseOwner(filepath.Base(dir)); !ok || !o.alive() {
		t.Errorf("Sweep will not find %s", dir)
	}
}

func TestModuleRoot(t *testing.T) {
	root := t.TempDir()
	nested := filepath.Join(root, "bench", "deep")
	if err := os.MkdirAll(nested, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir, module := range map[string]string{root: modulePath, filepath.Dir(nested): modulePath + "/bench"} {
		content := "// a comment\n\nmodule " + module + "\n"
		if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(nested)
	if got, err := moduleRoot(); err != nil || got != root {
		t.Errorf("moduleRoot = %q, %v, want %q", got, err, root)
	}
	t.Chdir(t.TempDir())
	if got, err := moduleRoot(); err == nil || !strings.Contains(err.Error(), modulePath) {
		t.Errorf("moduleRoot outside of the module = %q, %v", got, err)
	}
}
