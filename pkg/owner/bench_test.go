package owner

import (
	"testing"
)

func BenchmarkDo(b *testing.B) {
	c, err := Open(Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	if err := c.Claim(b.Context(), nothing); err != nil {
		b.Fatal(err)
	}
	defer c.Resign()
	b.ReportAllocs()
	for b.Loop() {
		if owns, err := c.Do(b.Context(), nothing); !owns || err != nil {
			b.Fatal(owns, err)
		}
	}
}

func BenchmarkClaim(b *testing.B) {
	dir := b.TempDir()
	b.ReportAllocs()
	for b.Loop() {
		c, err := Open(Config{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Claim(b.Context(), nothing); err != nil {
			b.Fatal(err)
		}
		c.Resign()
	}
}
