package awstest

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// versionForm is the first element of a metadata path; every version leads to the same tree.
var versionForm = regexp.MustCompile(`^(latest|1\.0|[0-9]{4}-[0-9]{2}-[0-9]{2})$`)

// lookup returns the document or the listing at a cleaned path.
func (m *Metadata) lookup(clean string) (string, bool) {
	version, rest, _ := strings.Cut(strings.Trim(clean, "/"), "/")
	switch {
	case version == "":
		return "1.0\n2007-01-19\n2009-04-04\n2018-09-24\n2021-07-15\nlatest", true
	case !versionForm.MatchString(version):
		return "", false
	case rest == "":
		return "dynamic\nmeta-data\nuser-data", true
	}
	tree := m.tree()
	if document, ok := tree[rest]; ok {
		return document()
	}
	return listing(slices.Sorted(maps.Keys(tree)), rest)
}

// listing names the children of a directory, one a line without a last newline, directories with a slash.
func listing(paths []string, dir string) (string, bool) {
	var children []string
	for _, p := range paths {
		below, ok := strings.CutPrefix(p, dir+"/")
		if !ok {
			continue
		}
		name, _, deeper := strings.Cut(below, "/")
		if deeper {
			name += "/"
		}
		if len(children) == 0 || children[len(children)-1] != name {
			children = append(children, name)
		}
	}
	return strings.Join(children, "\n"), len(children) > 0
}

// tree is what the service holds: paths below the version, each with its document, which may be absent at the moment.
func (m *Metadata) tree() map[string]func() (string, bool) {
	c := m.cfg
	role, _ := parseARN(c.RoleARN) // checked by NewMetadata
	text := func(s string) func() (string, bool) { return func() (string, bool) { return s, true } }
	nic := "meta-data/network/interfaces/macs/" + c.MAC.String() + "/"
	return map[string]func() (string, bool){
		"user-data":                                         text(c.UserData),
		"dynamic/instance-identity/document":                text(m.identityDocument(role)),
		"meta-data/ami-id":                                  text(c.ImageID),
		"meta-data/hostname":                                text(c.Hostname),
		"meta-data/local-hostname":                          text(c.Hostname),
		"meta-data/instance-id":                             text(c.InstanceID),
		"meta-data/instance-type":                           text(c.InstanceType),
		"meta-data/instance-life-cycle":                     text("on-demand"),
		"meta-data/local-ipv4":                              text(c.LocalIPv4.String()),
		"meta-data/mac":                                     text(c.MAC.String()),
		nic + "local-ipv4s":                                 text(c.LocalIPv4.String()),
		nic + "mac":                                         text(c.MAC.String()),
		"meta-data/placement/region":                        text(c.Region),
		"meta-data/placement/availability-zone":             text(c.AvailabilityZone),
		"meta-data/placement/availability-zone-id":          text(c.AvailabilityZoneID),
		"meta-data/services/domain":                         text(domainOf(role.partition)),
		"meta-data/services/partition":                      text(role.partition),
		"meta-data/iam/info":                                func() (string, bool) { return m.info(role) },
		"meta-data/iam/security-credentials/" + role.name(): m.roleCredentials,
	}
}

// jsonDocument renders JSON as the service does: two spaces of indent and a space on both sides of the colon.
func jsonDocument(pairs ...[2]any) string {
	var b strings.Builder
	b.WriteString("{")
	for i, pair := range pairs {
		if i > 0 {
			b.WriteString(",")
		}
		// Strings and nil always marshal.
		key, _ := json.Marshal(pair[0])
		value, _ := json.Marshal(pair[1])
		b.WriteString("\n  " + string(key) + " : " + string(value))
	}
	b.WriteString("\n}")
	return b.String()
}

// identityDocument is the instance identity document
// (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-identity-documents.html).
func (m *Metadata) identityDocument(role arn) string {
	c := m.cfg
	return jsonDocument(
		[2]any{"accountId", role.account}, [2]any{"architecture", "x86_64"},
		[2]any{"availabilityZone", c.AvailabilityZone}, [2]any{"billingProducts", nil},
		[2]any{"devpayProductCodes", nil}, [2]any{"marketplaceProductCodes", nil}, [2]any{"imageId", c.ImageID},
		[2]any{"instanceId", c.InstanceID}, [2]any{"instanceType", c.InstanceType}, [2]any{"kernelId", nil},
		[2]any{"pendingTime", timestamp(m.started)}, [2]any{"privateIp", c.LocalIPv4.String()},
		[2]any{"ramdiskId", nil}, [2]any{"region", c.Region}, [2]any{"version", "2017-09-30"},
	)
}

func (m *Metadata) info(role arn) (string, bool) {
	profile := arn{partition: role.partition, service: "iam", account: role.account,
		resource: "instance-profile/" + role.name()}
	return jsonDocument(
		[2]any{"Code", "Success"}, [2]any{"LastUpdated", timestamp(m.lastUpdated())},
		[2]any{"InstanceProfileArn", profile.String()}, [2]any{"InstanceProfileId", "AIPAAWSTESTPROFILE001"},
	), true
}

func (m *Metadata) lastUpdated() time.Time {
	if s, err := m.session(); err == nil {
		return s.Issued
	}
	return m.started
}

// roleCredentials is the document that the whole project is about keeping from pods. With the role deleted there is
// none.
func (m *Metadata) roleCredentials() (string, bool) {
	s, err := m.session()
	if err != nil {
		return "", false
	}
	return jsonDocument(
		[2]any{"Code", "Success"}, [2]any{"LastUpdated", timestamp(s.Issued)}, [2]any{"Type", "AWS-HMAC"},
		[2]any{"AccessKeyId", s.AccessKeyID}, [2]any{"SecretAccessKey", s.secret}, [2]any{"Token", s.token},
		[2]any{"Expiration", timestamp(s.Expires)},
	), true
}
