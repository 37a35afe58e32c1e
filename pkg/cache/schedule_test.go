package cache

import (
	"testing"
	"time"

	"github.com/podrole/podrole/pkg/sts"
)

func TestBackoff(t *testing.T) {
	const s = time.Second
	tests := []struct {
		name string
		kind sts.Kind
		p    pressure
		want []time.Duration // after the first failure, the second, …
	}{
		{"transient", sts.Transient, relaxed, []time.Duration{1 * s, 2 * s, 4 * s, 8 * s, 16 * s, 30 * s, 30 * s}},
		{"transient_low", sts.Transient, low, []time.Duration{1 * s, 2 * s, 4 * s, 8 * s, 10 * s, 10 * s}},
		{"transient_waited", sts.Transient, waited, []time.Duration{1 * s, 2 * s, 2 * s}},
		{"transient_urgent", sts.Transient, urgent, []time.Duration{1 * s, 2 * s, 4 * s, 5 * s, 5 * s}},
		{"transient_idle", sts.Transient, idle, []time.Duration{1 * s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 64 * s}},
		{"throttled", sts.Throttled, relaxed, []time.Duration{2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 60 * s, 60 * s}},
		{"throttled_low", sts.Throttled, low, []time.Duration{2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 60 * s}},
		{"throttled_urgent", sts.Throttled, urgent, []time.Duration{2 * s, 4 * s, 5 * s, 5 * s}},
		{"throttled_waited", sts.Throttled, waited, []time.Duration{2 * s, 4 * s, 5 * s, 5 * s}},
		{"denied", sts.Denied, relaxed, []time.Duration{2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 60 * s, 60 * s}},
		{"denied_waited", sts.Denied, waited, []time.Duration{2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 60 * s, 60 * s}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for i, want := range tt.want {
				if got := backoff(tt.kind, i+1, tt.p); got != want {
					t.Errorf("after %d failures: %s, want %s", i+1, got, want)
				}
			}
			want := tt.want[len(tt.want)-1]
			if tt.p == idle {
				want = 300 * s
			}
			if got := backoff(tt.kind, 1_000_000, tt.p); got != want {
				t.Errorf("after a million failures: %s, want %s", got, want)
			}
		})
	}
}

func TestFloor(t *testing.T) {
	for _, tt := range []struct{ life, want time.Duration }{
		{15 * time.Minute, 6*time.Minute + 15*time.Second},
		{time.Hour, 25 * time.Minute},
		{12 * time.Hour, 25 * time.Minute},
	} {
		if got := Floor(tt.life); got != tt.want {
			t.Errorf("Floor(%s) = %s, want %s", tt.life, got, tt.want)
		}
		if latest := refreshLeft(tt.life, 0); latest <= Floor(tt.life) {
			t.Errorf("a session of %s is refreshed with %s left, under its floor", tt.life, latest)
		}
	}
}

func TestLeftGoesByTheClockThatLeavesLess(t *testing.T) {
	minted := time.Now()
	s := &Session{Minted: minted}
	s.Credentials.Expiration = minted.Add(time.Hour).Round(0)
	for _, tt := range []struct {
		name string
		now  time.Time
		want time.Duration
	}{
		{"steady", minted.Add(20 * time.Minute), 40 * time.Minute},
		{"wall_clock_only", minted.Add(20 * time.Minute).Round(0), 40 * time.Minute},
		{"set_forward", minted.Add(2 * time.Hour).Round(0), -time.Hour},
		{"expired", minted.Add(time.Hour), 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := s.Left(tt.now); got != tt.want {
				t.Errorf("Left = %s, want %s", got, tt.want)
			}
			if got := s.live(tt.now); got != (tt.want > 0) {
				t.Errorf("live = %t", got)
			}
		})
	}
}
