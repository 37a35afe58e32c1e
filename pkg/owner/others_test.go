package owner

import (
	"path/filepath"
	"testing"
)

func TestOthers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	old, fresh := open(t, dir), open(t, dir)
	expect := func(c *Claimant, want bool, when string) {
		t.Helper()
		if got, err := c.Others(); err != nil || got != want {
			t.Errorf("%s: got %t, %v, want %t", when, got, err, want)
		}
	}
	expect(old, false, "nobody has claimed")
	check(t, old.Claim(t.Context(), nothing))
	expect(old, false, "it is the only one")
	expect(fresh, true, "there is an owner")
	check(t, fresh.Claim(t.Context(), nothing))
	expect(old, true, "there is a newer one")
	expect(fresh, true, "there is an older one")
	old.Resign()
	expect(fresh, false, "the older one has resigned")
}
