package metadata

import (
	"bytes"
	"cmp"
	"encoding/json"
	"strings"
)

// Static is what is known about the node without a metadata service: from flags, or from the Node's labels. All fields
// are optional; what is empty is not served.
type Static struct {
	Region string // us-east-1
	// RegionGuessed says that nobody has said Region of this very node: it is where the agent calls STS, say, which may be
	// another. It is a guess no more when Zone lies in it, and nothing at all when Zone does not.
	RegionGuessed bool

	Zone         string // us-east-1a
	ZoneID       string // use1-az1
	InstanceType string // m5.large; an instance fact, see Policy
	Hostname     string // ip-10-0-1-10.ec2.internal; an instance fact
	Architecture string // as Go and Kubernetes say it, amd64 or arm64; an instance fact
}

// FromLabels returns what the labels of a Node say about it
// (https://kubernetes.io/docs/reference/labels-annotations-taints/; the zone's ID comes from AWS's cloud provider).
func FromLabels(labels map[string]string) Static {
	return Static{
		Region:       labels["topology.kubernetes.io/region"],
		Zone:         labels["topology.kubernetes.io/zone"],
		ZoneID:       labels["topology.k8s.aws/zone-id"],
		InstanceType: labels["node.kubernetes.io/instance-type"],
		Hostname:     labels["kubernetes.io/hostname"],
		Architecture: labels["kubernetes.io/arch"],
	}
}

// Or returns s with what it lacks taken from other, and a guess replaced by what is none. It takes no zone outside of the
// region: old SDKs take the region from the zone's name.
func (s Static) Or(other Static) Static {
	region, guessed := s.region()
	if name, guess := other.region(); region == "" || guessed && name != "" && !guess {
		region, guessed = name, guess
	}
	if !strings.HasPrefix(other.Zone, region) {
		other.Zone = ""
	}
	zone := cmp.Or(s.Zone, other.Zone)
	if other.Zone == "" || other.Zone != zone {
		other.ZoneID = ""
	}
	return Static{
		Region:        region,
		RegionGuessed: guessed,

		Zone:         zone,
		ZoneID:       cmp.Or(s.ZoneID, other.ZoneID),
		InstanceType: cmp.Or(s.InstanceType, other.InstanceType),
		Hostname:     cmp.Or(s.Hostname, other.Hostname),
		Architecture: cmp.Or(s.Architecture, other.Architecture),
	}
}

// region returns the region, if there is any, and whether it is guessed, by all that is known.
func (s Static) region() (name string, guessed bool) {
	switch {
	case !s.RegionGuessed || s.Zone == "":
		return s.Region, s.RegionGuessed && s.Region != ""
	case strings.HasPrefix(s.Zone, s.Region):
		return s.Region, false
	default:
		return "", false
	}
}

// leaves returns the leaves that follow from the static values.
func (s Static) leaves() map[string][]byte {
	leaves := make(map[string][]byte)
	for path, value := range map[string]string{
		pathZone:         s.Zone,
		pathZoneID:       s.ZoneID,
		pathInstanceType: s.InstanceType,
		pathHostname:     s.Hostname,
		pathLocalName:    s.Hostname,
	} {
		if value != "" {
			leaves[path] = []byte(value)
		}
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
	for _, field := range []struct{ key, value string }{
		{"architecture", machine(s.Architecture)},
		{"availabilityZone", s.Zone},
		{"instanceType", s.InstanceType},
	} {
		if field.value != "" {
			b.WriteString(`  "` + field.key + `" : ` + quote(field.value) + ",\n")
		}
	}
	b.WriteString(`  "region" : ` + quote(s.Region) + ",\n")
	b.WriteString(`  "version" : "2017-09-30"` + "\n}")
	return b.Bytes()
}

// machine returns an architecture by the name that the document has for it.
func machine(architecture string) string {
	if architecture == "amd64" {
		return "x86_64"
	}
	return architecture
}

// quote returns s as a JSON string.
func quote(s string) string {
	q, _ := json.Marshal(s) // a string always marshals
	return string(q)
}
