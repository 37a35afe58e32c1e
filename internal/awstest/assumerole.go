package awstest

import (
	"encoding/xml"
	"maps"
	"slices"
	"strings"
	"time"
)

// maxChained is AWS's limit for a role assumed by a role session
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles.html#iam-term-role-chaining).
const maxChained = time.Hour

// assumeRole is sts:AssumeRole (https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html).
func (s stsService) assumeRole(req *request) (reply, error) {
	p, err := req.assumeParams()
	if err != nil {
		return reply{}, err
	}
	externalID, hasExternalID := req.params.Get("ExternalId"), req.params.Has("ExternalId")
	if hasExternalID {
		if err := text(externalID, "externalId", 2, 1224, externalIDForm, `[\w+=,.@:\/-]*`); err != nil {
			return reply{}, err
		}
	}
	tags, err := req.tags()
	if err != nil {
		return reply{}, err
	}
	chain := s.aws.sessions.get(req.signature.accessKeyID) // nil for a user's keys
	mint := mintRequest{name: p.sessionName, action: "AssumeRole", asked: p.duration, tags: map[string]string{},
		transitive: map[string]bool{}, identity: req.params.Get("SourceIdentity")}
	for _, key := range req.members("TransitiveTagKeys", "") {
		if _, sent := tags[key]; !sent {
			return reply{}, badRequest("InvalidParameterValue", "The transitive tag key %s is not among the session tags.", key)
		}
		mint.transitive[key] = true
	}
	if chain != nil {
		for key := range chain.transitive {
			if _, again := tags[key]; again {
				return reply{}, badRequest("InvalidParameterValue", "The tag key %s is transitive and was set already.", key)
			}
			mint.tags[key], mint.transitive[key] = chain.Tags[key], true
		}
		if mint.identity == "" {
			mint.identity = chain.identity
		}
	}
	maps.Copy(mint.tags, tags)

	target := s.aws.iam.role(p.roleARN.String())
	context := req.context()
	context["sts:rolesessionname"] = []string{p.sessionName}
	if hasExternalID {
		context["sts:externalid"] = []string{externalID}
	}
	if mint.identity != "" {
		context["sts:sourceidentity"] = []string{mint.identity}
	}
	if len(mint.tags) > 0 {
		context["aws:tagkeys"] = slices.Sorted(maps.Keys(mint.tags))
		for key, value := range mint.tags {
			context["aws:requesttag/"+strings.ToLower(key)] = []string{value}
		}
	}
	if len(mint.transitive) > 0 {
		context["sts:transitivetagkeys"] = slices.Sorted(maps.Keys(mint.transitive))
	}
	actions := []string{"sts:AssumeRole"}
	if len(mint.tags) > 0 {
		actions = append(actions, "sts:TagSession")
	}
	if mint.identity != "" {
		actions = append(actions, "sts:SetSourceIdentity")
	}
	for _, action := range actions {
		if err := s.mayAssume(req, target, p.roleARN, action, context); err != nil {
			return reply{}, err
		}
	}
	if chain != nil && p.duration > maxChained {
		return reply{}, badRequest(codeValidation,
			"The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.")
	}
	if p.duration > target.maxDuration {
		return reply{}, badRequest(codeValidation,
			"The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	mint.role = target
	minted := s.aws.sessions.mint(s.aws.now(), s.aws.tokenSize, mint)

	type result struct {
		AssumedRoleUser  assumedRoleUser
		Credentials      credentialsElement
		PackedPolicySize int    `xml:",omitempty"`
		SourceIdentity   string `xml:",omitempty"`
	}
	out := result{SourceIdentity: mint.identity, PackedPolicySize: packedSize(mint.tags)}
	out.Credentials, out.AssumedRoleUser = minted.elements()
	return xmlReply(200, CodeOK, struct {
		XMLName  xml.Name         `xml:"https://sts.amazonaws.com/doc/2011-06-15/ AssumeRoleResponse"`
		Result   result           `xml:"AssumeRoleResult"`
		Metadata responseMetadata `xml:"ResponseMetadata"`
	}{Result: out, Metadata: responseMetadata{req.id}}), nil
}

// mayAssume applies the target's trust policy and, where that delegates or lives in another account, the caller's own
// permissions (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html). A role that
// does not exist is refused in the same words as one that does not trust the caller.
func (s stsService) mayAssume(
	req *request, target *role, targetARN arn, action string, context map[string][]string,
) error {
	refused := forbidden(codeAccessDenied, "User: %s is not authorized to perform: %s on resource: %s",
		req.caller.arn, action, targetARN)
	if target == nil {
		return refused
	}
	trust := target.trust.evaluate(req.caller, action, "", context)
	own := s.aws.permits(req.caller, req.signature.accessKeyID, action, targetARN.String(), context)
	switch {
	case trust == explicitDeny:
		refused.message += " with an explicit deny in a resource-based policy"
		return refused
	case own == explicitDeny:
		refused.message += " with an explicit deny in an identity-based policy"
		return refused
	case trust == implicitDeny:
		return refused
	case own == allowed:
		return nil
	case trust == allowed && target.arn.account == req.caller.account:
		return nil
	default:
		return refused
	}
}

// tags reads and validates session tags
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/id_session-tags.html).
func (r *request) tags() (map[string]string, error) {
	list := r.members("Tags", ".Key", ".Value")
	if len(list) > 2*50 {
		return nil, constraint("[tags]", "tags", "have length less than or equal to 50")
	}
	tags := make(map[string]string, len(list)/2)
	seen := map[string]bool{}
	for pair := range slices.Chunk(list, 2) {
		key, value := pair[0], pair[1]
		if err := text(key, "tags.1.member.key", 1, 128, nil, ""); err != nil {
			return nil, err
		}
		if err := text(value, "tags.1.member.value", 0, 256, nil, ""); err != nil {
			return nil, err
		}
		if seen[strings.ToLower(key)] {
			return nil, badRequest("InvalidParameterValue",
				"Duplicate tag keys found. Please note that Tag keys are case insensitive.")
		}
		seen[strings.ToLower(key)] = true
		tags[key] = value
	}
	return tags, nil
}

// packedSize is a percentage that grows with the tags; how AWS packs them is not public.
func packedSize(tags map[string]string) int {
	size := 0
	for key, value := range tags {
		size += len(key) + len(value)
	}
	return (size + 19) / 20
}
