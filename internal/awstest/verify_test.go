package awstest

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	identityForm = "Action=GetCallerIdentity&Version=2011-06-15"
	formType     = "application/x-www-form-urlencoded; charset=utf-8"
)

// signed returns a request signed now for eu-west-1.
func signed(
	t testing.TB, keys aws.Credentials, method, location, body, service string, header http.Header,
) *http.Request {
	t.Helper()
	return signedAt(t, keys, method, location, body, service, header, time.Now(), region)
}

func signedAt(
	t testing.TB, keys aws.Credentials, method, location, body, service string, header http.Header, at time.Time,
	region string,
) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, location, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(r.Header, header)
	sum := sha256.Sum256([]byte(body))
	hash := hex.EncodeToString(sum[:])
	if service == "s3" {
		if r.Header.Get("X-Amz-Content-Sha256") == "" {
			r.Header.Set("X-Amz-Content-Sha256", hash)
		}
		hash = r.Header.Get("X-Amz-Content-Sha256")
	}
	if err := v4.NewSigner().SignHTTP(t.Context(), keys, r, hash, service, region, at,
		func(o *v4.SignerOptions) { o.DisableURIPathEscaping = service == "s3" }); err != nil {
		t.Fatal(err)
	}
	return r
}

func do(t testing.TB, client *http.Client, r *http.Request) (status int, body string) {
	t.Helper()
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func setBody(r *http.Request, body string) {
	r.Body = io.NopCloser(strings.NewReader(body))
	r.GetBody = nil
	r.ContentLength = int64(len(body))
}

// Every row is one thing wrong with an otherwise good request.
func TestVerifyRefuses(t *testing.T) {
	w := newWorld(t, Config{})
	replace := func(old, new string) func(*http.Request) {
		return func(r *http.Request) {
			value := r.Header.Get("Authorization")
			if !strings.Contains(value, old) {
				panic(old + " is not in " + value)
			}
			r.Header.Set("Authorization", strings.Replace(value, old, new, 1))
		}
	}
	otherSession, err := w.Issue(nodeRole, "other", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	expired, err := w.Issue(nodeRole, "expired", -2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	mixed := w.node
	mixed.SessionToken = otherSession.SessionToken
	stranger := aws.Credentials{AccessKeyID: "AKIAAAAAAAAAAAAAAAAA", SecretAccessKey: w.user.SecretAccessKey}
	wrongSecret := w.user
	wrongSecret.SecretAccessKey = w.node.SecretAccessKey
	userWithToken := w.user
	userWithToken.SessionToken = w.node.SessionToken

	tests := map[string]struct {
		keys     aws.Credentials // node's when empty
		age      time.Duration
		region   string
		mutate   func(*http.Request)
		status   int
		code     string
		contains string
	}{
		"good":      {status: 200},
		"good-user": {keys: w.user, status: 200},
		"unsigned": {
			mutate: func(r *http.Request) { r.Header.Del("Authorization") }, status: 403, code: "MissingAuthenticationToken",
		},
		"unknown-key":      {keys: stranger, status: 403, code: "InvalidClientTokenId"},
		"wrong-secret":     {keys: wrongSecret, status: 403, code: "SignatureDoesNotMatch"},
		"token-of-another": {keys: mixed, status: 403, code: "InvalidClientTokenId"},
		"token-missing": {
			mutate: func(r *http.Request) { r.Header.Del("X-Amz-Security-Token") }, status: 403, code: "InvalidClientTokenId",
		},
		"token-with-user": {keys: userWithToken, status: 403, code: "InvalidClientTokenId"},
		"expired": {
			keys: expired, status: 403, code: "ExpiredToken",
			contains: "The security token included in the request is expired",
		},
		"old": {age: 4 * time.Minute, status: 200},
		"too-old": {
			age: 5*time.Minute + 2*time.Second, status: 403, code: "SignatureDoesNotMatch", contains: "Signature expired: ",
		},
		"too-new": {
			age: -5*time.Minute - 2*time.Second, status: 403, code: "SignatureDoesNotMatch",
			contains: "Signature not yet current: ",
		},
		"body": {
			mutate: func(r *http.Request) { setBody(r, identityForm+"&x=1") }, status: 403, code: "SignatureDoesNotMatch",
		},
		"body-same-length": {
			mutate: func(r *http.Request) { setBody(r, strings.Replace(identityForm, "06-15", "06-16", 1)) }, status: 403,
			code: "SignatureDoesNotMatch",
		},
		"query": {
			mutate: func(r *http.Request) { r.URL.RawQuery = "x=1" }, status: 403, code: "SignatureDoesNotMatch",
		},
		"path": {mutate: func(r *http.Request) { r.URL.Path = "/x" }, status: 403, code: "SignatureDoesNotMatch"},
		"method": {
			mutate: func(r *http.Request) { r.Method = http.MethodPut }, status: 403, code: "SignatureDoesNotMatch",
		},
		"host": {
			mutate: func(r *http.Request) { r.Host = "sts.eu-west-1.amazonaws.com" }, status: 403,
			code: "SignatureDoesNotMatch",
		},
		"signed-header": {
			mutate: func(r *http.Request) { r.Header.Set("Content-Type", formType+" ; x") }, status: 403,
			code: "SignatureDoesNotMatch",
		},
		"unsigned-header": {mutate: func(r *http.Request) { r.Header.Set("Amz-Sdk-Request", "attempt=1") }, status: 200},
		"date": {mutate: func(r *http.Request) {
			r.Header.Set("X-Amz-Date", time.Now().Add(time.Second).UTC().Format(amzDateForm))
		}, status: 403, code: "SignatureDoesNotMatch"},
		"date-malformed": {
			mutate: func(r *http.Request) { r.Header.Set("X-Amz-Date", "yesterday") }, status: 400,
			code: "IncompleteSignature",
		},
		"date-missing": {
			mutate: func(r *http.Request) { r.Header.Del("X-Amz-Date") }, status: 400, code: "IncompleteSignature",
		},
		"scope-day": {
			mutate: replace("/"+time.Now().UTC().Format("20060102")+"/", "/20200101/"), status: 403,
			code: "SignatureDoesNotMatch", contains: "Date in Credential scope does not match",
		},
		"scope-region": {
			region: "us-east-1", status: 403, code: "SignatureDoesNotMatch",
			contains: "Credential should be scoped to a valid region",
		},
		"scope-end":        {mutate: replace("aws4_request", "aws4"), status: 403, code: "SignatureDoesNotMatch"},
		"scope-short":      {mutate: replace("/sts/", "/"), status: 400, code: "IncompleteSignature"},
		"scope-no-service": {mutate: replace("/sts/", "/ec2/"), status: 404, code: "UnknownOperationException"},
		"algorithm": {
			mutate: replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), status: 400, code: "IncompleteSignature",
		},
		"signature-flipped": {mutate: func(r *http.Request) { flipLast(r) }, status: 403, code: "SignatureDoesNotMatch"},
		"signature-upper": {
			mutate: func(r *http.Request) { upperSignature(r) }, status: 403, code: "SignatureDoesNotMatch",
		},
		"signature-missing": {
			mutate: replace("Signature=", "Sig="), status: 400, code: "IncompleteSignature", contains: "requires 'Signature'",
		},
		"host-not-signed": {
			mutate: replace("host;", ""), status: 403, code: "SignatureDoesNotMatch",
			contains: "'Host' or ':authority' must be a 'SignedHeader'",
		},
		"header-not-sent": {
			mutate: replace("SignedHeaders=", "SignedHeaders=accept;"), status: 403, code: "SignatureDoesNotMatch",
		},
		"header-upper": {mutate: replace("host;", "Host;host;"), status: 403, code: "SignatureDoesNotMatch"},
		"parameter-twice": {
			mutate: replace("Signature=", "Signature=0, Signature="), status: 400, code: "IncompleteSignature",
		},
		"query-syntax-error": {
			mutate: func(r *http.Request) { r.URL.RawQuery = "a=%zz" }, status: 400, code: "MalformedQueryString",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			keys, scope := test.keys, test.region
			if keys.AccessKeyID == "" {
				keys = w.node
			}
			if scope == "" {
				scope = region
			}
			r := signedAt(t, keys, http.MethodPost, w.server.URL+"/", identityForm, "sts",
				http.Header{"Content-Type": {formType}}, time.Now().Add(-test.age), scope)
			if test.mutate != nil {
				test.mutate(r)
			}
			status, body := do(t, w.server.Client(), r)
			if status != test.status || test.code != "" && !strings.Contains(body, "<Code>"+test.code+"</Code>") ||
				!strings.Contains(body, test.contains) {
				t.Errorf("got %d: %s\nwant %d %s %s", status, body, test.status, test.code, test.contains)
			}
		})
	}
}

func flipLast(r *http.Request) {
	value := r.Header.Get("Authorization")
	last := "0"
	if strings.HasSuffix(value, "0") {
		last = "1"
	}
	r.Header.Set("Authorization", value[:len(value)-1]+last)
}

func upperSignature(r *http.Request) {
	head, signature, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
	r.Header.Set("Authorization", head+"Signature="+strings.ToUpper(signature))
}

func TestSessionsOfDeletedRoleAreRefused(t *testing.T) {
	w := newWorld(t, Config{})
	w.DeleteRole(nodeRole)
	_, err := w.client(w.node).GetCallerIdentity(t.Context(), nil)
	wantCode(t, err, "InvalidClientTokenId")
}

func TestPartitionsShareNothing(t *testing.T) {
	w := newWorld(t, Config{})
	china := "arn:aws-cn:iam::111122223333:role/node"
	w.put(t, Role{ARN: china, Trust: TrustService("ec2.amazonaws.com.cn")})
	keys, err := w.Issue(china, "i-1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for scope, want := range map[string]int{"cn-north-1": 200, region: 403} {
		t.Run(scope, func(t *testing.T) {
			r := signedAt(t, keys, http.MethodPost, "http://sts."+scope+".example/", identityForm, "sts",
				http.Header{"Content-Type": {formType}}, time.Now(), scope)
			resp, err := handlerTransport{w.Endpoint("")}.RoundTrip(r)
			if err != nil || resp.StatusCode != want {
				t.Errorf("got %v, %v, want status %d", resp, err, want)
			}
		})
	}
}

// SDKs of old sign headers that the Go signer leaves out by default, User-Agent for one.
func TestVerifyAcceptsWhatOlderSDKsSign(t *testing.T) {
	w := newWorld(t, Config{})
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.server.URL+"/", strings.NewReader(identityForm))
	if err != nil {
		t.Fatal(err)
	}
	r.Header["content-type"] = []string{formType}
	r.Header["user-agent"] = []string{"Boto/2.49.0  Python/2.7"} // in lower case the signer signs it
	sum := sha256.Sum256([]byte(identityForm))
	err = v4.NewSigner().SignHTTP(t.Context(), w.node, r, hex.EncodeToString(sum[:]), "sts", region, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.Header.Get("Authorization"), ";user-agent;") {
		t.Fatalf("User-Agent is not signed: %s", r.Header.Get("Authorization"))
	}
	r.Header["User-Agent"], r.Header["Content-Type"] = r.Header["user-agent"], r.Header["content-type"]
	delete(r.Header, "user-agent")
	delete(r.Header, "content-type")
	if status, body := do(t, w.server.Client(), r); status != 200 {
		t.Errorf("got %d: %s", status, body)
	}
	r.Header.Set("User-Agent", "another")
	setBody(r, identityForm)
	if status, _ := do(t, w.server.Client(), r); status != 403 {
		t.Errorf("got %d after User-Agent was changed, want 403", status)
	}
}

// FuzzVerify feeds arbitrary claims of a signature: nothing panics, and nobody is let in.
func FuzzVerify(f *testing.F) {
	w := newWorld(f, Config{})
	good := signed(f, w.node, http.MethodPost, "http://sts.example/", identityForm, "sts",
		http.Header{"Content-Type": {formType}})
	f.Add(good.Header.Get("Authorization"), good.Header.Get("X-Amz-Date"), "", identityForm)
	f.Add("AWS4-HMAC-SHA256 Credential=a/b/c/s3/aws4_request, SignedHeaders=host, Signature=00", "20260101T000000Z",
		"", "")
	f.Add("AWS4-HMAC-SHA256 Credential=a/b/c/kms/aws4_request, SignedHeaders=;;, Signature=00", "", "a=%zz", "{")
	f.Add("", "", "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2Fb%2Fc%2Fsts%2Faws4_request&X-Amz-Date=x"+
		"&X-Amz-SignedHeaders=host&X-Amz-Signature=0&X-Amz-Expires=9", "")
	f.Add("AWS4-HMAC-SHA256 ,=,,", "", "", "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn="+nodeRole+
		"&RoleSessionName=xx&WebIdentityToken=e30.e30.e30")
	f.Fuzz(func(t *testing.T, authorization, date, query, body string) {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
		r.URL.RawQuery = query
		r.Header = http.Header{"Content-Type": {formType}, "Authorization": {authorization}, "X-Amz-Date": {date}}
		recorder := httptest.NewRecorder()
		w.Endpoint(region).ServeHTTP(recorder, r)
		if recorder.Code < 400 {
			t.Errorf("got %d: %s", recorder.Code, recorder.Body)
		}
	})
}
