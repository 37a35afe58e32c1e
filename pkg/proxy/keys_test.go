package proxy

import "testing"

// TestSetKeys: tokens of a key that is still in the ring are good, those of one that has left it are not, and a ring that
// cannot be used changes nothing.
func TestSetKeys(t *testing.T) {
	s := &Server{}
	ring := mustRing(t, testKey)
	s.tokens.Store(&ring)
	text := ring.mint(testStart, 60, tokenSource, "")
	good := func() bool {
		_, err := s.tokens.Load().verify(text, testStart, tokenSource)
		return err == nil
	}
	for _, step := range []struct {
		name string
		keys [][]byte
		err  bool
		want bool
	}{
		{"a new one before it", [][]byte{otherKey, testKey}, false, true},
		{"none", nil, true, true},
		{"too short", [][]byte{otherKey, []byte("short")}, true, true},
		{"it has left", [][]byte{otherKey}, false, false},
	} {
		if err := s.SetKeys(step.keys); (err != nil) != step.err || good() != step.want {
			t.Errorf("%s: %v, the token is good: %t, want %t", step.name, err, good(), step.want)
		}
	}
}
