package proxy

import (
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/podrole/podrole/pkg/proxy/metadata"
)

func TestNormalise(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "/",
		"*":                      "",
		"latest":                 "",
		"/":                      "/",
		"//":                     "/",
		"/.":                     "/",
		"/..":                    "/",
		"/../..":                 "/",
		"/a":                     "/a",
		"/a/":                    "/a/",
		"/a//":                   "/a/",
		"//a":                    "/a",
		"/a//b///c":              "/a/b/c",
		"/a/./b":                 "/a/b",
		"/a/.":                   "/a/",
		"/a/b/..":                "/a/",
		"/a/../b":                "/b",
		"/a/../../b/":            "/b/",
		"/a/b/../../..//c/./d/":  "/c/d/",
		"/.hidden/..x/...":       "/.hidden/..x/...",
		`/a\..\b`:                `/a\..\b`,
		"/a/%2e%2e/b":            "/a/%2e%2e/b", // what is still an escape now was escaped twice
		"/latest/meta-data/..;/": "/latest/meta-data/..;/",
	} {
		if got := normalise(in); got != want {
			t.Errorf("normalise(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestIsVersion(t *testing.T) {
	for in, want := range map[string]bool{
		"latest": true, "1.0": true, "2009-04-04": true, "2199-99-99": true,
		"": false, "Latest": false, "1.1": false, "2009-4-4": false, "2009/04/04": false, "2009-04-04x": false,
		"20a9-04-04": false, "２009-04-04": false,
	} {
		if got := isVersion(in); got != want {
			t.Errorf("isVersion(%q) = %v, want %v", in, got, want)
		}
	}
}

// FuzzResolve: however a path is spelt, it leads to what is allowed or to nothing.
func FuzzResolve(f *testing.F) {
	for _, seed := range []string{
		"/latest/meta-data/../user-data", "/latest//meta-data///placement/region/", "/%2e%2e/latest/api/token",
		"/latest/meta-data/iam/security-credentials/..", "/2009-04-04/./user-data", "//latest/%2F/dynamic",
		"/1.0/..;/x",
		`/latest\..\user-data`, "*", "/latest/api/token/", "/latest/meta-data/iam/security-credentials/a/../../info",
	} {
		f.Add(seed)
	}
	allowed := map[string]bool{}
	store := metadata.NewStore(metadata.Config{Static: testStatic})
	for _, p := range []string{
		"", "meta-data", "meta-data/iam", "meta-data/placement", "meta-data/placement/region",
		"meta-data/placement/availability-zone", "meta-data/services", "meta-data/services/domain",
		"meta-data/services/partition", "dynamic", "dynamic/instance-identity", "dynamic/instance-identity/document",
	} {
		allowed[p] = true
	}
	f.Fuzz(func(t *testing.T, raw string) {
		for _, p := range []string{raw, unescape(raw)} {
			n := normalise(p)
			if again := normalise(n); n != "" && again != n {
				t.Fatalf("normalise(%q) = %q, and again %q", p, n, again)
			}
			if n != "" && strings.TrimSuffix(n, "/") != strings.TrimSuffix(path.Clean(p), "/") && p != "" {
				t.Fatalf("normalise(%q) = %q, path.Clean says %q", p, n, path.Clean(p))
			}
			got := resolve(p)
			clean := strings.TrimSuffix(n, "/")
			version, rest, _ := strings.Cut(strings.TrimPrefix(clean, "/"), "/")
			switch got.route {
			case RouteToken:
				if n != "/latest/api/token" {
					t.Fatalf("%q is a token's path", p)
				}
			case RouteVersions:
				if n != "/" {
					t.Fatalf("%q lists versions", p)
				}
			case RouteUnknown:
			default:
				if !isVersion(version) {
					t.Fatalf("%q leads to %s without a version", p, got.route)
				}
			}
			switch got.route {
			case RouteRole, RouteCredentials:
				if !strings.HasPrefix(rest, "meta-data/iam/security-credentials") {
					t.Fatalf("%q leads to %s", p, got.route)
				}
			case RouteMetadata:
				if _, ok, _ := store.Read(t.Context(), metadata.Request{Path: got.name}); ok && !allowed[rest] {
					t.Fatalf("%q finds %q", p, got.name)
				}
			}
		}
	})
}

// unescape does to a request target what net/http does, or leaves it if that fails.
func unescape(raw string) string {
	u, err := url.ParseRequestURI(raw)
	if err != nil {
		return raw
	}
	return u.Path
}
