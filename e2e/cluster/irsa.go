package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/e2e/cluster/kube"
)

// irsa calls STS with tokens of this API server's, good and bad. What an agent says of a refusal is in misconfigured.
func (s *stage) irsa(ctx context.Context) error {
	if err := s.addRole(ctx, "ledger"); err != nil {
		return err
	}
	// Its ServiceAccount names a role that trusts another.
	if err := s.addAccount(ctx, shop, "intruder", map[string]string{"podrole.io/role-arn": roleARN("ledger")}); err != nil {
		return err
	}
	s.check("a token of the ServiceAccount in the trust policy is taken", func() (string, error) {
		token, err := s.token(ctx, "ledger", "sts.amazonaws.com")
		if err != nil {
			return "", err
		}
		return "issuer " + kube.Server(), assume(ctx, token, "ledger")
	})
	for _, c := range []struct{ name, account, audience, code string }{
		{"another ServiceAccount's", "intruder", "sts.amazonaws.com", "AccessDenied"},
		{"another audience's", "ledger", "vault.example.com", "InvalidIdentityToken"},
		{"the API server's own audience's", "ledger", kube.Server(), "InvalidIdentityToken"},
	} {
		s.check(c.name+" token is refused", func() (string, error) {
			token, err := s.token(ctx, c.account, c.audience)
			if err != nil {
				return "", err
			}
			return c.code, refusedWith(assume(ctx, token, "ledger"), c.code)
		})
	}
	s.check("a token whose signature is not the issuer's is refused", func() (string, error) {
		token, err := s.token(ctx, "ledger", "sts.amazonaws.com")
		if err != nil {
			return "", err
		}
		head, signature := token[:strings.LastIndexByte(token, '.')+1], token[strings.LastIndexByte(token, '.')+1:]
		swapped := []byte(signature)
		swapped[0], swapped[9] = swapped[9], swapped[0]^1
		return "InvalidIdentityToken", refusedWith(assume(ctx, head+string(swapped), "ledger"), "InvalidIdentityToken")
	})
	return nil
}

// token requests a token for a ServiceAccount of namespace shop, as the administrator.
func (s *stage) token(ctx context.Context, account string, audiences ...string) (string, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences}}
	token, err := s.kube.Admin.CoreV1().ServiceAccounts(shop).CreateToken(ctx, account, request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("request token: %w", err)
	}
	return token.Status.Token, nil
}

// assume calls sts:AssumeRoleWithWebIdentity.
func assume(ctx context.Context, token, role string) error {
	client := sts.New(sts.Options{
		Region:       region,
		BaseEndpoint: new(endpoint()),
		Retryer:      awssdk.NopRetryer{},
	})
	_, err := client.AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: new(roleARN(role)), RoleSessionName: new("e2e"), WebIdentityToken: new(token),
	})
	return err
}

func refusedWith(err error, code string) error {
	if refusal, ok := errors.AsType[smithy.APIError](err); ok && refusal.ErrorCode() == code {
		return nil
	}
	return fmt.Errorf("want %s, got %w", code, err)
}
