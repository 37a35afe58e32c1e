package awstest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// session returns credentials of a new role with the given permissions.
func (w *world) session(t testing.TB, permissions string) aws.Credentials {
	t.Helper()
	const role = "arn:aws:iam::111122223333:role/caller"
	w.put(t, Role{ARN: role, Trust: TrustPrincipals(nodeRole), Permissions: permissions})
	keys, err := w.Issue(role, "pod", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestListBuckets(t *testing.T) {
	w := newWorld(t, Config{})
	for _, bucket := range []struct{ account, name string }{{account, "logs"}, {account, "assets"}, {other, "theirs"}} {
		if err := w.PutBucket(bucket.account, bucket.name); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.PutBucket(other, "logs"); err == nil {
		t.Error("a second account got the bucket name")
	}
	allowed := w.session(t, Permit("s3:List*"))
	unsigned := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	tests := map[string]struct {
		permissions string
		age         time.Duration
		region      string
		header      http.Header
		body        string
		mutate      func(*http.Request)
		status      int
		code        string
	}{
		"good":             {status: 200},
		"unsigned-payload": {header: http.Header{"X-Amz-Content-Sha256": {unsignedPayload}}, status: 200},
		"no-permission":    {permissions: Permit("s3:GetObject"), status: 403, code: "AccessDenied"},
		"skewed":           {age: 16 * time.Minute, status: 403, code: "RequestTimeTooSkewed"},
		"within-skew":      {age: 14 * time.Minute, status: 200},
		"other-region":     {region: "us-east-1", status: 400, code: "AuthorizationHeaderMalformed"},
		"payload-differs": {
			mutate: func(r *http.Request) { setBody(r, "x") }, status: 400, code: "XAmzContentSHA256Mismatch",
		},
		"header-unsigned": {mutate: unsigned("X-Amz-Acl", "public"), status: 403, code: "AccessDenied"},
		"tampered":        {mutate: flipLast, status: 403, code: "SignatureDoesNotMatch"},
		"anonymous": {
			mutate: func(r *http.Request) { r.Header.Del("Authorization") }, status: 403, code: "MissingAuthenticationToken",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			keys, scope := allowed, test.region
			if test.permissions != "" {
				keys = w.session(t, test.permissions)
				defer w.session(t, Permit("s3:List*"))
			}
			if scope == "" {
				scope = region
			}
			r := signedAt(t, keys, http.MethodGet, w.server.URL+"/", "", "s3", test.header, time.Now().Add(-test.age), scope)
			if test.mutate != nil {
				test.mutate(r)
			}
			status, body := do(t, w.server.Client(), r)
			if status != test.status || test.code != "" && !strings.Contains(body, "<Code>"+test.code+"</Code>") {
				t.Errorf("got %d %s, want %d %s", status, body, test.status, test.code)
			}
			if test.code == "" && (!strings.Contains(body, "<Name>assets</Name>") || strings.Contains(body, "theirs")) {
				t.Errorf("got %s, want the buckets of the account", body)
			}
		})
	}
}

func TestPresignedListBuckets(t *testing.T) {
	w := newWorld(t, Config{})
	for age, want := range map[time.Duration]string{
		20 * time.Minute: "ListAllMyBucketsResult", time.Hour: "<Code>RequestExpired</Code>",
	} {
		t.Run(age.String(), func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.server.URL+"/?X-Amz-Expires=1800", nil)
			if err != nil {
				t.Fatal(err)
			}
			location, _, err := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }).PresignHTTP(
				t.Context(), w.user, r, unsignedPayload, "s3", region, time.Now().Add(-age))
			if err != nil {
				t.Fatal(err)
			}
			if _, body := get(t, w.server.Client(), location, nil); !strings.Contains(body, want) {
				t.Errorf("got %s, want %s", body, want)
			}
		})
	}
}

// call sends a JSON 1.1 operation.
func (w *world) call(
	t testing.TB, keys aws.Credentials, service, target string, in map[string]any,
) (status int, out map[string]any) {
	t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	r := signed(t, keys, http.MethodPost, w.server.URL+"/", string(body), service,
		http.Header{"Content-Type": {amzJSON}, "X-Amz-Target": {target}})
	status, answer := do(t, w.server.Client(), r)
	if err := json.Unmarshal([]byte(answer), &out); err != nil {
		t.Fatalf("%v: %s", err, answer)
	}
	return status, out
}

func TestKMS(t *testing.T) {
	w := newWorld(t, Config{})
	key, err := w.CreateKey("aws", region, account)
	if err != nil {
		t.Fatal(err)
	}
	otherKey, err := w.CreateKey("aws", region, account)
	if err != nil {
		t.Fatal(err)
	}
	farKey, err := w.CreateKey("aws", "us-east-1", account)
	if err != nil {
		t.Fatal(err)
	}
	keys := w.session(t, strings.ReplaceAll(Permit("kms:*"), `"*"`, `"arn:aws:kms:*:111122223333:key/*"`))
	context := map[string]string{"app": "web", "env": "prod"}
	const plain = "attack at dawn"
	status, out := w.call(t, keys, "kms", "TrentService.Encrypt", map[string]any{
		"KeyId": key[strings.LastIndexByte(key, '/')+1:], "Plaintext": []byte(plain), "EncryptionContext": context})
	if status != 200 || out["KeyId"] != key {
		t.Fatalf("got %d %v", status, out)
	}
	blob, err := base64.StdEncoding.DecodeString(out["CiphertextBlob"].(string))
	if err != nil || !bytes.Contains(blob, []byte(key)) || bytes.Contains(blob, []byte(plain)) {
		t.Fatalf("got blob %q, %v", blob, err)
	}
	tampered := bytes.Clone(blob)
	tampered[len(tampered)-1] ^= 1
	tests := map[string]struct {
		in     map[string]any
		target string
		code   string
	}{
		"good":      {in: map[string]any{"CiphertextBlob": blob, "EncryptionContext": context}},
		"named-key": {in: map[string]any{"CiphertextBlob": blob, "EncryptionContext": context, "KeyId": key}},
		"wrong-key": {
			in:   map[string]any{"CiphertextBlob": blob, "EncryptionContext": context, "KeyId": otherKey},
			code: "IncorrectKeyException",
		},
		"no-context": {in: map[string]any{"CiphertextBlob": blob}, code: "InvalidCiphertextException"},
		"wrong-context": {
			in:   map[string]any{"CiphertextBlob": blob, "EncryptionContext": map[string]string{"app": "web"}},
			code: "InvalidCiphertextException",
		},
		"tampered": {
			in: map[string]any{"CiphertextBlob": tampered, "EncryptionContext": context}, code: "InvalidCiphertextException",
		},
		"short": {in: map[string]any{"CiphertextBlob": []byte{255}}, code: "InvalidCiphertextException"},
		"far-key": {
			target: "Encrypt", in: map[string]any{"KeyId": farKey, "Plaintext": []byte("x")}, code: "NotFoundException",
		},
		"no-key": {
			target: "Encrypt", in: map[string]any{"KeyId": "none", "Plaintext": []byte("x")}, code: "NotFoundException",
		},
		"no-plaintext": {target: "Encrypt", in: map[string]any{"KeyId": key}, code: "ValidationException"},
		"not-base64":   {in: map[string]any{"CiphertextBlob": "%%"}, code: "SerializationException"},
		"unserved":     {target: "CreateKey", in: map[string]any{}, code: "UnknownOperationException"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			target := test.target
			if target == "" {
				target = "Decrypt"
			}
			status, out := w.call(t, keys, "kms", "TrentService."+target, test.in)
			if test.code != "" {
				if status != 400 || out["__type"] != test.code {
					t.Errorf("got %d %v, want %s", status, out, test.code)
				}
				return
			}
			if got, err := base64.StdEncoding.DecodeString(out["Plaintext"].(string)); err != nil || string(got) != plain {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	t.Run("describe", func(t *testing.T) {
		id := key[strings.LastIndexByte(key, '/')+1:]
		for _, name := range []string{id, key} {
			status, out := w.call(t, keys, "kms", "TrentService.DescribeKey", map[string]any{"KeyId": name})
			metadata, _ := out["KeyMetadata"].(map[string]any)
			if status != 200 || metadata["KeyId"] != id || metadata["Arn"] != key || metadata["KeyState"] != "Enabled" {
				t.Errorf("%s: got %d %v", name, status, out)
			}
		}
		_, out := w.call(t, keys, "kms", "TrentService.DescribeKey", map[string]any{"KeyId": "none"})
		if out["__type"] != "NotFoundException" {
			t.Errorf("no key: got %v", out)
		}
		keys := w.session(t, Permit("kms:Encrypt", "kms:Decrypt"))
		_, out = w.call(t, keys, "kms", "TrentService.DescribeKey", map[string]any{"KeyId": key})
		if out["__type"] != "AccessDeniedException" {
			t.Errorf("no permission: got %v", out)
		}
	})
	t.Run("no-permission", func(t *testing.T) {
		keys := w.session(t, Permit("kms:Encrypt"))
		status, out := w.call(t, keys, "kms", "TrentService.Decrypt",
			map[string]any{"CiphertextBlob": blob, "EncryptionContext": context})
		text, _ := out["message"].(string)
		if status != 400 || out["__type"] != "AccessDeniedException" || !strings.Contains(text, "kms:Decrypt") {
			t.Errorf("got %d %v", status, out)
		}
	})
}

func TestGetSecretValue(t *testing.T) {
	w := newWorld(t, Config{})
	arn, err := w.PutSecret("aws", region, account, "prod/db-password", "hunter2")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.PutSecret("aws", "us-east-1", account, "far", "x"); err != nil {
		t.Fatal(err)
	}
	const get = "secretsmanager.GetSecretValue"
	reader := strings.ReplaceAll(Permit("secretsmanager:GetSecretValue"), `"*"`,
		`"arn:aws:secretsmanager:*:*:secret:prod/*"`)
	keys := w.session(t, reader)
	tests := map[string]struct {
		id, permissions, code string
		fault                 *Outcome
	}{
		"by-name":       {id: "prod/db-password"},
		"by-arn":        {id: arn},
		"by-short-arn":  {id: arn[:len(arn)-7]},
		"unknown":       {id: "prod/none", permissions: Permit("*"), code: "ResourceNotFoundException"},
		"other-region":  {id: "far", permissions: Permit("*"), code: "ResourceNotFoundException"},
		"no-permission": {id: arn, permissions: Permit("secretsmanager:List*"), code: "AccessDeniedException"},
		"throttled":     {id: arn, fault: Throttled(), code: "ThrottlingException"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if test.permissions != "" {
				w.session(t, test.permissions)
				defer w.session(t, reader)
			}
			if test.fault != nil {
				defer inject(t, w.AWS, Fault{Service: "secretsmanager", Outcome: test.fault})()
			}
			status, out := w.call(t, keys, "secretsmanager", get, map[string]any{"SecretId": test.id})
			switch {
			case test.code != "" && (status != 400 || out["__type"] != test.code):
				t.Errorf("got %d %v, want %s", status, out, test.code)
			case test.code == "" && (out["SecretString"] != "hunter2" || out["ARN"] != arn || out["Name"] != "prod/db-password"):
				t.Errorf("got %d %v", status, out)
			}
		})
	}
	t.Run("signature", func(t *testing.T) {
		bad := keys
		bad.SecretAccessKey = "x"
		if _, out := w.call(t, bad, "secretsmanager", get, nil); out["__type"] != "InvalidSignatureException" {
			t.Errorf("got %v", out)
		}
		bad = keys
		bad.SessionToken = "x"
		if _, out := w.call(t, bad, "secretsmanager", get, nil); out["__type"] != "UnrecognizedClientException" {
			t.Errorf("got %v", out)
		}
	})
}
