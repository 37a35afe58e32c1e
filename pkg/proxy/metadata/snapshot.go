package metadata

import (
	"bytes"
	"encoding/json"
	"maps"
	"path"
	"slices"
	"strings"
)

// Paths below the version prefix that the package itself fills or refers to.
const (
	pathRegion    = "meta-data/placement/region"
	pathZone      = "meta-data/placement/availability-zone"
	pathDomain    = "meta-data/services/domain"
	pathPartition = "meta-data/services/partition"
	pathDocument  = "dynamic/instance-identity/document"
)

// Static is what is known about the node without a metadata service: from flags, or from the Node's topology
// labels. Both fields are optional; what is empty is not served.
type Static struct {
	Region string // us-east-1
	Zone   string // us-east-1a
}

// Snapshot is an immutable set of answers. It is safe for concurrent use.
type Snapshot struct {
	answers map[string][]byte // path below the version prefix, without a slash at either end -> body
}

// Get returns the body of path, a leaf or a listing. Path is what follows the version prefix, without a slash at
// either end: "meta-data/placement/region". The caller must not change the body.
func (s *Snapshot) Get(path string) ([]byte, bool) {
	body, ok := s.answers[path]
	return body, ok
}

// FromStatic returns the Snapshot of a node that has no metadata service: region and zone, the partition's names
// that follow from the region, and an identity document of those two. SDKs find their region in one of them,
// depending on their age.
func FromStatic(static Static) *Snapshot { return newSnapshot(static.leaves()) }

// leaves returns the leaves that follow from the static values.
func (s Static) leaves() map[string][]byte {
	leaves := make(map[string][]byte)
	if s.Zone != "" {
		leaves[pathZone] = []byte(s.Zone)
	}
	if s.Region != "" {
		p := partitionOf(s.Region)
		leaves[pathRegion] = []byte(s.Region)
		leaves[pathDomain] = []byte(p.domain)
		leaves[pathPartition] = []byte(p.name)
		leaves[pathDocument] = s.document()
	}
	return leaves
}

// document renders an instance identity document with the fields that SDKs look for, in the service's own style:
// two spaces, and a space on both sides of the colon.
func (s Static) document() []byte {
	var b bytes.Buffer
	b.WriteString("{\n")
	if s.Zone != "" {
		b.WriteString(`  "availabilityZone" : ` + quote(s.Zone) + ",\n")
	}
	b.WriteString(`  "region" : ` + quote(s.Region) + ",\n")
	b.WriteString(`  "version" : "2017-09-30"` + "\n}")
	return b.Bytes()
}

// quote returns s as a JSON string.
func quote(s string) string {
	q, _ := json.Marshal(s) // a string always marshals
	return string(q)
}

// served lists what package proxy answers itself, so that the listings lead there too. The directories stand also
// on a node of which nothing is known: boto2's get_instance_identity retries for 20 s when
// dynamic/instance-identity/ is a 404.
var served = []string{
	"meta-data/iam/info",
	"meta-data/iam/security-credentials/",
	"dynamic/instance-identity/",
}

// newSnapshot adds the listings to the leaves.
func newSnapshot(leaves map[string][]byte) *Snapshot {
	listings := make(map[string][]string)
	for _, p := range served {
		list(listings, p)
	}
	for p := range leaves {
		list(listings, p)
	}
	// The credentials' own listing is the pod's role, which only package proxy knows.
	delete(listings, "meta-data/iam/security-credentials")

	answers := maps.Clone(leaves)
	for dir, names := range listings {
		slices.Sort(names)
		body := strings.Join(names, "\n")
		if dir == "" {
			body = strings.ReplaceAll(body, "/", "") // a version lists its trees without the slash
		}
		answers[dir] = []byte(body)
	}
	return &Snapshot{answers: answers}
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
		if !slices.Contains(listings[dir], entry) {
			listings[dir] = append(listings[dir], entry)
		}
		dir, p = path.Join(dir, name), rest
		if isDir && listings[dir] == nil {
			listings[dir] = []string{}
		}
	}
}
