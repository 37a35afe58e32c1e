package awstest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// IssuerConfig configures an issuer.
type IssuerConfig struct {
	// URL is what tokens carry as iss; required. Discovery is served below its path.
	URL string
	// Algorithm is jose.ES256, the default, or jose.RS256, which is what API servers sign with and slower to set up.
	Algorithm jose.SignatureAlgorithm
	// Now is time.Now when nil.
	Now func() time.Time
}

// Issuer signs ServiceAccount tokens as a Kubernetes API server does and publishes its keys. It is safe for concurrent
// use.
type Issuer struct {
	url       string
	algorithm jose.SignatureAlgorithm
	now       func() time.Time

	mu     sync.RWMutex // guards the following
	signer jose.Signer
	public jose.JSONWebKeySet
}

// NewIssuer returns an issuer with a key of its own.
func NewIssuer(cfg IssuerConfig) (*Issuer, error) {
	if u, err := url.Parse(cfg.URL); err != nil || u.Host == "" {
		return nil, fmt.Errorf("new issuer: URL %q: want https://HOST/PATH", cfg.URL)
	}
	i := &Issuer{url: cfg.URL, algorithm: cfg.Algorithm, now: cfg.Now}
	if i.algorithm == "" {
		i.algorithm = jose.ES256
	}
	if i.now == nil {
		i.now = time.Now
	}
	if err := i.Rotate(); err != nil {
		return nil, fmt.Errorf("new issuer %s: %w", cfg.URL, err)
	}
	return i, nil
}

// Rotate signs with a new key from now on; earlier keys stay published. See [Issuer.Forget].
func (i *Issuer) Rotate() error {
	var key crypto.Signer
	var err error
	switch i.algorithm {
	case jose.ES256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.RS256:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		return fmt.Errorf("rotate key: algorithm %q: want ES256 or RS256", i.algorithm)
	}
	if err != nil {
		return fmt.Errorf("rotate key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("rotate key: %w", err)
	}
	// The API server's key ID is this hash of the public key, too.
	sum := sha256.Sum256(der)
	id := base64.RawURLEncoding.EncodeToString(sum[:])
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: i.algorithm, Key: jose.JSONWebKey{Key: key, KeyID: id}}, nil)
	if err != nil {
		return fmt.Errorf("rotate key: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.signer = signer
	i.public.Keys = append(i.public.Keys[:len(i.public.Keys):len(i.public.Keys)],
		jose.JSONWebKey{Key: key.Public(), KeyID: id, Algorithm: string(i.algorithm), Use: "sig"})
	return nil
}

// Forget publishes no key but the one in use: tokens signed before the last Rotate are no longer valid.
func (i *Issuer) Forget() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.public.Keys = i.public.Keys[len(i.public.Keys)-1:]
}

// URL returns the issuer's URL, as tokens carry it.
func (i *Issuer) URL() string { return i.url }

// Keys returns the published keys. It fits [Provider.Keys].
func (i *Issuer) Keys(context.Context) (jose.JSONWebKeySet, error) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.public, nil // Rotate and Forget replace the slice, they do not write to it
}

// TokenRequest says what a ServiceAccount token is about.
type TokenRequest struct {
	Namespace, ServiceAccount, ServiceAccountUID string
	Pod, PodUID                                  string // the pod it is bound to; empty for none
	Node, NodeUID                                string // the node of that pod; empty for none
	Audiences                                    []string
	Lifetime                                     time.Duration // one hour when zero; negative for a token that expired
}

// Token signs a ServiceAccount token with the claims that an API server gives it
// (https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/).
func (i *Issuer) Token(r TokenRequest) (string, error) {
	if r.Lifetime == 0 {
		r.Lifetime = time.Hour
	}
	now := i.now()
	type reference struct {
		Name string `json:"name"`
		UID  string `json:"uid"`
	}
	bound := struct {
		Namespace      string     `json:"namespace"`
		Node           *reference `json:"node,omitempty"`
		Pod            *reference `json:"pod,omitempty"`
		ServiceAccount reference  `json:"serviceaccount"`
	}{Namespace: r.Namespace, ServiceAccount: reference{r.ServiceAccount, r.ServiceAccountUID}}
	if r.Pod != "" {
		bound.Pod = &reference{r.Pod, r.PodUID}
	}
	if r.Node != "" {
		bound.Node = &reference{r.Node, r.NodeUID}
	}
	issued := min(r.Lifetime, 0) // a token that expired was issued before it did
	claims := map[string]any{
		"iss": i.url, "aud": r.Audiences, "sub": "system:serviceaccount:" + r.Namespace + ":" + r.ServiceAccount,
		"iat": now.Add(2 * issued).Unix(), "nbf": now.Add(2 * issued).Unix(), "exp": now.Add(r.Lifetime).Unix(),
		"jti": requestID(), "kubernetes.io": bound,
	}
	i.mu.RLock()
	signer := i.signer
	i.mu.RUnlock()
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return token, nil
}

// Handler serves the discovery document and the keys as an API server does, below the path of the issuer's URL.
func (i *Issuer) Handler() http.Handler {
	base := strings.TrimSuffix(i.url, "/")
	path := ""
	if u, err := url.Parse(base); err == nil {
		path = u.EscapedPath()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var answer reply
		switch r.URL.EscapedPath() {
		case path + "/.well-known/openid-configuration":
			answer = jsonReply(http.StatusOK, "", "application/json", map[string]any{
				"issuer": i.url, "jwks_uri": base + "/openid/v1/jwks",
				"response_types_supported":              []string{"id_token"},
				"subject_types_supported":               []string{"public"},
				"id_token_signing_alg_values_supported": []string{string(i.algorithm)},
			})
		case path + "/openid/v1/jwks":
			set, _ := i.Keys(r.Context())
			answer = jsonReply(http.StatusOK, "", "application/jwk-set+json", set)
		default:
			http.NotFound(w, r)
			return
		}
		answer.write(w, requestID())
	})
}
