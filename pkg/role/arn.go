package role

import (
	"fmt"
	"regexp"
	"strings"
)

// roleARN is an IAM role's ARN in any partition (aws, aws-cn, aws-us-gov, aws-iso…), path included
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html).
var roleARN = regexp.MustCompile(`^arn:aws[a-z0-9-]{0,20}:iam::[0-9]{12}:role/(?:[\x21-\x7e]+/)?[\w+=,.@-]{1,64}$`)

// maxPath is the longest path of a role, slashes included
// (https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateRole.html).
const maxPath = 512

// baseARN is what bare role names are appended to: a role ARN up to and including a path.
var baseARN = regexp.MustCompile(`^arn:aws[a-z0-9-]*:iam::[0-9]{12}:role/(?:[\x21-\x7e]+/)?$`)

// ParseARN checks that s is the ARN of an IAM role.
func ParseARN(s string) error {
	path := s[strings.IndexByte(s, '/')+1 : strings.LastIndexByte(s, '/')+1]
	if len(path) > maxPath || !roleARN.MatchString(s) {
		return fmt.Errorf("%s is not the ARN of an IAM role; want arn:aws:iam::ACCOUNT:role/[PATH/]NAME", quote(s))
	}
	return nil
}

// ParseBaseARN checks that s can stand before bare role names, and returns it with the trailing slash that kube2iam
// lets users leave out.
func ParseBaseARN(s string) (string, error) {
	base := strings.TrimSuffix(s, "/") + "/"
	if !baseARN.MatchString(base) {
		return "", fmt.Errorf("%q is not the beginning of role ARNs; want arn:aws:iam::ACCOUNT:role/[PATH/]", s)
	}
	return base, nil
}

// resolve turns an annotation's value into a role ARN: a full ARN stands as it is, a name or path/name goes behind
// base. A leading slash is ignored, as kiam does.
func resolve(value, base string) (string, error) {
	if strings.HasPrefix(value, "arn:") {
		return value, ParseARN(value)
	}
	if base == "" {
		return "", fmt.Errorf("%s is a bare role name; write the role's ARN, or start the agent with --base-role-arn", quote(value))
	}
	arn := base + strings.TrimPrefix(value, "/")
	return arn, ParseARN(arn)
}
