package metadata

import (
	"maps"
	"path"
	"slices"
	"strings"
)

// Paths below the version prefix that the package itself fills or refers to.
const (
	pathRegion       = "meta-data/placement/region"
	pathZone         = "meta-data/placement/availability-zone"
	pathZoneID       = "meta-data/placement/availability-zone-id"
	pathDomain       = "meta-data/services/domain"
	pathPartition    = "meta-data/services/partition"
	pathDocument     = "dynamic/instance-identity/document"
	pathInstanceType = "meta-data/instance-type"
	pathHostname     = "meta-data/hostname"
	pathLocalName    = "meta-data/local-hostname"
)

// snapshot is an immutable set of answers. It is safe for concurrent use.
type snapshot struct {
	answers map[string][]byte // path below the version prefix, without a slash at either end -> body
	unknown map[string]bool   // paths that may get an answer, which nobody has given so far
	varying map[string]bool   // listings that patterns may lead through
}

// get returns the body of path, a leaf or a listing. The caller must not change it.
func (s *snapshot) get(path string) ([]byte, bool) {
	body, ok := s.answers[path]
	return body, ok
}

// served lists what package proxy answers itself, so that the listings lead there too. The directories stand also
// on a node of which there is nothing to know: boto2's get_instance_identity retries for 20 s when
// dynamic/instance-identity/ is a 404.
var served = []string{
	"meta-data/iam/info",
	"meta-data/iam/security-credentials/",
	"dynamic/instance-identity/",
}

// newSnapshot adds the listings to the leaves. A listing shows what is known to be there; one with nothing but unknown
// leaves in it is unknown itself. Elsewhere are paths that are answered by others, and listed as well; those that end in a
// slash are listings themselves; the others may be.
func newSnapshot(leaves map[string][]byte, unknown []string, elsewhere ...string) *snapshot {
	listings := make(map[string][]string)
	// What is known to be a leaf or a listing is listed as that; elsewhere is listed what goes on below a path before it.
	elsewhere = slices.Clone(elsewhere)
	slices.SortFunc(elsewhere, func(a, b string) int { return strings.Compare(b, a) })
	for _, p := range slices.Concat(served, slices.Collect(maps.Keys(leaves)), elsewhere) {
		list(listings, p)
	}
	// The credentials' own listing is the pod's role, which only package proxy knows.
	delete(listings, "meta-data/iam/security-credentials")
	for _, p := range elsewhere {
		if dir := strings.TrimSuffix(p, "/"); len(listings[dir]) == 0 {
			delete(listings, dir)
		}
	}

	s := &snapshot{answers: maps.Clone(leaves), unknown: make(map[string]bool), varying: make(map[string]bool)}
	for dir, names := range listings {
		slices.Sort(names)
		body := strings.Join(names, "\n")
		if dir == "" {
			body = strings.ReplaceAll(body, "/", "") // a version lists its trees without the slash
		}
		s.answers[dir] = []byte(body)
		s.varying[dir] = dir != "" && !isSecret(dir) // the version lists both trees anyway
	}
	for _, p := range unknown {
		for p != "." && len(s.answers[p]) == 0 {
			delete(s.answers, p)
			s.unknown[p] = true
			p = path.Dir(p)
		}
	}
	return s
}

// list enters p into the listing of every directory that leads to it. A p that ends in a slash is a directory.
func list(listings map[string][]string, p string) {
	dir := ""
	for p != "" {
		name, rest, isDir := strings.Cut(p, "/")
		entry := name
		if isDir {
			entry += "/"
		}
		listings[dir] = enter(listings[dir], entry)
		dir, p = path.Join(dir, name), rest
		if isDir && listings[dir] == nil {
			listings[dir] = []string{}
		}
	}
}

// enter returns a listing with name in it. It stays as it is if name is in it already.
func enter(names []string, name string) []string {
	if listed(names, name) {
		return names
	}
	return append(names, name)
}

// listed reports whether name is in a listing, with a slash or without one: nothing has both.
func listed(names []string, name string) bool {
	bare := strings.TrimSuffix(name, "/")
	return slices.ContainsFunc(names, func(n string) bool { return strings.TrimSuffix(n, "/") == bare })
}
