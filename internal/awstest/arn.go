package awstest

import (
	"fmt"
	"regexp"
	"strings"
)

var (
	partitionForm = regexp.MustCompile(`^aws(-[a-z]+)*$`)
	accountForm   = regexp.MustCompile(`^[0-9]{12}$`)
)

// arn is a parsed Amazon Resource Name
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference-arns.html).
type arn struct {
	partition, service, region, account, resource string
}

func parseARN(s string) (arn, error) {
	parts := strings.SplitN(s, ":", 6)
	if len(parts) != 6 || parts[0] != "arn" || parts[5] == "" {
		return arn{}, fmt.Errorf("parse ARN %q: want arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE", s)
	}
	a := arn{partition: parts[1], service: parts[2], region: parts[3], account: parts[4], resource: parts[5]}
	if !partitionForm.MatchString(a.partition) {
		return arn{}, fmt.Errorf("parse ARN %q: partition %q is none of AWS's", s, a.partition)
	}
	return a, nil
}

// parseIAM parses the ARN of an IAM resource of the given kind: role, user or oidc-provider.
func parseIAM(s, kind string) (arn, error) {
	a, err := parseARN(s)
	if err != nil {
		return arn{}, err
	}
	name, ok := strings.CutPrefix(a.resource, kind+"/")
	if a.service != "iam" || a.region != "" || !accountForm.MatchString(a.account) || !ok || name == "" {
		return arn{}, fmt.Errorf("parse ARN %q: want arn:PARTITION:iam::ACCOUNT:%s/NAME", s, kind)
	}
	return a, nil
}

func (a arn) String() string {
	return strings.Join([]string{"arn", a.partition, a.service, a.region, a.account, a.resource}, ":")
}

// name returns the last segment of the resource: a role's or user's name without its path.
func (a arn) name() string { return a.resource[strings.LastIndexByte(a.resource, '/')+1:] }

// partitionOf returns the partition a region belongs to.
func partitionOf(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov"
	default:
		return "aws"
	}
}

// domainOf returns the DNS suffix of a partition's endpoints.
func domainOf(partition string) string {
	if partition == "aws-cn" {
		return "amazonaws.com.cn"
	}
	return "amazonaws.com"
}

// regionOfHost reads the region from an endpoint's host name, such as sts.eu-west-1.amazonaws.com or
// sts-fips.us-gov-west-1.amazonaws.com; empty when the name is no AWS endpoint.
func regionOfHost(host string) string {
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		host = host[:i]
	}
	host = strings.ToLower(host)
	name, ok := strings.CutSuffix(host, ".amazonaws.com.cn")
	if !ok {
		if name, ok = strings.CutSuffix(host, ".amazonaws.com"); !ok {
			return ""
		}
	}
	_, region, regional := strings.Cut(name, ".")
	if !regional {
		return "us-east-1" // the global endpoint is served there
	}
	if strings.Contains(region, ".") {
		return ""
	}
	return region
}
