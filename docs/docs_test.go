// Package docs_test holds the documentation against the code.
package docs_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/podrole/podrole/pkg/config"
)

var write = flag.Bool("write", false, "write docs/flags.md anew")

func TestFlagsReferenceIsCurrent(t *testing.T) {
	var want bytes.Buffer
	if err := config.WriteReference(&want); err != nil {
		t.Fatal(err)
	}
	if *write {
		if err := os.WriteFile("flags.md", want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("flags.md")
	if err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("docs/flags.md is not what the code says; write it with: make docs (%v)", err)
	}
}

// pages are what users read.
func pages(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, file := range append(files, "../README.md", "../CONTRIBUTING.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts[file] = string(text)
	}
	return texts
}

// TestFlagsThatAreNamedExist finds flags and variables that a page names and the code does not have.
func TestFlagsThatAreNamedExist(t *testing.T) {
	var reference bytes.Buffer
	if err := config.WriteReference(&reference); err != nil {
		t.Fatal(err)
	}
	for file, text := range pages(t) {
		for _, match := range regexp.MustCompile("`--([a-z0-9-]+)|podrole run[^`\n]* --([a-z0-9-]+)|PODROLE_([A-Z0-9_]+)").FindAllStringSubmatch(text, -1) {
			name := match[1] + match[2] + strings.ReplaceAll(strings.ToLower(match[3]), "_", "-")
			if name != "help" && !strings.Contains(reference.String(), "`--"+name+"`") {
				t.Errorf("%s names --%s, which is no flag", file, name)
			}
		}
	}
}

func TestLinksLeadSomewhere(t *testing.T) {
	for file, text := range pages(t) {
		for _, match := range regexp.MustCompile(`\]\(([^)#:]+)\)`).FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), match[1])); err != nil {
				t.Errorf("%s links to %s: %v", file, match[1], err)
			}
		}
	}
}

// TestMakeTargetsThatAreNamedExist finds commands that a page tells the reader to run and the Makefile does not have.
func TestMakeTargetsThatAreNamedExist(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range pages(t) {
		for _, match := range regexp.MustCompile("(?m)(?:^|`)(?:sudo )?make ([a-z0-9-]+)").FindAllStringSubmatch(text, -1) {
			if !bytes.Contains(makefile, []byte("\n"+match[1]+":")) {
				t.Errorf("%s says make %s, which is no target", file, match[1])
			}
		}
	}
}
