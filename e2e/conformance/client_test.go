package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestClients: every client can be told apart, and plays what there is a scenario for.
func TestClients(t *testing.T) {
	known := []string{scenarioRestart, scenarioContainer, scenarioFullURI}
	for _, s := range slices.Concat(plain(), strict()) {
		known = append(known, s.name)
	}
	seen := map[string]bool{}
	for _, c := range clients() {
		if seen[c.name] {
			t.Errorf("%s is there twice", c.name)
		}
		seen[c.name] = true
		if c.mayLearn() != (c.kit.inputs == nil) {
			t.Errorf("%s: what it is made from is pinned %t, its version is %q", c.name, c.kit.inputs != nil, c.version)
		}
		if strings.Trim(c.asks, "TLCR") != "" || !strings.Contains(c.asks, "LC") {
			t.Errorf("%s asks for %q", c.name, c.asks)
		}
		for scenario, reason := range c.lacks {
			if !slices.Contains(known, scenario) || reason == "" {
				t.Errorf("%s lacks %q because it %q", c.name, scenario, reason)
			}
		}
		if _, without := c.lacks[scenarioRestart]; without == c.tokens() {
			t.Errorf("%s: tokens %t, n/a in %q %t", c.name, c.tokens(), scenarioRestart, without)
		}
	}
}

// TestLocks: what a client is made from is there, and the locks pin its version and name no registry.
func TestLocks(t *testing.T) {
	for _, c := range clients() {
		if c.kit.inputs == nil {
			continue
		}
		pinned := false
		for _, file := range c.kit.inputs(c) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			switch filepath.Ext(file) {
			case ".mod":
				pinned = pinned || strings.Contains(string(text), " v"+c.version)
			case ".json":
				var lock struct {
					Packages map[string]struct{ Version, Resolved string }
				}
				if err := json.Unmarshal(text, &lock); err != nil {
					t.Errorf("%s: %s: %v", c.name, file, err)
				}
				for name, p := range lock.Packages {
					pinned = pinned || p.Version == c.version
					if p.Resolved != "" {
						t.Errorf("%s: %s says where %s came from; npm install --omit-lockfile-registry-resolved does not", c.name, file, name)
					}
				}
			}
		}
		if !pinned {
			t.Errorf("%s: its lock does not pin version %s", c.name, c.version)
		}
	}
}

func TestChoose(t *testing.T) {
	for glob, want := range map[string]int{"*": len(clients()), "aws-crt*": 2, "boto3": 1, "nobody": 0, "[": 0} {
		chosen, err := choose(glob)
		if len(chosen) != want || (err == nil) != (want > 0) {
			t.Errorf("%q: got %d, %v", glob, len(chosen), err)
		}
	}
}
