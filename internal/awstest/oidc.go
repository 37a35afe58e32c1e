package awstest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// Provider is an IAM OIDC identity provider: an account's trust in an issuer of tokens
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_providers_create_oidc.html).
type Provider struct {
	// Account is the 12-digit account that trusts the issuer; required.
	Account string
	// Partition is aws when empty.
	Partition string
	// Issuer is the URL that tokens carry as iss; required. AWS demands https; plain http is accepted here so that an
	// issuer can be an httptest server.
	Issuer string
	// ClientIDs are the audiences accepted; sts.amazonaws.com when empty, as EKS sets it up.
	ClientIDs []string
	// Keys returns the issuer's public keys. Either Keys or Client is required. It must be safe for concurrent use.
	Keys func(context.Context) (jose.JSONWebKeySet, error)
	// Client, with Keys nil, fetches the issuer's discovery document and keys at every call; nothing is cached, so that an
	// issuer that goes away is seen at once.
	Client *http.Client
}

type provider struct {
	Provider
	arn string
}

// PutProvider creates or replaces a provider and returns its ARN.
func (a *AWS) PutProvider(p Provider) (providerARN string, err error) {
	if p.Partition == "" {
		p.Partition = "aws"
	}
	if len(p.ClientIDs) == 0 {
		p.ClientIDs = []string{"sts.amazonaws.com"}
	}
	issuer, err := url.Parse(p.Issuer)
	switch {
	case err != nil || issuer.Host == "" || issuer.Scheme != "https" && issuer.Scheme != "http" || issuer.RawQuery != "":
		return "", fmt.Errorf("put OIDC provider: issuer %q: want https://HOST/PATH", p.Issuer)
	case !accountForm.MatchString(p.Account) || !partitionForm.MatchString(p.Partition):
		return "", fmt.Errorf("put OIDC provider %s: account %q in partition %q: want 12 digits and a partition of AWS",
			p.Issuer, p.Account, p.Partition)
	case p.Keys == nil && p.Client == nil:
		return "", fmt.Errorf("put OIDC provider %s: neither Keys nor Client says how to get its keys", p.Issuer)
	}
	providerARN = providerARNOf(p.Partition, p.Account, p.Issuer)
	a.iam.mu.Lock()
	defer a.iam.mu.Unlock()
	a.iam.providers[providerARN] = &provider{p, providerARN}
	return providerARN, nil
}

// DeleteProvider deletes a provider.
func (a *AWS) DeleteProvider(providerARN string) {
	a.iam.mu.Lock()
	defer a.iam.mu.Unlock()
	delete(a.iam.providers, providerARN)
}

func (i *iam) provider(providerARN string) *provider {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.providers[providerARN]
}

func providerARNOf(partition, account, issuer string) string {
	_, path, _ := strings.Cut(issuer, "://")
	return arn{partition: partition, service: "iam", account: account,
		resource: "oidc-provider/" + strings.TrimSuffix(path, "/")}.String()
}

// providerPath returns the issuer without its scheme, which prefixes the provider's condition keys.
func providerPath(providerARN string) string {
	_, path, _ := strings.Cut(providerARN, ":oidc-provider/")
	return path
}

// errUnreachable marks a failure to reach the issuer at all.
var errUnreachable = errors.New("identity provider cannot be reached")

// keys returns the issuer's keys. Errors wrap errUnreachable when no answer came.
func (p *provider) keys(ctx context.Context) (jose.JSONWebKeySet, error) {
	if p.Keys != nil {
		return p.Keys(ctx)
	}
	var discovery struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	var set jose.JSONWebKeySet
	if err := p.get(ctx, strings.TrimSuffix(p.Issuer, "/")+"/.well-known/openid-configuration", &discovery); err != nil {
		return set, fmt.Errorf("fetch discovery document: %w", err)
	}
	if discovery.Issuer != p.Issuer {
		return set, fmt.Errorf("discovery document is of issuer %q, not %q", discovery.Issuer, p.Issuer)
	}
	if err := p.get(ctx, discovery.JWKSURI, &set); err != nil {
		return set, fmt.Errorf("fetch keys: %w", err)
	}
	return set, nil
}

func (p *provider) get(ctx context.Context, location string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return fmt.Errorf("build request: %w", err)
	}
	resp, err := p.Client.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(into); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}

// accepted returns those of the token's audiences that the provider accepts.
func (p *provider) accepted(audiences []string) []string {
	return slices.DeleteFunc(slices.Clone(audiences), func(a string) bool { return !slices.Contains(p.ClientIDs, a) })
}
