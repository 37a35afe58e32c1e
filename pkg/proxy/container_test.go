package proxy

import (
	"context"
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/google/go-cmp/cmp"

	"github.com/podrole/podrole/pkg/role"
)

const containerCredentialsBody = `{
  "RoleArn" : "arn:aws:iam::123456789012:role/team/web",
  "AccessKeyId" : "ASIAIOSFODNN7EXAMPLE",
  "SecretAccessKey" : "` + testSecret + `",
  "Token" : "` + testSessionToken + `",
  "Expiration" : "2026-03-01T13:00:00Z"
}`

// at returns a request for a path at another host than the metadata service's.
func at(host, path string, fields ...string) string {
	return strings.Replace(get(path, fields...), metadataHost, host, 1)
}

func TestContainerEndpoint(t *testing.T) {
	const ecs, eks, eks6 = "169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"
	const task = "/v2/credentials/0f7a-4e"
	tests := []struct {
		name    string
		source  string // known, unless said otherwise
		request string
		code    int
		body    string // of 200
		allow   string
	}{
		{name: "relative_uri", request: at(ecs, task), code: 200, body: containerCredentialsBody},
		{name: "relative_uri_port", request: at(ecs+":80", task), code: 200, body: containerCredentialsBody},
		{name: "relative_uri_slash", request: at(ecs, task+"/"), code: 200, body: containerCredentialsBody},
		{name: "relative_uri_double_slash", request: at(ecs, "/"+task), code: 200, body: containerCredentialsBody},
		{name: "relative_uri_of_old", request: at(ecs, "/v1/credentials?id=0f7a"), code: 200, body: containerCredentialsBody},
		{name: "full_uri", request: at(eks, "/v1/credentials", "Authorization: eyJhbGciOi"), code: 200, body: containerCredentialsBody},
		{name: "full_uri_ipv6", request: at(eks6, "/v1/credentials"), code: 200, body: containerCredentialsBody},
		{name: "full_uri_port", request: at(eks6+":80", "/v1/credentials"), code: 200, body: containerCredentialsBody},
		{name: "accept", request: at(ecs, task, "Accept: application/json"), code: 200, body: containerCredentialsBody},
		{name: "full_uri_ipv6_upper_case", request: at("[FD00:EC2::23]", "/v1/credentials"), code: 200, body: containerCredentialsBody},
		{name: "http10", request: "GET " + task + " HTTP/1.0\r\nHost: " + ecs + "\r\n\r\n", code: 200, body: containerCredentialsBody},
		{name: "head", request: strings.Replace(at(ecs, task), "GET", "HEAD", 1), code: 200},

		{name: "roleless", source: roleless, request: at(ecs, task), code: 404},
		{name: "forbidden", source: forbidden, request: at(ecs, task), code: 404},
		{name: "stranger", source: stranger, request: at(ecs, task), code: 503},
		{name: "cold", source: cold, request: at(ecs, task), code: 503},
		{name: "undecided", source: undecided, request: at(ecs, task), code: 503},
		{name: "another_grants_session", source: wrong, request: at(ecs, task), code: 503},
		{name: "expired_session", source: expired, request: at(ecs, task), code: 503},
		{name: "forwarded", request: at(ecs, task, "X-Forwarded-For: 10.0.0.1"), code: 403},
		{name: "post", request: strings.Replace(at(ecs, task), "GET", "POST", 1), code: 405, allow: "GET, HEAD"},
		{name: "put", request: strings.Replace(at(ecs, task), "GET", "PUT", 1), code: 405, allow: "GET, HEAD"},
		{name: "task_metadata", request: at(ecs, "/v2/metadata"), code: 404},
		{name: "root", request: at(ecs, "/"), code: 404},
		{name: "instance_metadata", request: at(ecs, sc+"/web"), code: 404},
		{name: "instance_region", request: at(eks, regionPath), code: 404},
		{name: "instance_token", request: strings.Replace(put("60"), metadataHost, eks, 1), code: 405, allow: "GET, HEAD"},
		{name: "dots", request: at(ecs, "/v2/credentials/../metadata"), code: 404},
		{name: "longer_name", request: at(ecs, "/v2/credentialsx"), code: 404},
	}
	_, address := newTranscriptNode(t, func(c *Config) { c.ContainerCredentials, c.IMDSv1 = true, false })
	_, off := newTranscriptNode(t, nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			source := tt.source
			if source == "" {
				source = known
			}
			got := parse(t, exchangeTCP(t, address, source, tt.request))
			if code := codeOf(t, got); code != tt.code {
				t.Fatalf("status %d, want %d", code, tt.code)
			}
			want := map[string]string{
				"Accept-Ranges": "none", "Connection": "close", "Content-Type": "application/json", "Server": "EC2ws",
				"Content-Length": strconv.Itoa(len(got.body)),
			}
			if strings.HasPrefix(tt.request, "HEAD") {
				want["Content-Length"] = strconv.Itoa(len(containerCredentialsBody))
			}
			if tt.allow != "" {
				want["Allow"] = tt.allow
			}
			checkHeader(t, got.header, want)
			switch {
			case tt.code == 200:
				if diff := cmp.Diff(tt.body, got.body); diff != "" {
					t.Errorf("body (-want +got):\n%s", diff)
				}
			case strings.Contains(got.body, "ASIA") || strings.Contains(got.body, testSecret):
				t.Errorf("credentials in an error: %s", got.body)
			default:
				var e map[string]string
				if err := json.Unmarshal([]byte(got.body), &e); err != nil || e["code"] == "" || e["message"] == "" || len(e) != 2 {
					t.Errorf("error body %q, %v; want code and message", got.body, err)
				}
			}

			// Switched off, there is nothing of it.
			got = parse(t, exchangeTCP(t, off, source, tt.request))
			if code := codeOf(t, got); code == 200 || code == 503 || got.header.Get("Content-Type") == "application/json" {
				t.Errorf("switched off: %d, %s %q", code, got.header.Get("Content-Type"), got.body)
			}
		})
	}
	// The metadata service is what it was.
	token := mustToken(t, address, known)
	if got := parse(t, exchangeTCP(t, address, known, get(sc+"/web", withToken(token)))); got.body != credentialsBody {
		t.Errorf("credentials by IMDSv2 beside it: %s %q", got.status, got.body)
	}
	// And it is no way around the token that it wants.
	for name, tt := range map[string]struct {
		request string
		code    int
	}{
		"metadata_host":            {get(task), 401},
		"metadata_host_port":       {at(metadataHost+":80", "/v1/credentials"), 401},
		"metadata_host_ipv6":       {at("[fd00:ec2::254]", "/v1/credentials"), 401},
		"metadata_host_with_token": {get(task, withToken(token)), 404},
		"no_host":                  {"GET " + task + " HTTP/1.1\r\n\r\n", 401},
		"empty_host":               {"GET " + task + " HTTP/1.1\r\nHost:\r\n\r\n", 401},
		"http10_without_host":      {"GET " + task + " HTTP/1.0\r\n\r\n", 401},
		"name_that_resolves_here":  {at("rebound.example", task), 403},
		"other_port":               {at(ecs+":8080", task), 403},
		"absolute_form":            {"GET http://rebound.example" + task + " HTTP/1.1\r\nHost: " + ecs + "\r\n\r\n", 403},
	} {
		t.Run(name, func(t *testing.T) {
			got := parse(t, exchangeTCP(t, address, known, tt.request))
			if code := codeOf(t, got); code != tt.code {
				t.Fatalf("status %d, want %d", code, tt.code)
			}
			checkPage(t, tt.code, got.body)
		})
	}
}

// Only who was told that a proxy is in the way has one.
func TestContainerEndpointSaysWhy(t *testing.T) {
	const proxied = "the request came through a proxy"
	_, address := newTranscriptNode(t, func(c *Config) { c.ContainerCredentials = true })
	const task = "/v2/credentials/x"
	got := parse(t, exchangeTCP(t, address, known, at("169.254.170.2", task, "X-Forwarded-For: 10.0.0.1")))
	if !strings.Contains(got.body, proxied) {
		t.Errorf("through a proxy: %q", got.body)
	}
	for _, host := range []string{"169.254.170.3", "rebound.example", "169.254.170.2:8080", metadataHost} {
		if got := parse(t, exchangeTCP(t, address, known, at(host, task))); strings.Contains(got.body, proxied) {
			t.Errorf("with Host %s: %q", host, got.body)
		}
	}
}

// The client that SDKs have for the endpoint, with what is built into it.
func TestContainerEndpointServesTheRealClient(t *testing.T) {
	n := newNode(t, func(c *Config) { c.ContainerCredentials = true })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.serve("127.0.0.1", "web", time.Now())
	n.start(t, l)
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
		},
	}}
	provider := func() aws.CredentialsProvider {
		return endpointcreds.New("http://169.254.170.2/v2/credentials/task", func(o *endpointcreds.Options) {
			o.HTTPClient, o.AuthorizationToken = client, "anything"
		})
	}
	got, err := provider().Retrieve(t.Context())
	if err != nil || got.AccessKeyID != "ASIAIOSFODNN7EXAMPLE" || got.SecretAccessKey != testSecret ||
		got.SessionToken != testSessionToken || !got.CanExpire || time.Until(got.Expires) < 59*time.Minute {
		t.Errorf("credentials of %s, expiring %s: %v", got.AccessKeyID, got.Expires, err)
	}
	n.roles.put(testPod("web"), decision{denial: &role.Denial{Reason: role.NoRole}})
	if _, err := provider().Retrieve(t.Context()); err == nil || !strings.Contains(err.Error(), "NotFound: this pod has no role") {
		t.Errorf("without a role: %v", err)
	}
}

func TestContainerBody(t *testing.T) {
	session := testSession(testGrant("web"), testStart, 4000)
	for _, arn := range []string{testGrant("web").RoleARN, `arn:aws:iam::123456789012:role/a"b\c/é`, ""} {
		body, err := containerBody(session.Body, arn)
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]string
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		want := map[string]string{
			"RoleArn": arn, "AccessKeyId": session.Credentials.AccessKeyID, "SecretAccessKey": testSecret,
			"Token": session.Credentials.SessionToken, "Expiration": "2026-03-01T13:00:00Z",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if cap(body) != len(body) && !strings.Contains(arn, `"`) {
			t.Errorf("%d bytes in room for %d", len(body), cap(body))
		}
	}
	if _, err := containerBody([]byte("{}"), "arn"); err == nil {
		t.Error("a body without credentials is taken")
	}
}

func TestContainerPages(t *testing.T) {
	pages := map[string]bool{}
	for _, status := range []int{403, 404, 405, 503} {
		pages[containerPage(status)] = true
	}
	if len(pages) != 4 {
		t.Errorf("pages: %q", slices.Sorted(maps.Keys(pages)))
	}
}
