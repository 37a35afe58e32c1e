package awstest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

func newMetadata(t testing.TB, a *AWS, cfg NodeConfig) *Metadata {
	t.Helper()
	cfg.RoleARN, cfg.Region = nodeRole, region
	m, err := a.NewMetadata(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// ask sends one request to the metadata service from 10.0.1.10.
func ask(h http.Handler, method, path string, header http.Header) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	r.RemoteAddr = "10.0.1.10:40000"
	if header != nil {
		r.Header = header
	}
	recorder := httptest.NewRecorder()
	h.ServeHTTP(recorder, r)
	return recorder
}

func TestMetadataServesTheRealClient(t *testing.T) {
	w := newWorld(t, Config{})
	for _, required := range []bool{false, true} {
		t.Run(fmt.Sprint("tokens-required-", required), func(t *testing.T) {
			m := newMetadata(t, w.AWS, NodeConfig{TokensRequired: required})
			server := httptest.NewServer(m)
			defer server.Close()
			client := imds.New(imds.Options{Endpoint: server.URL, EnableFallback: aws.FalseTernary})
			document, err := client.GetInstanceIdentityDocument(t.Context(), nil)
			if err != nil || document.Region != region || document.AccountID != account || document.PrivateIP != "10.0.1.10" {
				t.Errorf("got document %+v, %v", document, err)
			}
			info, err := client.GetIAMInfo(t.Context(), nil)
			if err != nil || info.InstanceProfileArn != "arn:aws:iam::111122223333:instance-profile/node" {
				t.Errorf("got info %+v, %v", info, err)
			}
			cfg, err := config.LoadDefaultConfig(t.Context(), config.WithRegion(region), config.WithBaseEndpoint(w.server.URL),
				config.WithCredentialsProvider(ec2rolecreds.New(func(o *ec2rolecreds.Options) { o.Client = client })))
			if err != nil {
				t.Fatal(err)
			}
			out, err := sts.NewFromConfig(cfg).AssumeRole(t.Context(), asPod(appRole))
			wantCode(t, err, "")
			if !strings.Contains(*out.AssumedRoleUser.Arn, ":assumed-role/app/pod") {
				t.Errorf("got %s", *out.AssumedRoleUser.Arn)
			}
		})
	}
}

func TestMetadataAnswers(t *testing.T) {
	w := newWorld(t, Config{})
	m := newMetadata(t, w.AWS, NodeConfig{})
	strict := newMetadata(t, w.AWS, NodeConfig{TokensRequired: true})
	token := ask(m, "PUT", "/latest/api/token", http.Header{ttlHeader: {"60"}}).Body.String()
	if len(token) != 56 {
		t.Errorf("got a token of %d characters, want 56", len(token))
	}
	strictToken := ask(strict, "PUT", "/latest/api/token", http.Header{ttlHeader: {"60"}}).Body.String()
	tests := map[string]struct {
		handler http.Handler // m unless set
		method  string       // GET unless set
		path    string
		header  http.Header
		status  int
		body    string // exact, unless empty
	}{
		"role-list":      {path: "/latest/meta-data/iam/security-credentials/", status: 200, body: "node"},
		"role-list-bare": {path: "/latest/meta-data/iam/security-credentials", status: 200, body: "node"},
		"role-wrong":     {path: "/latest/meta-data/iam/security-credentials/other", status: 404},
		"double-slash":   {path: "//latest//meta-data/instance-id", status: 200, body: "i-0a1b2c3d4e5f60718"},
		"dots":           {path: "/latest/meta-data/iam/../instance-type", status: 200, body: "m5.large"},
		"old-version":    {path: "/2009-04-04/meta-data/placement/region", status: 200, body: region},
		"no-version":     {path: "/meta-data/placement/region", status: 404},
		"leaf-slash":     {path: "/latest/meta-data/placement/availability-zone/", status: 200, body: "eu-west-1a"},
		"zone-id":        {path: "/latest/meta-data/placement/availability-zone-id", status: 200, body: "euwest1-az1"},
		"listing": {
			path: "/latest/meta-data/placement/", status: 200, body: "availability-zone\navailability-zone-id\nregion",
		},
		"listing-dirs":     {path: "/latest/meta-data/iam/", status: 200, body: "info\nsecurity-credentials/"},
		"listing-version":  {path: "/latest/", status: 200, body: "dynamic\nmeta-data\nuser-data"},
		"listing-identity": {path: "/latest/dynamic/instance-identity/", status: 200, body: "document"},
		"domain":           {path: "/latest/meta-data/services/domain", status: 200, body: "amazonaws.com"},
		"user-data":        {path: "/latest/user-data", status: 200},
		"unknown":          {path: "/latest/meta-data/nothing", status: 404},
		"post":             {method: "POST", path: "/latest/meta-data/instance-id", status: 405},
		"token": {
			path: "/latest/meta-data/mac", header: http.Header{tokenHeader: {token}}, status: 200, body: "0a:1b:2c:3d:4e:5f",
		},
		"token-bad": {path: "/latest/meta-data/mac", header: http.Header{tokenHeader: {"x"}}, status: 401},
		"token-of-another": {
			path: "/latest/meta-data/mac", header: http.Header{tokenHeader: {strictToken}}, status: 401,
		},
		"token-forwarded": {
			path: "/latest/meta-data/mac", header: http.Header{tokenHeader: {token}, "X-Forwarded-For": {"10.0.0.1"}},
			status: 403,
		},
		"strict-without": {handler: strict, path: "/latest/meta-data/mac", status: 401},
		"strict-with": {
			handler: strict, path: "/latest/meta-data/mac", header: http.Header{tokenHeader: {strictToken}}, status: 200,
		},
		"put-no-ttl": {method: "PUT", path: "/latest/api/token", status: 400},
		"put-ttl-zero": {
			method: "PUT", path: "/latest/api/token", header: http.Header{ttlHeader: {"0"}}, status: 400,
		},
		"put-ttl-long": {
			method: "PUT", path: "/latest/api/token", header: http.Header{ttlHeader: {"21601"}}, status: 400,
		},
		"put-longest": {
			method: "PUT", path: "/latest/api/token", header: http.Header{ttlHeader: {"21600"}}, status: 200,
		},
		"put-elsewhere": {
			method: "PUT", path: "/latest/api/token/", header: http.Header{ttlHeader: {"60"}}, status: 403,
		},
		"put-forwarded": {
			method: "PUT", path: "/latest/api/token", header: http.Header{ttlHeader: {"60"}, "X-Forwarded-For": {"10.0.0.1"}},
			status: 403,
		},
		"token-get":     {path: "/latest/api/token", status: 405},
		"token-options": {method: "OPTIONS", path: "/latest/api/token", status: 200},
		"network-interface-mac": {
			path: "/latest/meta-data/network/interfaces/macs/", status: 200, body: "0a:1b:2c:3d:4e:5f/",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h, method := test.handler, test.method
			if h == nil {
				h = m
			}
			if method == "" {
				method = "GET"
			}
			got := ask(h, method, test.path, test.header)
			if got.Code != test.status || test.body != "" && got.Body.String() != test.body {
				t.Errorf("got %d %q, want %d %q", got.Code, got.Body, test.status, test.body)
			}
			if got.Code >= 400 && got.Code != 403 && !strings.HasPrefix(got.Body.String(), "<?xml") {
				t.Errorf("got error body %q, want XHTML", got.Body)
			}
			if got.Header().Get("Server") != "EC2ws" || got.Header().Get("Connection") != "close" {
				t.Errorf("got headers %v", got.Header())
			}
		})
	}
}

func TestMetadataRecordsLeaksAndAnswersThem(t *testing.T) {
	w := newWorld(t, Config{})
	node := netip.MustParseAddr("10.0.1.10")
	m := newMetadata(t, w.AWS, NodeConfig{Allowed: func(a netip.Addr) bool { return a == node }})
	const path = "/latest/meta-data/iam/security-credentials/node"
	if got := ask(m, "GET", path, nil); got.Code != 200 || m.LeakCount() != 0 {
		t.Fatalf("got %d and %d leaks for the node itself", got.Code, m.LeakCount())
	}
	r := httptest.NewRequest("GET", path, nil)
	r.RemoteAddr = "[::ffff:10.0.2.7]:555"
	recorder := httptest.NewRecorder()
	m.ServeHTTP(recorder, r)
	leaks := m.Leaks()
	if recorder.Code != 200 || len(leaks) != 1 || leaks[0].Path != path || leaks[0].Source.Port() != 555 {
		t.Errorf("got %d and leaks %+v", recorder.Code, leaks)
	}
	if all := m.Requests(); len(all) != 2 || all[1].Status != 200 || m.RequestCount() != 2 {
		t.Errorf("got requests %+v", all)
	}
}

func TestMereConnectionIsALeak(t *testing.T) {
	w := newWorld(t, Config{})
	m := newMetadata(t, w.AWS, NodeConfig{Allowed: func(netip.Addr) bool { return false }})
	server := httptest.NewUnstartedServer(m)
	server.Config.ConnState = m.ConnState
	server.Start()
	defer server.Close()
	if status, _ := get(t, server.Client(), server.URL+"/latest/meta-data/mac", nil); status != 200 {
		t.Errorf("got status %d", status)
	}
	if leaks := m.Leaks(); len(leaks) != 2 || leaks[0].Method != "" || leaks[1].Method != "GET" {
		t.Errorf("got leaks %+v, want the connection and the request", leaks)
	}
}

func TestNodeCredentialsRotateBeforeTheyExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, err := New(Config{SessionLifetime: ScaleLifetime(300)})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.PutRole(Role{ARN: nodeRole, Trust: TrustService("ec2.amazonaws.com")}); err != nil {
			t.Fatal(err)
		}
		m := newMetadata(t, a, NodeConfig{})
		seen := map[string]bool{}
		for range 24 {
			var document struct {
				Code, AccessKeyID, Token string
				Expiration               time.Time
			}
			body := ask(m, "GET", "/latest/meta-data/iam/security-credentials/node", nil).Body.Bytes()
			if err := json.Unmarshal(body, &document); err != nil || document.Code != "Success" {
				t.Fatalf("%v: %s", err, body)
			}
			if left := time.Until(document.Expiration); left < 3*time.Hour || left > 6*time.Hour {
				t.Errorf("got credentials with %v left", left)
			}
			session, ok := a.LookupSession(document.AccessKeyID)
			if !ok || session.RoleARN != nodeRole || session.Action != "InstanceProfile" {
				t.Errorf("got session %+v", session)
			}
			seen[document.AccessKeyID] = true
			time.Sleep(time.Hour)
		}
		if len(seen) < 4 || len(seen) > 8 {
			t.Errorf("got %d sets of credentials in a day", len(seen))
		}
		token := ask(m, "PUT", "/latest/api/token", http.Header{ttlHeader: {"60"}}).Body.String()
		time.Sleep(59 * time.Second)
		got := ask(m, "GET", "/latest/meta-data/mac", http.Header{tokenHeader: {token}})
		if got.Header().Get(ttlHeader) != "1" {
			t.Errorf("got %d with headers %v, want one second left", got.Code, got.Header())
		}
		time.Sleep(time.Second)
		if got := ask(m, "GET", "/latest/meta-data/mac", http.Header{tokenHeader: {token}}); got.Code != 401 {
			t.Errorf("got %d for an expired token, want 401", got.Code)
		}
	})
}

func TestNewMetadataErrors(t *testing.T) {
	w := newWorld(t, Config{})
	tests := map[string]struct {
		cfg      NodeConfig
		contains string
	}{
		"no-region":   {NodeConfig{RoleARN: nodeRole}, "no region"},
		"no-role":     {NodeConfig{RoleARN: "arn:aws:iam::111122223333:role/none", Region: region}, "no role"},
		"not-trusted": {NodeConfig{RoleARN: appRole, Region: region}, "does not trust ec2.amazonaws.com"},
		"partition":   {NodeConfig{RoleARN: nodeRole, Region: "cn-north-1"}, "partition"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := w.NewMetadata(test.cfg); err == nil || !strings.Contains(err.Error(), test.contains) {
				t.Errorf("got %v, want %q", err, test.contains)
			}
		})
	}
}

func TestMetadataFaultsMustNameTheService(t *testing.T) {
	w := newWorld(t, Config{})
	m := newMetadata(t, w.AWS, NodeConfig{})
	inject(t, w.AWS, Fault{Outcome: Unavailable()})
	if got := ask(m, "GET", "/latest/meta-data/mac", nil); got.Code != 200 {
		t.Errorf("got %d from a fault of the APIs", got.Code)
	}
	inject(t, w.AWS, Fault{Service: ServiceIMDS, Action: "/latest/meta-data/mac", Outcome: Unavailable()})
	if got := ask(m, "GET", "/latest//meta-data/mac/", nil); got.Code != 503 {
		t.Errorf("got %d, want 503", got.Code)
	}
	if got := ask(m, "GET", "/latest/meta-data/ami-id", nil); got.Code != 200 {
		t.Errorf("got %d from a fault of another path", got.Code)
	}
}
