package proxy

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var (
	tokenSource = netip.MustParseAddr("10.1.2.3")
	otherKey    = []byte("another key with enough bytes in")
)

func mustRing(tb testing.TB, keys ...[]byte) keyring {
	tb.Helper()
	ring, err := newKeyring(keys)
	if err != nil {
		tb.Fatal(err)
	}
	return ring
}

func TestTokenForm(t *testing.T) {
	ring := mustRing(t, testKey)
	for _, source := range []string{"10.1.2.3", "fd00::1:2", "fe80::1%eth0"} {
		for _, uid := range []string{"", "7c2f3b52-6b0f-4c5f-9a34-0b4b4a4f3f11"} {
			text := ring.mint(testStart, maxTokenTTL, netip.MustParseAddr(source), uid)
			if len(text) != 56 || !strings.HasSuffix(text, "==") || strings.ContainsAny(text, "\r\n +/") {
				t.Errorf("token for %s %q is %q", source, uid, text)
			}
		}
	}
}

func TestTokenVerify(t *testing.T) {
	const ttl = 60
	ring := mustRing(t, testKey)
	bound := ring.mint(testStart, ttl, tokenSource, "uid-a")
	unbound := ring.mint(testStart, ttl, tokenSource, "")
	tests := []struct {
		name    string
		ring    keyring
		text    string
		after   time.Duration
		source  string
		uid     string
		address bool // whether verify takes it
		pod     bool // whether verifyPod does too
	}{
		{"good", ring, bound, 0, "10.1.2.3", "uid-a", true, true},
		{"last_second", ring, bound, 59 * time.Second, "10.1.2.3", "uid-a", true, true},
		{"expired", ring, bound, 60 * time.Second, "10.1.2.3", "uid-a", false, false},
		{"other_address", ring, bound, 0, "10.1.2.4", "uid-a", false, false},
		{"other_family", ring, bound, 0, "::ffff:10.1.2.3", "uid-a", false, false},
		{"other_pod", ring, bound, 0, "10.1.2.3", "uid-b", true, false},
		{"no_pod", ring, bound, 0, "10.1.2.3", "", true, false},
		{"unbound", ring, unbound, 0, "10.1.2.3", "uid-a", true, true},
		{"unbound_other_pod", ring, unbound, 0, "10.1.2.3", "uid-b", true, true},
		{"unbound_other_address", ring, unbound, 0, "10.1.2.4", "uid-a", false, false},
		{"second_key", mustRing(t, otherKey, testKey), bound, 0, "10.1.2.3", "uid-a", true, true},
		{"other_key", mustRing(t, otherKey), bound, 0, "10.1.2.3", "uid-a", false, false},
		{"empty", ring, "", 0, "10.1.2.3", "uid-a", false, false},
		{"cut", ring, bound[:55], 0, "10.1.2.3", "uid-a", false, false},
		{"longer", ring, bound + "=", 0, "10.1.2.3", "uid-a", false, false},
		{"newline", ring, bound[:55] + "\n", 0, "10.1.2.3", "uid-a", false, false},
		{"not_base64", ring, strings.Repeat("*", 56), 0, "10.1.2.3", "uid-a", false, false},
		{"no_padding", ring, strings.Repeat("A", 56), 0, "10.1.2.3", "uid-a", false, false},
		{"zeros", ring, strings.Repeat("A", 54) + "==", 0, "10.1.2.3", "uid-a", false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			source := netip.MustParseAddr(tt.source)
			tok, err := tt.ring.verify(tt.text, testStart.Add(tt.after), source)
			if (err == nil) != tt.address {
				t.Fatalf("verify: %v, want it taken: %v", err, tt.address)
			}
			if err == nil && tok.verifyPod(source, tt.uid) != tt.pod {
				t.Errorf("verifyPod: want it taken: %v", tt.pod)
			}
		})
	}
}

// Two keys with the same ID, one in 65 536 pairs of them, both work.
func TestKeyIDCollision(t *testing.T) {
	ring := mustRing(t, testKey, otherKey)
	old := mustRing(t, otherKey)
	ring[0].id, ring[1].id, old[0].id = 7, 7, 7
	for name, text := range map[string]string{
		"first":  ring.mint(testStart, 60, tokenSource, "uid-a"),
		"second": old.mint(testStart, 60, tokenSource, "uid-a"),
	} {
		tok, err := ring.verify(text, testStart, tokenSource)
		if err != nil || !tok.verifyPod(tokenSource, "uid-a") {
			t.Errorf("token of the %s key: %v", name, err)
		}
	}
}

// Every bit of a token counts.
func TestTokenBits(t *testing.T) {
	ring := mustRing(t, testKey)
	for _, uid := range []string{"", "uid-a"} {
		raw, err := base64.URLEncoding.DecodeString(ring.mint(testStart, 60, tokenSource, uid))
		if err != nil {
			t.Fatal(err)
		}
		for bit := range len(raw) * 8 {
			forged := bytes.Clone(raw)
			forged[bit/8] ^= 1 << (bit % 8)
			tok, err := ring.verify(base64.URLEncoding.EncodeToString(forged), testStart, tokenSource)
			if err == nil && tok.verifyPod(tokenSource, "uid-a") {
				t.Errorf("bit %d of the token for UID %q does not count", bit, uid)
			}
		}
	}
}

// What a later version may say in a token, this one does not understand, however well it is signed.
func TestTokenOfLaterVersion(t *testing.T) {
	k := newKey(testKey)
	for name, edit := range map[string]func(*token){
		"version": func(t *token) { t.raw[0]++ },
		"flag":    func(t *token) { t.raw[1] |= 1 << 1 },
		"neither": func(t *token) {},
	} {
		raw, err := tokenEncoding.DecodeString(keyring{k}.mint(testStart, 60, tokenSource, ""))
		if err != nil {
			t.Fatal(err)
		}
		tok := token{raw: [tokenSize]byte(raw)}
		edit(&tok)
		copy(tok.addressMAC(), (&mac{hash: hmac.New(sha256.New, testKey)}).sum(tok.header(), tokenSource, ""))
		_, err = keyring{k}.verify(tokenEncoding.EncodeToString(tok.raw[:]), testStart, tokenSource)
		if (err == nil) != (name == "neither") {
			t.Errorf("another %s: %v", name, err)
		}
	}
}

// The caller may wipe its keys.
func TestKeysAreCopied(t *testing.T) {
	secret := bytes.Clone(testKey)
	ring := mustRing(t, secret)
	clear(secret)
	text := ring.mint(testStart, 60, tokenSource, "")
	if _, err := mustRing(t, testKey).verify(text, testStart, tokenSource); err != nil {
		t.Error("the token was signed with the wiped key")
	}
}

// FuzzToken: no text is a token but those that were minted, and none makes it panic.
func FuzzToken(f *testing.F) {
	ring := mustRing(f, testKey, otherKey)
	good := map[string]bool{}
	for _, uid := range []string{"", "uid-a"} {
		text := ring.mint(testStart, maxTokenTTL, tokenSource, uid)
		good[text] = true
		f.Add(text)
		f.Add(text[:54] + "A=")
	}
	f.Add(strings.Repeat("A", 54) + "==")
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := ring.verify(text, testStart, tokenSource)
		if err != nil {
			return
		}
		if tok.verifyPod(tokenSource, "uid-a") && !good[text] {
			t.Errorf("%q is taken for a token", text)
		}
	})
}
