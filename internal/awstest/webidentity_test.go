package awstest

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
)

func newIssuer(t testing.TB, url string) *Issuer {
	t.Helper()
	issuer, err := NewIssuer(IssuerConfig{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	return issuer
}

func signToken(t testing.TB, i *Issuer, r TokenRequest) string {
	t.Helper()
	token, err := i.Token(r)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html
func TestAssumeRoleWithWebIdentity(t *testing.T) {
	const url = "https://oidc.eks.eu-west-1.amazonaws.com/id/ABCDEF"
	like := func(providerARN string) string {
		s := TrustServiceAccount(providerARN, "shop", "web*")
		return strings.ReplaceAll(s, "StringEquals", "StringLike")
	}
	tests := map[string]struct {
		request  TokenRequest // namespace shop, ServiceAccount web, audience sts.amazonaws.com unless set
		issuer   string       // that of the account when empty
		token    string       // instead of one made from request
		mangle   func(string) string
		trust    func(providerARN string) string
		role     string
		duration int32
		setup    func(*world, *Issuer)
		code     string
		contains string
	}{
		"good":       {},
		"like":       {trust: like},
		"like-other": {trust: like, request: TokenRequest{ServiceAccount: "worker"}, code: "AccessDenied"},
		"wrong-sub": {
			request: TokenRequest{ServiceAccount: "worker"}, code: "AccessDenied",
			contains: "Not authorized to perform sts:AssumeRoleWithWebIdentity",
		},
		"wrong-namespace": {request: TokenRequest{Namespace: "shop-2"}, code: "AccessDenied"},
		"wrong-aud": {
			request: TokenRequest{Audiences: []string{"https://kubernetes.default.svc"}}, code: "InvalidIdentityToken",
			contains: "Incorrect token audience",
		},
		"aud-not-in-trust": {request: TokenRequest{Audiences: []string{"second.example"}}, code: "AccessDenied"},
		"two-auds":         {request: TokenRequest{Audiences: []string{"else", "sts.amazonaws.com"}}},
		"expired": {
			request: TokenRequest{Lifetime: -time.Minute}, code: "ExpiredTokenException",
			contains: "Token expired: current date/time",
		},
		"no-provider": {
			issuer: "https://oidc.example.net/id/2", code: "InvalidIdentityToken",
			contains: "No OpenIDConnect provider found in your account for https://oidc.example.net/id/2",
		},
		"no-jwt": {token: "not-a-token-at-all", code: "InvalidIdentityToken", contains: "not a valid JWT"},
		"none-algorithm": {
			token: "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.", code: "InvalidIdentityToken", contains: "not a valid JWT",
		},
		"tampered-claims": {mangle: func(token string) string {
			parts := strings.Split(token, ".")
			other := strings.Split(signTokenFor("kube-system", token), ".")
			return parts[0] + "." + other[1] + "." + parts[2]
		}, code: "InvalidIdentityToken"},
		"forgotten-key": {setup: func(_ *world, i *Issuer) {
			if err := i.Rotate(); err != nil {
				panic(err)
			}
			i.Forget()
		}, code: "InvalidIdentityToken", contains: "Couldn't retrieve verification key from your identity provider"},
		"issuer-slash": {issuer: url + "/", code: "InvalidIdentityToken", contains: "No OpenIDConnect provider found"},
		"rotated-key": {setup: func(_ *world, i *Issuer) {
			if err := i.Rotate(); err != nil {
				panic(err)
			}
		}},
		"unknown-role":       {role: "arn:aws:iam::111122223333:role/none", code: "AccessDenied"},
		"role-elsewhere":     {role: farRole, code: "InvalidIdentityToken", contains: "No OpenIDConnect provider"},
		"role-not-federated": {role: appRole, code: "AccessDenied"},
		"other-partition": {
			role: "arn:aws-cn:iam::111122223333:role/irsa", code: "ValidationError", contains: "Request ARN is invalid",
		},
		"duration-of-role": {duration: 43200},
		"duration-short":   {duration: 600, code: "ValidationError"},
		"duration-long": {duration: 3601, setup: func(w *world, _ *Issuer) {
			arn := providerARNOf("aws", account, url)
			if err := w.PutRole(Role{ARN: irsaRole, Trust: TrustServiceAccount(arn, "shop", "web")}); err != nil {
				panic(err)
			}
		}, code: "ValidationError", contains: "exceeds the MaxSessionDuration"},
		"provider-deleted": {setup: func(w *world, _ *Issuer) {
			w.DeleteProvider(providerARNOf("aws", account, url))
		}, code: "InvalidIdentityToken", contains: "No OpenIDConnect provider"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Config{})
			issuer := newIssuer(t, url)
			provider, err := w.PutProvider(Provider{
				Account: account, Issuer: url, ClientIDs: []string{"sts.amazonaws.com", "second.example"}, Keys: issuer.Keys,
			})
			if err != nil {
				t.Fatal(err)
			}
			trust := TrustServiceAccount(provider, "shop", "web")
			if test.trust != nil {
				trust = test.trust(provider)
			}
			w.put(t, Role{ARN: irsaRole, Trust: trust, MaxSessionDuration: 12 * time.Hour})
			r := test.request
			if r.Namespace == "" {
				r.Namespace = "shop"
			}
			if r.ServiceAccount == "" {
				r.ServiceAccount = "web"
			}
			if r.Audiences == nil {
				r.Audiences = []string{"sts.amazonaws.com"}
			}
			signing := issuer
			if test.issuer != "" {
				signing = newIssuer(t, test.issuer)
			}
			token := signToken(t, signing, r)
			if test.token != "" {
				token = test.token
			}
			if test.mangle != nil {
				token = test.mangle(token)
			}
			if test.setup != nil {
				test.setup(w, issuer)
			}
			in := sts.AssumeRoleWithWebIdentityInput{
				RoleArn: new(irsaRole), RoleSessionName: new("pod"), WebIdentityToken: &token,
			}
			if test.role != "" {
				in.RoleArn = &test.role
			}
			if test.duration != 0 {
				in.DurationSeconds = &test.duration
			}
			out, err := w.client(aws.Credentials{}).AssumeRoleWithWebIdentity(t.Context(), &in)
			wantCode(t, err, test.code)
			if !strings.Contains(message(err), test.contains) {
				t.Errorf("got message %q, want it to contain %q", message(err), test.contains)
			}
			if err == nil && (*out.SubjectFromWebIdentityToken != "system:serviceaccount:"+r.Namespace+":"+r.ServiceAccount ||
				*out.Provider != provider || *out.Audience != "sts.amazonaws.com") {
				t.Errorf("got sub %s, provider %s, aud %s", *out.SubjectFromWebIdentityToken, *out.Provider, *out.Audience)
			}
		})
	}
}

func TestTokenOfTheFutureIsRefused(t *testing.T) {
	w := newWorld(t, Config{})
	for ahead, code := range map[time.Duration]string{4 * time.Minute: "", 6 * time.Minute: "InvalidIdentityToken"} {
		t.Run(ahead.String(), func(t *testing.T) {
			issuer, err := NewIssuer(IssuerConfig{URL: "https://oidc.example.net",
				Now: func() time.Time { return time.Now().Add(ahead) }})
			if err != nil {
				t.Fatal(err)
			}
			provider, err := w.PutProvider(Provider{Account: account, Issuer: issuer.URL(), Keys: issuer.Keys})
			if err != nil {
				t.Fatal(err)
			}
			w.put(t, Role{ARN: irsaRole, Trust: TrustServiceAccount(provider, "shop", "web")})
			token := signToken(t, issuer, TokenRequest{Namespace: "shop", ServiceAccount: "web",
				Audiences: []string{"sts.amazonaws.com"}})
			_, err = w.client(aws.Credentials{}).AssumeRoleWithWebIdentity(t.Context(), &sts.AssumeRoleWithWebIdentityInput{
				RoleArn: new(irsaRole), RoleSessionName: new("pod"), WebIdentityToken: &token})
			wantCode(t, err, code)
		})
	}
}

// signTokenFor returns the claims of token with another namespace, signed with a key of nobody's.
func signTokenFor(namespace, token string) string {
	parsed, err := jwt.ParseSigned(token, tokenAlgorithms())
	if err != nil {
		panic(err)
	}
	claims := map[string]any{}
	if err := parsed.UnsafeClaimsWithoutVerification(&claims); err != nil {
		panic(err)
	}
	claims["sub"] = "system:serviceaccount:" + namespace + ":web"
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: make([]byte, 32)}, nil)
	if err != nil {
		panic(err)
	}
	out, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		panic(err)
	}
	return out
}

func TestProviderFetchesKeysOverHTTP(t *testing.T) {
	w := newWorld(t, Config{})
	var handler http.Handler
	broken := false
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if broken {
			http.Error(rw, "broken", http.StatusInternalServerError)
			return
		}
		handler.ServeHTTP(rw, r)
	}))
	issuer, err := NewIssuer(IssuerConfig{URL: server.URL + "/id/1", Algorithm: jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	handler = issuer.Handler()
	provider, err := w.PutProvider(Provider{Account: account, Issuer: issuer.URL(), Client: server.Client()})
	if err != nil {
		t.Fatal(err)
	}
	w.put(t, Role{ARN: irsaRole, Trust: TrustServiceAccount(provider, "shop", "web")})
	token := signToken(t, issuer, TokenRequest{Namespace: "shop", ServiceAccount: "web",
		Audiences: []string{"sts.amazonaws.com"}})
	call := func() error {
		_, err := w.client(aws.Credentials{}).AssumeRoleWithWebIdentity(t.Context(), &sts.AssumeRoleWithWebIdentityInput{
			RoleArn: new(irsaRole), RoleSessionName: new("pod"), WebIdentityToken: &token})
		return err
	}
	wantCode(t, call(), "")
	impostor, err := NewIssuer(IssuerConfig{URL: server.URL + "/id/1/"}) // same paths, another issuer
	if err != nil {
		t.Fatal(err)
	}
	handler, impostor.public = impostor.Handler(), issuer.public
	wantCode(t, call(), "InvalidIdentityToken")
	handler = issuer.Handler()
	wantCode(t, call(), "")
	broken = true
	wantCode(t, call(), "InvalidIdentityToken")
	server.Close()
	wantCode(t, call(), "IDPCommunicationError")
}

func TestTokenIsShapedLikeKubernetes(t *testing.T) {
	issuer := newIssuer(t, "https://oidc.example.net")
	token := signToken(t, issuer, TokenRequest{
		Namespace: "shop", ServiceAccount: "web", ServiceAccountUID: "sa-uid", Pod: "web-0", PodUID: "pod-uid", Node: "n1",
		NodeUID: "node-uid", Audiences: []string{"sts.amazonaws.com"}, Lifetime: 10 * time.Minute,
	})
	parsed, err := jwt.ParseSigned(token, tokenAlgorithms())
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := parsed.UnsafeClaimsWithoutVerification(&claims); err != nil {
		t.Fatal(err)
	}
	if life := claims["exp"].(float64) - claims["iat"].(float64); life != 600 {
		t.Errorf("got a life of %v s, want 600", life)
	}
	for _, name := range []string{"exp", "iat", "nbf", "jti"} {
		if claims[name] == nil {
			t.Errorf("no %s", name)
		}
		delete(claims, name)
	}
	want := map[string]any{
		"iss": "https://oidc.example.net", "sub": "system:serviceaccount:shop:web", "aud": []any{"sts.amazonaws.com"},
		"kubernetes.io": map[string]any{
			"namespace": "shop", "serviceaccount": map[string]any{"name": "web", "uid": "sa-uid"},
			"pod": map[string]any{"name": "web-0", "uid": "pod-uid"}, "node": map[string]any{"name": "n1", "uid": "node-uid"},
		},
	}
	if diff := cmp.Diff(want, claims); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
}
