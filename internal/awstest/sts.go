package awstest

import (
	"context"
	"encoding/xml"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// stsService is the Security Token Service (https://docs.aws.amazon.com/STS/latest/APIReference/welcome.html).
type stsService struct{ aws *AWS }

func (s stsService) action(req *request) string { return req.params.Get("Action") }

func (s stsService) fail(err *apiError, requestID string) reply { return queryError(err, requestID) }

func (s stsService) serve(ctx context.Context, req *request) (reply, error) {
	version := req.params.Get("Version")
	if req.action != "AssumeRoleWithWebIdentity" { // the one call that needs no signature
		if err := s.aws.verify(req); err != nil {
			return reply{}, err
		}
	}
	if version != "2011-06-15" {
		if version == "" {
			version = "NO_VERSION_SPECIFIED"
		}
		return reply{}, badRequest("InvalidAction", "Could not find operation %s for version %s", req.action, version)
	}
	switch req.action {
	case "AssumeRole":
		return s.assumeRole(req)
	case "AssumeRoleWithWebIdentity":
		return s.assumeRoleWithWebIdentity(ctx, req)
	case "GetCallerIdentity":
		return s.getCallerIdentity(req)
	case "":
		return reply{}, badRequest("MissingAction", "The request must contain the parameter Action.")
	default:
		return reply{}, badRequest("InvalidAction", "Could not find operation %s for version %s", req.action, version)
	}
}

// credentialsElement is the element that carries a session to its owner.
type credentialsElement struct {
	AccessKeyID     string `xml:"AccessKeyId"`
	SecretAccessKey string
	SessionToken    string
	Expiration      string
}

type assumedRoleUser struct {
	AssumedRoleID string `xml:"AssumedRoleId"`
	Arn           string
}

func (s *session) elements() (credentialsElement, assumedRoleUser) {
	return credentialsElement{s.AccessKeyID, s.secret, s.token, timestamp(s.Expires)},
		assumedRoleUser{s.principal.userID, s.principal.arn}
}

// assumeParams are the parameters that both ways of assuming a role share, validated.
type assumeParams struct {
	roleARN     arn
	sessionName string
	duration    time.Duration
}

const defaultDuration = time.Hour

var (
	sessionNameForm = regexp.MustCompile(`^[\w+=,.@-]*$`)
	externalIDForm  = regexp.MustCompile(`^[\w+=,.@:/-]*$`)
)

// constraint returns the ValidationError of one parameter.
func constraint(value, parameter, rule string) error {
	return badRequest(codeValidation, "1 validation error detected: Value '%s' at '%s' failed to satisfy constraint: "+
		"Member must %s", value, parameter, rule)
}

// text validates a parameter's length and alphabet; pattern is what the message shows of form.
func text(value, parameter string, shortest, longest int, form *regexp.Regexp, pattern string) error {
	switch n := utf8.RuneCountInString(value); {
	case n < shortest:
		return constraint(value, parameter, fmt.Sprintf("have length greater than or equal to %d", shortest))
	case n > longest:
		return constraint(value, parameter, fmt.Sprintf("have length less than or equal to %d", longest))
	case form != nil && !form.MatchString(value):
		return constraint(value, parameter, "satisfy regular expression pattern: "+pattern)
	}
	return nil
}

func (r *request) assumeParams() (assumeParams, error) {
	var p assumeParams
	for _, name := range []string{"Policy", "PolicyArns.member.1.arn", "SerialNumber", "TokenCode", "ProviderId",
		"ProvidedContexts.member.1.ProviderArn"} {
		if r.params.Has(name) {
			return p, badRequest(codeValidation, "awstest does not model the parameter %s", name)
		}
	}
	given := r.params.Get("RoleArn")
	if given == "" {
		return p, badRequest(codeValidation, "1 validation error detected: Value null at 'roleArn' failed to satisfy "+
			"constraint: Member must not be null")
	}
	if err := text(given, "roleArn", 20, 2048, nil, ""); err != nil {
		return p, err
	}
	parsed, err := parseIAM(given, "role")
	if err != nil {
		return p, badRequest(codeValidation, "%s is invalid", given)
	}
	p.roleARN = parsed
	p.sessionName = r.params.Get("RoleSessionName")
	if !r.params.Has("RoleSessionName") {
		return p, badRequest(codeValidation, "1 validation error detected: Value null at 'roleSessionName' failed to "+
			"satisfy constraint: Member must not be null")
	}
	if err := text(p.sessionName, "roleSessionName", 2, 64, sessionNameForm, `[\w+=,.@-]*`); err != nil {
		return p, err
	}
	p.duration = defaultDuration
	if value := r.params.Get("DurationSeconds"); value != "" {
		seconds, err := strconv.Atoi(value)
		switch {
		case err != nil:
			return p, badRequest("MalformedInput", "DurationSeconds is no integer")
		case seconds < 900:
			return p, constraint(value, "durationSeconds", "have value greater than or equal to 900")
		case seconds > 43200:
			return p, constraint(value, "durationSeconds", "have value less than or equal to 43200")
		}
		p.duration = time.Duration(seconds) * time.Second
	}
	return p, nil
}

// member reads list parameters such as Tags.member.1.Key, in order and without gaps.
func (r *request) members(prefix string, suffixes ...string) []string {
	var list []string
	for i := 1; ; i++ {
		found := false
		var entry []string
		for _, suffix := range suffixes {
			name := prefix + ".member." + strconv.Itoa(i) + suffix
			found = found || r.params.Has(name)
			entry = append(entry, r.params.Get(name))
		}
		if !found {
			return list
		}
		list = append(list, entry...)
	}
}

func (s stsService) getCallerIdentity(req *request) (reply, error) {
	// Clients that verify presigned requests, as Kubernetes authenticators do, ask STS for JSON.
	if strings.Contains(req.http.Header.Get("Accept"), "application/json") {
		return jsonReply(200, CodeOK, "application/json", map[string]any{
			"GetCallerIdentityResponse": map[string]any{
				"GetCallerIdentityResult": map[string]string{
					"Account": req.caller.account, "Arn": req.caller.arn, "UserId": req.caller.userID,
				},
				"ResponseMetadata": map[string]string{"RequestId": req.id},
			},
		}), nil
	}
	type result struct {
		Arn     string
		UserID  string `xml:"UserId"`
		Account string
	}
	return xmlReply(200, CodeOK, struct {
		XMLName  xml.Name         `xml:"https://sts.amazonaws.com/doc/2011-06-15/ GetCallerIdentityResponse"`
		Result   result           `xml:"GetCallerIdentityResult"`
		Metadata responseMetadata `xml:"ResponseMetadata"`
	}{
		Result:   result{req.caller.arn, req.caller.userID, req.caller.account},
		Metadata: responseMetadata{req.id},
	}), nil
}
