package nodebox

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestOwnerAlive(t *testing.T) {
	self, err := currentOwner()
	if err != nil {
		t.Fatal(err)
	}
	if !self.alive() {
		t.Error("the running process is dead")
	}
	if (owner{pid: self.pid, start: self.start + 1}).alive() {
		t.Error("another process with the same ID is alive")
	}
	ended := exec.Command("true")
	if err := ended.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := readProcess(ended.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	zombie := owner{pid: ended.Process.Pid, start: p.start}
	if !eventually(func() bool { return !zombie.alive() }) {
		t.Error("a process that waits to be reaped is alive")
	}
	if err := ended.Wait(); err != nil {
		t.Fatal(err)
	}
	if zombie.alive() {
		t.Error("a process that is gone is alive")
	}
}

func TestParseOwner(t *testing.T) {
	for name, want := range map[string]owner{
		"podrole-12-345-abc":             {pid: 12, start: 345},
		"podrole-12-345-abc-node":        {pid: 12, start: 345},
		"podrole-0-345-abc":              {},
		"podrole-12-345-":                {},
		"podrole-12-345":                 {},
		"podrole-12":                     {},
		"podrole":                        {},
		"podrole-a-345-abc":              {},
		"podrole-12-b-abc":               {},
		"podrole-+12-345-abc":            {},
		"podrole--12-345-abc":            {},
		"podrole-99999999999999-1-abc":   {},
		"cni-12-345-abc":                 {},
		"xpodrole-12-345-abc":            {},
		"podrole-1-99999999999999999999": {},
	} {
		if got, ok := parseOwner(name); got != want || ok != (want != owner{}) {
			t.Errorf("parseOwner(%q) = %v, %v, want %v", name, got, ok, want)
		}
	}
}

func FuzzParseOwner(f *testing.F) {
	f.Add("podrole-12-345-abc-node")
	f.Add("podrole-12-345-")
	f.Add("podrole--1--1--")
	f.Fuzz(func(t *testing.T, name string) {
		o, ok := parseOwner(name)
		if !ok {
			return
		}
		if o.pid <= 0 || !strings.HasPrefix(name, "podrole-") {
			t.Errorf("parseOwner(%q) = %v", name, o)
		}
		if again, ok := parseOwner(o.name() + "-node"); !ok || again != o {
			t.Errorf("name of %v is read as %v", o, again)
		}
	})
}

func TestParseStat(t *testing.T) {
	rest := " S 1" + strings.Repeat(" 7", 17) + " 424242 8 9"
	for name, c := range map[string]struct {
		line string
		want process
		ok   bool
	}{
		"plain":       {"12 (agent)" + rest, process{start: 424242}, true},
		"odd_command": {"12 (a) b (c)) )" + rest, process{start: 424242}, true},
		"zombie":      {strings.Replace("12 (agent)"+rest, " S ", " Z ", 1), process{start: 424242, dead: true}, true},
		"short":       {"12 (agent) S 1 2 3", process{}, false},
		"no_command":  {"12 agent S 1 2 3", process{}, false},
		"no_number":   {strings.Replace("12 (agent)"+rest, "424242", "x", 1), process{}, false},
		"empty":       {"", process{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got, ok := parseStat(c.line); got != c.want || ok != c.ok {
				t.Errorf("got %v, %v, want %v, %v", got, ok, c.want, c.ok)
			}
		})
	}
}

func FuzzParseStat(f *testing.F) {
	own, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", os.Getpid()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(own))
	f.Add("1 (")
	f.Add("1 ())) Z")
	f.Fuzz(func(t *testing.T, line string) {
		if p, ok := parseStat(line); !ok && p != (process{}) {
			t.Errorf("refused %q and returned %v", line, p)
		}
	})
}
