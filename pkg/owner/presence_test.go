package owner

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLiving: an agent is seen from the moment it opens the folder until it resigns or dies, whether or not it claims.
func TestLiving(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	expect := func(want bool, when string) {
		t.Helper()
		if got, err := Living(dir); err != nil || got != want {
			t.Errorf("%s: %t, %v, want %t", when, got, err, want)
		}
	}
	expect(false, "without a folder")
	if _, err := os.Stat(dir); err == nil {
		t.Error("to ask makes the folder")
	}
	open(t, dir)
	expect(true, "an agent has not claimed yet")
	if others, err := open(t, dir).Others(); err != nil || others {
		t.Errorf("one that has not claimed is taken for one that serves: %t, %v", others, err)
	}
}

func TestLivingAfterTheEnd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	for _, claims := range []bool{false, true} {
		c := open(t, dir)
		if claims {
			mustClaim(t, c)
		}
		c.Resign()
		if living, err := Living(dir); err != nil || living {
			t.Errorf("claims %t: lives after its end: %t, %v", claims, living, err)
		}
	}
	// Of an agent of a version that claimed and said no more.
	c := open(t, dir)
	check(t, c.presence.Close())
	mustClaim(t, c)
	if living, err := Living(dir); err != nil || !living {
		t.Errorf("one that has only claimed: %t, %v", living, err)
	}
}

// TestPresenceOfTheDead: what agents that were killed left does not pile up, and is no stranger's.
func TestPresenceOfTheDead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	first := open(t, dir)
	for _, name := range []string{"X", "Y", "Z"} {
		check(t, unix.Mkfifo(filepath.Join(dir, presencePrefix+name), 0o600))
	}
	second := open(t, dir)
	mustClaim(t, second)
	present := 0
	for _, name := range files(t, dir) {
		if strings.HasPrefix(name, presencePrefix) {
			present++
		}
	}
	if present != 2 {
		t.Errorf("%q: want those of two agents", files(t, dir))
	}
	f, err := openFolder(dir)
	check(t, err)
	defer f.close()
	if _, foreign, err := f.claims(); err != nil || len(foreign) > 0 {
		t.Errorf("%q are taken for strangers' files, %v", foreign, err)
	}
	first.Resign()
	second.Resign()
}
