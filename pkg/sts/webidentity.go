package sts

import (
	"context"
	"errors"
	"fmt"

	awssts "github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/podrole/podrole/pkg/role"
)

func (m *Minter) webIdentity(ctx context.Context, g role.Grant, pod role.Workload) (Credentials, error) {
	switch {
	case m.cfg.Tokens == nil:
		return Credentials{}, m.refuse(actionWebIdentity, g, errors.New("the agent has no source of ServiceAccount tokens"))
	case pod.Namespace != g.Namespace || pod.ServiceAccount != g.ServiceAccount:
		return Credentials{}, m.refuse(actionWebIdentity, g, fmt.Errorf("pod %s with ServiceAccount %s is not of %s/%s",
			pod, pod.ServiceAccount, g.Namespace, g.ServiceAccount))
	case g.ExternalID != "" || g.Tags != role.Tags{}:
		// The API has no parameter for either; leaving them out would mint another session than the Grant says.
		return Credentials{}, m.refuse(actionWebIdentity, g,
			errors.New("an external ID or session tags can be sent with assume-role only"))
	}
	token, err := m.token(ctx, g, pod)
	if err != nil {
		return Credentials{}, err
	}
	creds, v, err := m.callWebIdentity(ctx, g, token)
	if err == nil || v.token == keepToken {
		return creds, err
	}
	renewer, ok := m.cfg.Tokens.(Renewer)
	if !ok {
		return Credentials{}, err
	}
	renewer.Renew(pod, g.Audience, token)
	if v.token != retryNewToken {
		return Credentials{}, err
	}
	fresh, tokenErr := m.token(ctx, g, pod)
	if tokenErr != nil || fresh == token {
		return Credentials{}, err // what STS said is the news; the same token would only hear it again
	}
	creds, _, err = m.callWebIdentity(ctx, g, fresh)
	return creds, err
}

// token asks Tokens and puts the role's name on its errors.
func (m *Minter) token(ctx context.Context, g role.Grant, pod role.Workload) (string, error) {
	token, err := m.cfg.Tokens.Token(ctx, pod, g.Audience)
	if err == nil {
		return token, nil
	}
	e := &Error{Kind: Transient, Action: actionTokenRequest, Err: err}
	if known, ok := errors.AsType[*Error](err); ok {
		*e = *known
	}
	e.RoleARN, e.Region = g.RoleARN, m.cfg.Region
	return "", e
}

func (m *Minter) callWebIdentity(ctx context.Context, g role.Grant, token string) (Credentials, verdict, error) {
	creds, v, err := m.call(ctx, actionWebIdentity, g, func(ctx context.Context, client *awssts.Client) (result, error) {
		out, err := client.AssumeRoleWithWebIdentity(ctx, &awssts.AssumeRoleWithWebIdentityInput{
			RoleArn:          &g.RoleARN,
			RoleSessionName:  &g.SessionName,
			WebIdentityToken: &token,
			DurationSeconds:  seconds(g.Duration),
		})
		if err != nil {
			return result{}, err
		}
		return result{out.Credentials, out.AssumedRoleUser}, nil
	})
	if e, ok := errors.AsType[*Error](err); ok {
		m.countUnread(e)
	} else {
		m.unread.Remove(g.RoleARN)
	}
	return creds, v, err
}

// maxUnreadTries is how often in a row AWS may fail to read an issuer's keys before that counts as a refusal. An outage
// is over by then; an issuer that cannot be reached from the internet, or has lost its keys, needs somebody.
const maxUnreadTries = 10

// countUnread turns the error that says so into a refusal once it has come too often for its role.
func (m *Minter) countUnread(e *Error) {
	if !isKeyRetrieval(e.Code, e.Err) {
		if e.Code != "" { // another answer: AWS got further, or not as far
			m.unread.Remove(e.RoleARN)
		}
		return
	}
	tries, _ := m.unread.Peek(e.RoleARN)
	tries = min(tries+1, maxUnreadTries)
	m.unread.Add(e.RoleARN, tries)
	if tries == maxUnreadTries {
		e.Kind = Denied
	}
}

// Prepare gets a ServiceAccount token in pod's name if the one in hand is to be replaced, so that g can be minted for
// when no pod of its ServiceAccount is left. It calls STS for nothing, and its failure is no mint's: the token in hand
// is as good as before.
func (m *Minter) Prepare(ctx context.Context, g role.Grant, pod role.Workload) {
	if g.Source == role.WebIdentity && m.cfg.Tokens != nil {
		_, _ = m.cfg.Tokens.Token(ctx, pod, g.Audience)
	}
}
