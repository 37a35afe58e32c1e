package awstest

import (
	"crypto/rand"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// Role is an IAM role.
type Role struct {
	// ARN is arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME; required.
	ARN string
	// Trust is the trust policy, a JSON policy document; required. See [TrustPrincipals], [TrustServiceAccount].
	Trust string
	// Permissions is the identity policy, a JSON policy document; empty permits nothing. GetCallerIdentity needs none.
	// sts:AssumeRole needs it, as at AWS, unless the target is in the same account and names this very role in its trust
	// policy (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html).
	Permissions string
	// MaxSessionDuration is 1 to 12 hours; 1 hour when zero, as with IAM.
	MaxSessionDuration time.Duration
}

type role struct {
	arn         arn
	id          string // AROA…
	trust       *policy
	permissions *policy
	maxDuration time.Duration
}

// PutRole creates a role or replaces it; sessions that it already has keep working under the new permissions. A
// malformed policy is an error, and then nothing changes.
func (a *AWS) PutRole(r Role) error {
	parsed, err := parseIAM(r.ARN, "role")
	if err != nil {
		return fmt.Errorf("put role: %w", err)
	}
	trust, err := parseTrustPolicy(r.Trust)
	if err != nil {
		return fmt.Errorf("put role %s: trust: %w", r.ARN, err)
	}
	permissions, err := parseIdentityPolicy(r.Permissions)
	if err != nil {
		return fmt.Errorf("put role %s: permissions: %w", r.ARN, err)
	}
	limit := r.MaxSessionDuration
	if limit == 0 {
		limit = time.Hour
	}
	if limit < time.Hour || limit > 12*time.Hour {
		return fmt.Errorf("put role %s: max session duration %v: want 1 to 12 hours", r.ARN, limit)
	}
	a.iam.mu.Lock()
	defer a.iam.mu.Unlock()
	id := "AROA" + randomID()
	if old, ok := a.iam.roles[r.ARN]; ok {
		id = old.id
	}
	a.iam.roles[r.ARN] = &role{parsed, id, trust, permissions, limit}
	return nil
}

// DeleteRole deletes a role. Its sessions are refused from then on.
func (a *AWS) DeleteRole(roleARN string) {
	a.iam.mu.Lock()
	defer a.iam.mu.Unlock()
	delete(a.iam.roles, roleARN)
}

func (i *iam) role(roleARN string) *role {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.roles[roleARN]
}

// User is an IAM user with one long-lived access key.
type User struct {
	// ARN is arn:PARTITION:iam::ACCOUNT:user/[PATH/]NAME; required.
	ARN string
	// Permissions is the identity policy, a JSON policy document; empty permits nothing.
	Permissions string
}

type user struct {
	principal   principal
	secret      string
	permissions *policy
}

// AddUser creates a user and returns its access key.
func (a *AWS) AddUser(u User) (aws.Credentials, error) {
	parsed, err := parseIAM(u.ARN, "user")
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("add user: %w", err)
	}
	permissions, err := parseIdentityPolicy(u.Permissions)
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("add user %s: permissions: %w", u.ARN, err)
	}
	key := aws.Credentials{
		AccessKeyID: "AKIA" + randomID(), SecretAccessKey: randomBase64(40), Source: "awstest", AccountID: parsed.account,
	}
	a.iam.mu.Lock()
	defer a.iam.mu.Unlock()
	a.iam.users[key.AccessKeyID] = &user{
		principal: principal{
			kind: userPrincipal, arn: u.ARN, userID: "AIDA" + randomID(),
			account: parsed.account, partition: parsed.partition,
		},
		secret: key.SecretAccessKey, permissions: permissions,
	}
	return key, nil
}

// permits evaluates the caller's own permissions.
func (a *AWS) permits(p *principal, accessKeyID, action, resource string, context map[string][]string) access {
	a.iam.mu.RLock()
	var own *policy
	if p.kind == sessionPrincipal {
		if r := a.iam.roles[p.roleARN]; r != nil {
			own = r.permissions
		}
	} else if u := a.iam.users[accessKeyID]; u != nil {
		own = u.permissions
	}
	a.iam.mu.RUnlock()
	if own == nil {
		return implicitDeny
	}
	return own.evaluate(nil, action, resource, context)
}

// authorize returns AWS's refusal when the caller may not do an action on a resource, and nil when it may.
func (a *AWS) authorize(req *request, action, resource string) error {
	switch a.permits(req.caller, req.signature.accessKeyID, action, resource, req.context()) {
	case allowed:
		return nil
	case explicitDeny:
		return forbidden(codeAccessDenied, "User: %s is not authorized to perform: %s on resource: %s with an explicit deny "+
			"in an identity-based policy", req.caller.arn, action, resource)
	default:
		return forbidden(codeAccessDenied, "User: %s is not authorized to perform: %s on resource: %s because no "+
			"identity-based policy allows the %s action", req.caller.arn, action, resource, action)
	}
}

// randomID returns the 16 characters that follow the prefix of an AWS unique ID.
func randomID() string { return rand.Text()[:16] }
