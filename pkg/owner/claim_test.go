package owner

import (
	"math"
	"testing"
)

func TestParseClaim(t *testing.T) {
	for file, want := range map[string]claim{
		"claim-1-X":                    {1, "X"},
		"claim-18446744073709551615-X": {math.MaxUint64, "X"},
		"claim-12-A-B":                 {12, "A-B"},
	} {
		if got, ok := parseClaim(file); !ok || got != want {
			t.Errorf("%q: %v, %t", file, got, ok)
		}
	}
	for _, file := range []string{
		"", "claim", "claim-", "claim-1", "claim-1-", "claim-0-X", "claim-01-X", "claim-+1-X", "claim--1-X", "claim-1_0-X",
		"claim-0x1-X", "claim-18446744073709551616-X", "Claim-1-X", " claim-1-X", nameless,
	} {
		if got, ok := parseClaim(file); ok {
			t.Errorf("%q: %v", file, got)
		}
	}
}

// FuzzParseClaim: a claim has one name, and a name one claim.
func FuzzParseClaim(f *testing.F) {
	for _, file := range []string{
		"claim-1-X", "claim-18446744073709551615-X", "claim-007-X", "claim-1", "claim-0-X", nameless,
	} {
		f.Add(file)
	}
	f.Fuzz(func(t *testing.T, file string) {
		c, ok := parseClaim(file)
		if !ok {
			if c != (claim{}) {
				t.Errorf("%q is no claim, and %v", file, c)
			}
			return
		}
		if c.String() != file {
			t.Errorf("%q became %q", file, c)
		}
		if c.compare(claim{}) <= 0 || c.compare(c) != 0 {
			t.Errorf("%q is not above nothing, or not itself", file)
		}
		older := claim{c.generation - 1, c.id}
		if c.compare(older) <= 0 || older.compare(c) >= 0 {
			t.Errorf("%q is not above the generation before", file)
		}
	})
}
