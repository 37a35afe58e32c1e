package awstest

import (
	"context"
	"fmt"
	"strings"
)

// secretsService is Secrets Manager, as far as GetSecretValue
// (https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html).
type secretsService struct{ aws *AWS }

// PutSecret creates a secret in an account and region and returns its ARN, which ends in six random characters as
// Secrets Manager's do.
func (a *AWS) PutSecret(partition, region, account, name, value string) (secretARN string, err error) {
	if !partitionForm.MatchString(partition) || region == "" || !accountForm.MatchString(account) || name == "" {
		return "", fmt.Errorf("put secret %q in %q %q %q: want a partition, a region and a 12-digit account", name, partition,
			region, account)
	}
	s := secret{
		arn:  arn{partition, "secretsmanager", region, account, "secret:" + name + "-" + randomID()[:6]},
		name: name, value: value, version: requestID(), created: a.now(),
	}
	a.store.mu.Lock()
	defer a.store.mu.Unlock()
	a.store.secrets[s.arn.String()] = s
	return s.arn.String(), nil
}

func (s secretsService) action(req *request) string { return targetAction(req, "secretsmanager") }

func (s secretsService) fail(err *apiError, _ string) reply { return jsonError(err) }

func (s secretsService) serve(_ context.Context, req *request) (reply, error) {
	if err := s.aws.verify(req); err != nil {
		return reply{}, err
	}
	if req.action != "GetSecretValue" {
		return reply{}, badRequest("UnknownOperationException", "awstest serves GetSecretValue only")
	}
	var in struct {
		SecretID     string `json:"SecretId"`
		VersionID    string `json:"VersionId"`
		VersionStage string
	}
	if err := decodeJSON(req, &in); err != nil {
		return reply{}, err
	}
	found, known := s.find(req, in.SecretID)
	resource := in.SecretID
	if known {
		resource = found.arn.String()
	}
	if err := s.aws.authorize(req, "secretsmanager:GetSecretValue", resource); err != nil {
		return reply{}, err
	}
	if !known || in.VersionID != "" && in.VersionID != found.version ||
		in.VersionStage != "" && in.VersionStage != "AWSCURRENT" {
		return reply{}, badRequest("ResourceNotFoundException", "Secrets Manager can't find the specified secret.")
	}
	return jsonReply(200, CodeOK, amzJSON, map[string]any{
		"ARN": found.arn.String(), "Name": found.name, "SecretString": found.value, "VersionId": found.version,
		"VersionStages": []string{"AWSCURRENT"}, "CreatedDate": float64(found.created.UnixMilli()) / 1000,
	}), nil
}

// find looks a secret up by its ARN, by its ARN without the random suffix, or by its name in the caller's account;
// always in the region of the call.
func (s secretsService) find(req *request, id string) (secret, bool) {
	s.aws.store.mu.RLock()
	defer s.aws.store.mu.RUnlock()
	for full, candidate := range s.aws.store.secrets {
		if candidate.arn.region != req.region {
			continue
		}
		partial := full[:strings.LastIndexByte(full, '-')]
		if id == full || id == partial || id == candidate.name && candidate.arn.account == req.caller.account {
			return candidate, true
		}
	}
	return secret{}, false
}
