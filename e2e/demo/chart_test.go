package main

import (
	"strings"
	"testing"
	"time"

	"github.com/podrole/podrole/internal/poll"
)

func TestDrawChart(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var steady, spiky []poll.Sample
	for i := range 90 {
		at := began.Add(time.Duration(i) * time.Second)
		steady = append(steady, poll.Sample{At: at, Took: 2 * time.Millisecond, Key: string(rune('a' + i/45))})
		took := time.Microsecond
		if i == 60 {
			took = 1500 * time.Millisecond
		}
		spiky = append(spiky, poll.Sample{At: at, Took: took})
	}
	var b strings.Builder
	if err := drawChart(&b, series{"steady", 'o', steady}, series{"spiky", '^', spiky}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(b.String(), "\n")
	index := func(mark string, line int) int { return strings.Index(lines[line], mark) }
	find := func(text string) int {
		for i, l := range lines {
			if strings.Contains(l, text) {
				return i
			}
		}
		t.Fatalf("no %q in\n%s", text, b.String())
		return 0
	}
	plateau := find("oooo")
	if n := strings.Count(lines[plateau], "o"); n != 90 {
		t.Errorf("the steady series has %d columns, want all 90", n)
	}
	second := find("1s │")
	if got := index("^", second); got < 0 {
		t.Errorf("no spike above one second in\n%s", b.String())
	}
	if floor := find("100µs"); strings.Count(lines[floor], "^") != 89 {
		t.Errorf("what is below the floor is not drawn on it:\n%s", b.String())
	}
	if rotations := find(" rotation"); strings.Count(lines[rotations], "^") != 1 {
		t.Errorf("want one rotation:\n%s", b.String())
	}
}

func TestDrawChartWithoutSamples(t *testing.T) {
	if err := drawChart(new(strings.Builder), series{}); err == nil {
		t.Error("no error")
	}
}
