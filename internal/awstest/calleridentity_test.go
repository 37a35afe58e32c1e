package awstest

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

func get(t *testing.T, client *http.Client, location string, header http.Header) (status int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, location, nil)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(r.Header, header)
	if host := header.Get("Host"); host != "" {
		r.Host = host
		r.Header.Del("Host")
	}
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

// Kubernetes authenticators identify callers by a presigned request that covers a header naming the cluster.
func TestPresignedGetCallerIdentity(t *testing.T) {
	now := time.Now()
	w := newWorld(t, Config{Now: func() time.Time { return now }})
	signedAt := now
	presign := func(t *testing.T, expires string) *v4.PresignedHTTPRequest {
		client := sts.NewPresignClient(w.client(w.node))
		request, err := client.PresignGetCallerIdentity(t.Context(), nil, func(o *sts.PresignOptions) {
			o.ClientOptions = append(o.ClientOptions, func(o *sts.Options) {
				o.APIOptions = append(o.APIOptions, smithyhttp.SetHeaderValue("X-K8s-Aws-Id", "cluster-1"))
			})
			o.Presigner = presignerAt{v4.NewSigner(), &signedAt, expires}
		})
		if err != nil {
			t.Fatal(err)
		}
		return request
	}
	tests := map[string]struct {
		expires string
		age     time.Duration
		mutate  func(location string, header http.Header) string
		status  int
		code    string
	}{
		"good":           {status: 200},
		"minute":         {expires: "60", age: 59 * time.Second, status: 200},
		"minute-passed":  {expires: "60", age: 62 * time.Second, status: 403, code: "SignatureDoesNotMatch"},
		"quarter":        {expires: "900", age: 899 * time.Second, status: 200},
		"quarter-passed": {expires: "86400", age: 902 * time.Second, status: 403, code: "SignatureDoesNotMatch"},
		"from-future":    {age: -6 * time.Minute, status: 403, code: "SignatureDoesNotMatch"},
		"other-cluster": {mutate: func(l string, h http.Header) string {
			h.Set("X-K8s-Aws-Id", "cluster-2")
			return l
		}, status: 403, code: "SignatureDoesNotMatch"},
		"no-cluster": {mutate: func(l string, h http.Header) string {
			h.Del("X-K8s-Aws-Id")
			return l
		}, status: 403, code: "SignatureDoesNotMatch"},
		"other-host": {mutate: func(l string, h http.Header) string {
			h.Set("Host", "sts.eu-west-1.amazonaws.com")
			return l
		}, status: 403, code: "SignatureDoesNotMatch"},
		"other-action": {mutate: func(l string, _ http.Header) string {
			return strings.Replace(l, "Action=GetCallerIdentity", "Action=AssumeRole", 1)
		}, status: 403, code: "SignatureDoesNotMatch"},
		"longer-expiry": {expires: "60", mutate: func(l string, _ http.Header) string {
			return strings.Replace(l, "X-Amz-Expires=60", "X-Amz-Expires=900", 1)
		}, status: 403, code: "SignatureDoesNotMatch"},
		"no-token": {mutate: func(l string, _ http.Header) string {
			return strings.Replace(l, "X-Amz-Security-Token=", "X-Amz-Ignored=", 1)
		}, status: 403, code: "InvalidClientTokenId"},
		"no-signed-headers": {mutate: func(l string, _ http.Header) string {
			return strings.Replace(l, "X-Amz-SignedHeaders=", "X-Amz-Ignored=", 1)
		}, status: 400, code: "IncompleteSignature"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			signedAt = now.Add(-test.age)
			request := presign(t, test.expires)
			header := request.SignedHeader.Clone()
			if header.Get("X-K8s-Aws-Id") == "" || !strings.Contains(request.URL, "x-k8s-aws-id") {
				t.Fatalf("the cluster header is not signed: %v", header)
			}
			location := request.URL
			if test.mutate != nil {
				location = test.mutate(location, header)
			}
			status, body := get(t, w.server.Client(), location, header)
			if status != test.status || !strings.Contains(body, "<Code>"+test.code+"</Code>") && test.code != "" {
				t.Errorf("got %d: %s\nwant %d %s", status, body, test.status, test.code)
			}
			if test.code == "" && !strings.Contains(body, ":assumed-role/node/") {
				t.Errorf("got %s, want the node's identity", body)
			}
		})
	}
}

// presignerAt presigns at a given time and with a given expiry.
type presignerAt struct {
	signer  *v4.Signer
	at      *time.Time
	expires string
}

func (p presignerAt) PresignHTTP(
	ctx context.Context, key aws.Credentials, r *http.Request, hash, service, region string, _ time.Time,
	options ...func(*v4.SignerOptions),
) (string, http.Header, error) {
	if p.expires != "" {
		query := r.URL.Query()
		query.Set("X-Amz-Expires", p.expires)
		r.URL.RawQuery = query.Encode()
	}
	return p.signer.PresignHTTP(ctx, key, r, hash, service, region, *p.at, options...)
}

func TestGetCallerIdentityByGet(t *testing.T) {
	w := newWorld(t, Config{})
	location := w.server.URL + "/?Action=GetCallerIdentity&Version=2011-06-15"
	for name, keys := range map[string]aws.Credentials{"session": w.node, "user": w.user} {
		t.Run(name, func(t *testing.T) {
			r := signed(t, keys, http.MethodGet, location, "", "sts", nil)
			status, body := get(t, w.server.Client(), location, r.Header)
			if status != 200 || !strings.Contains(body, "<Account>"+account+"</Account>") {
				t.Errorf("got %d: %s", status, body)
			}
		})
	}
	t.Run("parameters-in-both-places", func(t *testing.T) {
		r := signed(t, w.user, http.MethodPost, w.server.URL+"/?Version=2011-06-15", "Action=GetCallerIdentity", "sts",
			http.Header{"Content-Type": {formType}})
		if status, body := do(t, w.server.Client(), r); status != 200 {
			t.Errorf("got %d: %s", status, body)
		}
	})
	t.Run("json", func(t *testing.T) {
		r := signed(t, w.user, http.MethodGet, location, "", "sts", http.Header{"Accept": {"application/json"}})
		_, body := get(t, w.server.Client(), location, r.Header)
		var answer struct {
			GetCallerIdentityResponse struct {
				GetCallerIdentityResult struct{ Account, Arn, UserID string }
			}
		}
		if err := json.Unmarshal([]byte(body), &answer); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		if got := answer.GetCallerIdentityResponse.GetCallerIdentityResult.Arn; got != "arn:aws:iam::111122223333:user/ops" {
			t.Errorf("got ARN %q", got)
		}
	})
}
