package metadata

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParsePattern(t *testing.T) {
	tests := []struct{ text, want, problem string }{
		{text: "network/interfaces/macs/**", want: "meta-data/network/interfaces/macs/**"},
		{text: "meta-data/spot/*", want: "meta-data/spot/*"},
		{text: "autoscaling/target-lifecycle-state", want: "meta-data/autoscaling/target-lifecycle-state"},
		{text: "dynamic/fws/instance-monitoring", want: "dynamic/fws/instance-monitoring"},
		{text: "network/interfaces/macs/*/vpc-id", want: "meta-data/network/interfaces/macs/*/vpc-id"},
		{text: "network/interfaces/macs/0a:1b:2c:3d:4e:5f/mac", want: "meta-data/network/interfaces/macs/0a:1b:2c:3d:4e:5f/mac"},
		{text: "tags/instance/team=web@x+y", want: "meta-data/tags/instance/team=web@x+y"},
		{text: "placement/iam", want: "meta-data/placement/iam"},

		{text: "", problem: "one slash"},
		{text: "/network", problem: "one slash"},
		{text: "network/", problem: "one slash"},
		{text: "network//interfaces", problem: "one slash"},
		{text: "network/**/mac", problem: "at the end"},
		{text: "network/eth*", problem: "whole segment"},
		{text: "network/***", problem: "whole segment"},
		{text: "network/ x", problem: "letters"},
		{text: "network/%2e%2e/iam", problem: "letters"},
		{text: "network?x=y", problem: "letters"},
		{text: `network\iam`, problem: "letters"},
		{text: "network/é", problem: "letters"},
		{text: "meta-data", problem: "below"},
		{text: "dynamic", problem: "below"},

		{text: "iam", problem: "its own role"},
		{text: "iam/**", problem: "its own role"},
		{text: "IAM/info", problem: "its own role"},
		{text: "meta-data/iam/security-credentials/*", problem: "its own role"},
		{text: "*", problem: "its own role"},
		{text: "**", problem: "its own role"},
		{text: "meta-data/**", problem: "its own role"},
		{text: "*/info", problem: "its own role"},
		{text: "identity-credentials/ec2/info", problem: "credentials of the node"},
		{text: "managed-ssh-keys/**", problem: "keys"},
		{text: "public-keys/0/openssh-key", problem: "keys"},
		{text: "user-data", problem: "starts with"},
		{text: "user-data/**", problem: "starts with"},
		{text: "dynamic/**", problem: "signatures"},
		{text: "dynamic/*", problem: "signatures"},
		{text: "dynamic/*/pkcs7", problem: "signatures"},
		{text: "dynamic/instance-identity/signature", problem: "signatures"},
		{text: "dynamic/instance-identity/**", problem: "signatures"},
	}
	for _, tt := range tests {
		t.Run(strings.ReplaceAll(tt.text, "/", "_"), func(t *testing.T) {
			p, err := ParsePattern(tt.text)
			if tt.problem == "" {
				if err != nil || p.String() != tt.want {
					t.Errorf("read as %q, %v; want %q", p, err, tt.want)
				}
				return
			}
			if e, ok := errors.AsType[*PatternError](err); !ok || !strings.Contains(e.Problem, tt.problem) || e.Pattern != tt.text {
				t.Errorf("read as %q, %v; want it refused because of %q", p, err, tt.problem)
			}
		})
	}
}

func TestParsePatterns(t *testing.T) {
	for list, want := range map[string][]string{
		"":                                  nil,
		" , ":                               nil,
		"spot/*, events/**":                 {"meta-data/spot/*", "meta-data/events/**"},
		"spot/*,\n events/**\ttags/a":       {"meta-data/spot/*", "meta-data/events/**", "meta-data/tags/a"},
		strings.Repeat("a/b,", maxPatterns): strings.Split(strings.TrimSuffix(strings.Repeat("meta-data/a/b ", maxPatterns), " "), " "),
	} {
		got, err := ParsePatterns(list)
		if err != nil {
			t.Errorf("%q: %v", list, err)
		}
		var texts []string
		for _, p := range got {
			texts = append(texts, p.String())
		}
		if diff := cmp.Diff(want, texts); diff != "" {
			t.Errorf("%q (-want +got):\n%s", list, diff)
		}
	}
	for _, list := range []string{
		"spot/*, iam/**", strings.Repeat("a/b,", maxPatterns+1), strings.Repeat(" ", maxList+1), "spot/* ; events/**",
	} {
		got, err := ParsePatterns(list)
		if _, ok := errors.AsType[*PatternError](err); !ok || got != nil {
			t.Errorf("%.20q: %v, %v; want a PatternError", list, got, err)
		}
		if len(err.Error()) > 300 {
			t.Errorf("%.20q: the error has %d characters", list, len(err.Error()))
		}
	}
}

func TestParseAnnotation(t *testing.T) {
	if got, err := ParseAnnotation("network/interfaces/macs/** spot/*"); err != nil || len(got) != 2 {
		t.Errorf("%v, %v; want two patterns", got, err)
	}
	for _, list := range []string{"tags/instance/*", "spot/*,tags/**", "tags", "iam/**"} {
		got, err := ParseAnnotation(list)
		if _, ok := errors.AsType[*PatternError](err); !ok || got != nil {
			t.Errorf("%q: %v, %v; want it refused", list, got, err)
		}
	}
}

func TestMatch(t *testing.T) {
	const macs = "meta-data/network/interfaces/macs"
	tests := []struct {
		pattern, path  string
		allowed, leads bool
	}{
		{"network/interfaces/macs/**", macs + "/0a:1b/vpc-id", true, false},
		{"network/interfaces/macs/**", macs + "/0a:1b", true, false},
		{"network/interfaces/macs/**", macs, false, true},
		{"network/interfaces/macs/**", "meta-data/network", false, true},
		{"network/interfaces/macs/**", "meta-data", false, true},
		{"network/interfaces/macs/**", "", false, false},
		{"network/interfaces/macs/**", "dynamic", false, false},
		{"network/interfaces/macs/**", macs + "x/0a:1b", false, false},
		{"network/interfaces/macs/**", "meta-data/network/interfaces/mac", false, false},
		{"network/interfaces/macs/*/mac", macs + "/0a:1b/mac", true, false},
		{"network/interfaces/macs/*/mac", macs + "/0a:1b/vpc-id", false, false},
		{"network/interfaces/macs/*/mac", macs + "/0a:1b/mac/x", false, false},
		{"network/interfaces/macs/*/mac", macs + "/0a:1b", false, true},
		{"spot/*", "meta-data/spot/instance-action", true, false},
		{"spot/*", "meta-data/spot/a/b", false, false},
		{"spot/*", "meta-data/spot", false, true},
		{"public-ipv4", "meta-data/public-ipv4", true, false},
		{"public-ipv4", "meta-data/PUBLIC-IPV4", false, false},
	}
	for _, tt := range tests {
		p, err := ParsePattern(tt.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if allowed, leads := p.match(tt.path); allowed != tt.allowed || leads != tt.leads {
			t.Errorf("%s, %q: allowed %v, leads %v; want %v, %v", tt.pattern, tt.path, allowed, leads, tt.allowed, tt.leads)
		}
	}
	if allowed, leads := (Pattern{}).match(""); allowed || leads {
		t.Error("the zero pattern allows something")
	}
}

func TestAllowable(t *testing.T) {
	for _, path := range []string{"meta-data/spot", "meta-data/iamx", "meta-data/network/interfaces/macs/0a:1b/iam", "dynamic/fws"} {
		if !Allowable(path) {
			t.Errorf("%q is out of reach of any pattern", path)
		}
	}
	for _, path := range []string{
		"", "meta-data", "dynamic", "user-data", "user-data/x", "meta-data/iam", "meta-data/iam/info", "meta-data/Iam/info", "other/x",
		"meta-data/identity-credentials/ec2/security-credentials/ec2-instance", "meta-data/public-keys", "meta-data/spot/../iam",
		"dynamic/instance-identity/pkcs7", "dynamic/instance-identity", "meta-data//spot", "meta-data/spot/", "meta-data/a b",
		"meta-data/a%2fb", "meta-data/a?b", "meta-data/a\x00", "meta-data/ä", "meta-data/" + strings.Repeat("a", 600),
	} {
		if Allowable(path) {
			t.Errorf("%q could be allowed", path)
		}
	}
}

// FuzzPattern: whatever is written, and whatever is asked for, nothing secret is allowed.
func FuzzPattern(f *testing.F) {
	for _, seed := range [][2]string{
		{"network/interfaces/macs/**", "meta-data/network/interfaces/macs/0a:1b/vpc-id"},
		{"*/security-credentials/*", "meta-data/iam/security-credentials/node"},
		{"**", "user-data"}, {"dynamic/*/*", "dynamic/instance-identity/signature"},
		{"spot/*,events/**", "meta-data/spot/../iam/info"}, {"iam", "meta-data/iam"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, list, path string) {
		patterns, err := ParsePatterns(list)
		if err != nil {
			if _, ok := errors.AsType[*PatternError](err); !ok {
				t.Fatalf("%q: %v is no PatternError", list, err)
			}
			return
		}
		allowed, leads := matchAny(path, patterns)
		if allowed && leads && len(patterns) == 1 {
			t.Errorf("%q allows %q, and it leads to something", list, path)
		}
		if !allowed || !Allowable(path) {
			return
		}
		for _, s := range secrets() {
			if strings.EqualFold(path, s.path) || strings.HasPrefix(strings.ToLower(path), s.path+"/") {
				t.Errorf("%q allows %q", list, path)
			}
		}
	})
}
