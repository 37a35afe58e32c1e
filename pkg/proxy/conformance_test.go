package proxy

import (
	"bufio"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

// The pods of the transcripts, by their loopback addresses.
const (
	known     = "127.0.0.11" // has a role and a session
	roleless  = "127.0.0.12" // was denied a role
	stranger  = "127.0.0.13" // not known yet
	forbidden = "127.0.0.14" // AWS denied its role
	cold      = "127.0.0.15" // has a role, but no session yet
	undecided = "127.0.0.16" // known, but there is no decision yet
	wrong     = "127.0.0.17" // gets another's session from a broken cache
	expired   = "127.0.0.18" // gets an expired session
)

// newTranscriptNode returns a node with the pods above, on real loopback TCP.
func newTranscriptNode(t *testing.T, edit func(*Config)) (*node, string) {
	n := newNode(t, func(c *Config) {
		c.Wait = 30 * time.Millisecond
		c.Now = func() time.Time { return testStart }
		if edit != nil {
			edit(c)
		}
	})
	n.serve(known, "web", testStart)
	for _, p := range []struct{ source, name string }{
		{roleless, "roleless"}, {forbidden, "forbidden"}, {cold, "cold"}, {undecided, "undecided"},
		{wrong, "wrong"}, {expired, "expired"},
	} {
		n.identity.put(netip.MustParseAddr(p.source), testPod(p.name))
		if p.name != "undecided" && p.name != "roleless" {
			n.roles.put(testPod(p.name), decision{grant: testGrant(p.name)})
		}
	}
	n.roles.put(testPod("roleless"), decision{denial: &role.Denial{Reason: role.NoRole, Message: "no annotation"}})
	n.sessions.put(testGrant("forbidden"), minted{err: &sts.Error{Kind: sts.Denied, Code: "AccessDenied"}})
	n.sessions.put(testGrant("wrong"), minted{session: testSession(testGrant("web"), testStart, 0)})
	n.sessions.put(testGrant("expired"),
		minted{session: testSession(testGrant("expired"), testStart.Add(-time.Hour), 0)})

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.start(t, l)
	return n, l.Addr().String()
}

// exchangeTCP sends raw bytes from a source address and returns everything that comes back.
func exchangeTCP(t *testing.T, address, source, raw string) string {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	c, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	response, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(response)
}

// response is a response taken apart by hand: net/http's client would forgive too much.
type response struct {
	status string
	header textproto.MIMEHeader
	body   string
}

func parse(t *testing.T, raw string) response {
	t.Helper()
	head, body, found := strings.Cut(raw, "\r\n\r\n")
	if !found {
		t.Fatalf("response has no end of head: %q", raw)
	}
	status, fields, _ := strings.Cut(head, "\r\n")
	header, err := textproto.NewReader(bufio.NewReader(strings.NewReader(fields + "\r\n\r\n"))).ReadMIMEHeader()
	if err != nil {
		t.Fatalf("response head %q: %v", head, err)
	}
	return response{status, header, body}
}

// get returns a request as most SDKs write it.
func get(path string, fields ...string) string {
	return request("GET", path, fields...)
}

func request(method, path string, fields ...string) string {
	var b strings.Builder
	b.WriteString(method + " " + path + " HTTP/1.1\r\nHost: 169.254.169.254\r\n")
	for _, f := range fields {
		b.WriteString(f + "\r\n")
	}
	b.WriteString("\r\n")
	return b.String()
}

// put returns a request for a token.
func put(ttl string, fields ...string) string {
	return request("PUT", "/latest/api/token", append(fields, "X-aws-ec2-metadata-token-ttl-seconds: "+ttl)...)
}

const (
	sc         = "/latest/meta-data/iam/security-credentials"
	regionPath = "/latest/meta-data/placement/region"
)

const credentialsBody = `{
  "Code" : "Success",
  "LastUpdated" : "2026-03-01T12:00:00Z",
  "Type" : "AWS-HMAC",
  "AccessKeyId" : "ASIAIOSFODNN7EXAMPLE",
  "SecretAccessKey" : "` + testSecret + `",
  "Token" : "` + testSessionToken + `",
  "Expiration" : "2026-03-01T13:00:00Z"
}`

var extendedBody = strings.TrimSuffix(credentialsBody, "\n}") + ",\n  \"AccountId\" : \"123456789012\"\n}"

const infoBody = `{
  "Code" : "Success",
  "LastUpdated" : "2026-03-01T12:00:00Z",
  "InstanceProfileArn" : "arn:aws:iam::123456789012:instance-profile/team/web",
  "InstanceProfileId" : "AIPASIP6X2BTSHWU42Y5B"
}`

const documentBody = `{
  "availabilityZone" : "eu-west-1b",
  "region" : "eu-west-1",
  "version" : "2017-09-30"
}`

func TestTranscripts(t *testing.T) {
	const (
		ok           = "HTTP/1.1 200 OK"
		badRequest   = "HTTP/1.1 400 Bad Request"
		unauthorized = "HTTP/1.1 401 Unauthorized"
		denied       = "HTTP/1.1 403 Forbidden"
		notFound     = "HTTP/1.1 404 Not Found"
		notAllowed   = "HTTP/1.1 405 Method Not Allowed"
		unavailable  = "HTTP/1.1 503 Service Unavailable"
	)
	tests := []struct {
		name    string
		source  string // known, unless said otherwise
		request string
		status  string
		body    string            // error pages are checked by their status
		header  map[string]string // beyond those of every response
	}{
		// Rules 1 and 21: how the request comes.
		{name: "host/absent", request: "GET " + sc + "/ HTTP/1.1\r\nAccept: */*\r\n\r\n", status: ok, body: "web"},
		{name: "host/absent_bare", request: "GET " + sc + "/ HTTP/1.1\r\n\r\n", status: ok, body: "web"},
		{name: "host/absent_lf", request: "GET " + sc + "/ HTTP/1.1\nAccept: */*\n\n", status: ok, body: "web"},
		{name: "host/empty", request: "GET " + sc + "/ HTTP/1.1\r\nHost:\r\n\r\n", status: ok, body: "web"},
		{name: "host/port", request: "GET " + sc + "/ HTTP/1.1\r\nHost: 169.254.169.254:80\r\n\r\n",
			status: ok, body: "web"},
		{name: "host/ipv6", request: "GET " + sc + "/ HTTP/1.1\r\nHost: [fd00:ec2::254]\r\n\r\n",
			status: ok, body: "web"},
		{name: "host/port_empty", request: "GET " + sc + "/ HTTP/1.1\r\nHost: 169.254.169.254:\r\n\r\n",
			status: ok, body: "web"},
		{name: "host/ipv6_upper_case", request: "GET " + sc + "/ HTTP/1.1\r\nHost: [FD00:EC2::254]\r\n\r\n",
			status: ok, body: "web"},
		{name: "host/container_endpoint_off", request: "GET " + sc + "/ HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n",
			status: denied},
		{name: "host/lower_case", request: "GET " + sc + "/ HTTP/1.1\r\nhost: 169.254.169.254\r\n\r\n",
			status: ok, body: "web"},
		{name: "host/absent_on_put",
			request: "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n",
			status:  ok, header: map[string]string{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": "60"}},
		{name: "host/rebinding", request: "GET " + sc + "/ HTTP/1.1\r\nHost: rebound.example\r\n\r\n", status: denied},
		{name: "host/rebinding_absolute",
			request: "GET http://rebound.example" + sc + "/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
			status:  denied},
		{name: "host/other_port", request: "GET " + sc + "/ HTTP/1.1\r\nHost: 169.254.169.254:8080\r\n\r\n",
			status: denied},
		{name: "host/absolute_form", request: "GET http://169.254.169.254" + sc + "/ HTTP/1.1\r\nHost: x\r\n\r\n",
			status: ok, body: "web"},
		{name: "http10", request: "GET " + sc + "/ HTTP/1.0\r\n\r\n", status: "HTTP/1.0 200 OK", body: "web"},
		{name: "http10/keep_alive", request: "GET " + sc + "/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
			status: "HTTP/1.0 200 OK", body: "web"},
		{name: "keep_alive", request: get(sc+"/", "Connection: keep-alive"), status: ok, body: "web"},
		{name: "pipelined", request: get(sc+"/") + get(regionPath), status: ok, body: "web"},
		{name: "gzip_not_needed", request: get(sc+"/", "Accept-Encoding: gzip"), status: ok, body: "web"},

		// Rules 2, 3, 4, 5: the role's listing.
		{name: "role/slash", request: get(sc + "/"), status: ok, body: "web"},
		{name: "role/no_slash", request: get(sc), status: ok, body: "web"},
		{name: "role/double_slash", request: get(sc + "//"), status: ok, body: "web"},
		{name: "role/leading_double_slash", request: get("/" + sc + "/"), status: ok, body: "web"},
		{name: "role/head", request: request("HEAD", sc+"/"),
			status: ok, header: map[string]string{"Content-Length": "3"}},
		{name: "role/query", request: get(sc + "/?x=/../user-data"), status: ok, body: "web"},
		{name: "role/extended", request: get(sc + "-extended/"), status: ok, body: "web"},
		{name: "role/extended_no_slash", request: get(sc + "-extended"), status: ok, body: "web"},
		{name: "role/roleless", source: roleless, request: get(sc + "/"), status: notFound},
		{name: "role/forbidden_is_listed", source: forbidden, request: get(sc + "/"), status: ok, body: "forbidden"},
		{name: "role/stranger", source: stranger, request: get(sc + "/"), status: unavailable},
		{name: "role/undecided", source: undecided, request: get(sc + "/"), status: unavailable},
		{name: "role/cold_is_listed", source: cold, request: get(sc + "/"), status: ok, body: "cold"},

		// Rules 8 and 9: the credentials.
		{name: "credentials", request: get(sc + "/web"), status: ok, body: credentialsBody,
			header: map[string]string{"Last-Modified": "Sun, 01 Mar 2026 12:00:00 GMT"}},
		{name: "credentials/slash", request: get(sc + "/web/"), status: ok, body: credentialsBody},
		{name: "credentials/double_slash", request: get(sc + "//web"), status: ok, body: credentialsBody},
		{name: "credentials/arn", request: get(sc + "/arn:aws:iam::123456789012:role/team/web"),
			status: ok, body: credentialsBody},
		{name: "credentials/arn_escaped", request: get(sc + "/arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fteam%2Fweb"),
			status: ok, body: credentialsBody},
		{name: "credentials/head", request: request("HEAD", sc+"/web"), status: ok,
			header: map[string]string{"Content-Length": strconv.Itoa(len(credentialsBody))}},
		{name: "credentials/extended", request: get(sc + "-extended/web"), status: ok, body: extendedBody},
		{name: "credentials/wrong_role", request: get(sc + "/db"), status: notFound},
		{name: "credentials/wrong_case", request: get(sc + "/Web"), status: notFound},
		{name: "credentials/arn_of_other_account", request: get(sc + "/arn:aws:iam::999999999999:role/team/web"),
			status: notFound},
		{name: "credentials/below_role", request: get(sc + "/web/more"), status: notFound},
		{name: "credentials/xhtml_as_role", request: get(sc + "/%3C?xml%20version=%221.0%22"), status: notFound},
		{name: "credentials/roleless", source: roleless, request: get(sc + "/web"), status: notFound},
		{name: "credentials/other_pods_role", source: cold, request: get(sc + "/web"), status: notFound},
		{name: "credentials/forbidden", source: forbidden, request: get(sc + "/forbidden"), status: notFound},
		{name: "credentials/cold", source: cold, request: get(sc + "/cold"), status: unavailable},
		{name: "credentials/stranger", source: stranger, request: get(sc + "/web"), status: unavailable},
		{name: "credentials/another_grants_session", source: wrong, request: get(sc + "/wrong"), status: unavailable},
		{name: "credentials/expired_session", source: expired, request: get(sc + "/expired"), status: unavailable},
		{name: "info", request: get("/latest/meta-data/iam/info"), status: ok, body: infoBody},
		{name: "info/slash", request: get("/latest/meta-data/iam/info/"), status: ok, body: infoBody},
		{name: "info/roleless", source: roleless, request: get("/latest/meta-data/iam/info"), status: notFound},
		{name: "info/stranger", source: stranger, request: get("/latest/meta-data/iam/info"), status: unavailable},

		// Rules 6 and 7: what a path can be spelt like, and that every version leads to the same policy.
		{name: "path/dots_out", request: get("/latest/meta-data/../user-data"), status: notFound},
		{name: "path/dots_in", request: get("/latest/user-data/../meta-data/placement/region"),
			status: ok, body: "eu-west-1"},
		{name: "path/escaped_dots", request: get("/latest/meta-data/%2e%2e/user-data"), status: notFound},
		{name: "path/escaped_dots_in", request: get("/latest/x/%2e%2e/meta-data/placement/region"),
			status: ok, body: "eu-west-1"},
		{name: "path/escaped_slashes", request: get("/latest%2F%2Fmeta-data%2Fplacement%2Fregion"),
			status: ok, body: "eu-west-1"},
		{name: "path/escaped_twice", request: get("/latest/meta-data/%252e%252e/meta-data/placement/region"),
			status: notFound},
		{name: "path/above_root", request: get("/../../latest/meta-data/placement/region"),
			status: ok, body: "eu-west-1"},
		{name: "path/backslash", request: get(`/latest/meta-data\..\user-data`), status: notFound},
		{name: "path/semicolon", request: get("/latest/meta-data/placement/region;x=1"), status: notFound},
		{name: "path/nul", request: get("/latest/meta-data/placement/region%00"), status: notFound},
		{name: "path/upper_case", request: get("/latest/META-DATA/placement/region"), status: notFound},
		{name: "path/date", request: get("/2009-04-04/meta-data/iam/security-credentials/web"),
			status: ok, body: credentialsBody},
		{name: "path/unknown_date", request: get("/2031-12-24/meta-data/iam/security-credentials/"),
			status: ok, body: "web"},
		{name: "path/1.0", request: get("/1.0/meta-data/iam/security-credentials/"), status: ok, body: "web"},
		{name: "path/date_user_data", request: get("/2009-04-04/user-data"), status: notFound},
		{name: "path/unknown_version", request: get("/v1/meta-data/iam/security-credentials/"), status: notFound},
		{name: "path/no_version", request: get("/meta-data/iam/security-credentials/"), status: notFound},

		// Rule 23 and the rest of the listings.
		{name: "list/versions", request: get("/"), status: ok, body: versions},
		{name: "list/latest", request: get("/latest"), status: ok, body: "dynamic\nmeta-data"},
		{name: "list/latest_slash", request: get("/latest/"), status: ok, body: "dynamic\nmeta-data"},
		{name: "list/meta_data", request: get("/latest/meta-data/"), status: ok, body: "iam/\nplacement/\nservices/"},
		{name: "list/iam", request: get("/latest/meta-data/iam/"), status: ok, body: "info\nsecurity-credentials/"},
		{name: "list/placement", request: get("/latest/meta-data/placement"),
			status: ok, body: "availability-zone\nregion"},
		{name: "list/services", request: get("/latest/meta-data/services/"), status: ok, body: "domain\npartition"},
		{name: "list/dynamic", request: get("/latest/dynamic/"), status: ok, body: "instance-identity/"},
		{name: "list/instance_identity", request: get("/latest/dynamic/instance-identity///"),
			status: ok, body: "document"},

		// Metadata: region for everybody, at once.
		{name: "region", request: get(regionPath), status: ok, body: "eu-west-1"},
		{name: "zone/slash", request: get("/latest/meta-data/placement/availability-zone/"),
			status: ok, body: "eu-west-1b"},
		{name: "domain", request: get("/latest/meta-data/services/domain"), status: ok, body: "amazonaws.com"},
		{name: "partition", request: get("/latest/meta-data/services/partition"), status: ok, body: "aws"},
		{name: "document", request: get("/latest/dynamic/instance-identity/document"), status: ok, body: documentBody},
		{name: "region/roleless", source: roleless, request: get(regionPath),
			status: ok, body: "eu-west-1"},
		{name: "region/stranger", source: stranger, request: get(regionPath),
			status: ok, body: "eu-west-1"},

		// What no pod may read.
		{name: "refused/user_data", request: get("/latest/user-data"), status: notFound},
		{name: "refused/identity_credentials",
			request: get("/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance"),
			status:  notFound},
		{name: "refused/identity_credentials_info", request: get("/latest/meta-data/identity-credentials/ec2/info"),
			status: notFound},
		{name: "refused/pkcs7", request: get("/latest/dynamic/instance-identity/pkcs7"), status: notFound},
		{name: "refused/signature", request: get("/latest/dynamic/instance-identity/signature"), status: notFound},
		{name: "refused/rsa2048", request: get("/latest/dynamic/instance-identity/rsa2048"), status: notFound},
		{name: "refused/public_keys", request: get("/latest/meta-data/public-keys/0/openssh-key"), status: notFound},
		{name: "refused/macs", request: get("/latest/meta-data/network/interfaces/macs/"), status: notFound},
		{name: "refused/tags", request: get("/latest/meta-data/tags/instance/"), status: notFound},
		{name: "refused/managed_ssh_keys", request: get("/latest/meta-data/managed-ssh-keys/active-keys/ec2-user"),
			status: notFound},
		{name: "refused/spot", request: get("/latest/meta-data/spot/instance-action"), status: notFound},
		{name: "refused/unknown", request: get("/latest/meta-data/whatever-comes-next"), status: notFound},

		// Methods.
		{name: "method/post", request: request("POST", sc+"/web", "Content-Length: 0"), status: notAllowed,
			header: map[string]string{"Allow": "GET, HEAD"}},
		{name: "method/post_with_body", request: request("POST", sc+"/web", "Content-Length: 3") + "a=b",
			status: notAllowed,
			header: map[string]string{"Allow": "GET, HEAD"}},
		{name: "method/delete", request: request("DELETE", sc+"/web"),
			status: notAllowed, header: map[string]string{"Allow": "GET, HEAD"}},
		{name: "method/unknown", request: request("BREW", sc+"/web"),
			status: notAllowed, header: map[string]string{"Allow": "GET, HEAD"}},
		{name: "method/connect", request: "CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254:80\r\n\r\n",
			status: notAllowed,
			header: map[string]string{"Allow": "GET, HEAD"}},
		{name: "method/options", request: request("OPTIONS", "/latest/api/token"),
			status: ok, header: map[string]string{"Allow": "OPTIONS, PUT"}},
		{name: "method/options_elsewhere", request: request("OPTIONS", sc+"/"), status: notAllowed,
			header: map[string]string{"Allow": "GET, HEAD"}},
		{name: "method/options_star", request: "OPTIONS * HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
			status: notAllowed,
			header: map[string]string{"Allow": "GET, HEAD"}},
		{name: "method/get_token", request: get("/latest/api/token"),
			status: notAllowed, header: map[string]string{"Allow": "OPTIONS, PUT"}},
		{name: "method/post_token", request: request("POST", "/latest/api/token", "Content-Length: 0"),
			status: notAllowed,
			header: map[string]string{"Allow": "OPTIONS, PUT"}},
		{name: "method/put_elsewhere", request: request("PUT", sc+"/"),
			status: denied, header: map[string]string{"Content-Type": "text/plain"}},
		{name: "method/put_token_slash",
			request: request("PUT", "/latest/api/token/", "X-aws-ec2-metadata-token-ttl-seconds: 60"),
			status:  denied, header: map[string]string{"Content-Type": "text/plain"}},
		{name: "method/put_token_date",
			request: request("PUT", "/2021-07-15/api/token", "X-aws-ec2-metadata-token-ttl-seconds: 60"),
			status:  denied, header: map[string]string{"Content-Type": "text/plain"}},

		// Rules 10, 11, 13, 21, 22: tokens.
		{name: "token/max", request: put("21600"),
			status: ok, header: map[string]string{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": "21600"}},
		{name: "token/min", request: put("1"),
			status: ok, header: map[string]string{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": "1"}},
		{name: "token/double_slash",
			request: request("PUT", "//latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds: 60"),
			status:  ok, header: map[string]string{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": "60"}},
		{name: "token/content_length_0",
			request: put("60", "Content-Length: 0"),
			status:  ok, header: map[string]string{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": "60"}},
		{name: "token/expect_continue",
			request: put("60", "Expect: 100-continue"),
			status:  ok, header: map[string]string{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": "60"}},
		{name: "token/roleless", source: roleless, request: put("60"), status: ok,
			header: map[string]string{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": "60"}},
		{name: "token/stranger", source: stranger, request: put("60"), status: ok,
			header: map[string]string{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": "60"}},
		{name: "token/no_ttl", request: request("PUT", "/latest/api/token"), status: badRequest},
		{name: "token/zero", request: put("0"), status: badRequest},
		{name: "token/too_long", request: put("21601"), status: badRequest},
		{name: "token/huge", request: put("99999999999999999999"), status: badRequest},
		{name: "token/negative", request: put("-1"), status: badRequest},
		{name: "token/fraction", request: put("1.5"), status: badRequest},
		{name: "token/words", request: put("six hours"), status: badRequest},
		{name: "token/forwarded",
			request: put("60", "X-Forwarded-For: 10.0.0.1"), status: denied},
		{name: "forwarded", request: get(sc+"/", "X-Forwarded-For: 10.0.0.1"), status: denied},
		{name: "forwarded/empty", request: get(sc+"/", "X-Forwarded-For:"), status: denied},
		{name: "bad_token/garbage", request: get(sc+"/", "X-aws-ec2-metadata-token: garbage"), status: unauthorized},
		{name: "bad_token/empty", request: get(sc+"/", "X-aws-ec2-metadata-token:"), status: unauthorized},
		{name: "bad_token/stranger_does_not_park", source: stranger,
			request: get(sc+"/", "X-aws-ec2-metadata-token: garbage"),
			status:  unauthorized},
		{name: "bad_token/region",
			request: get(regionPath, "X-aws-ec2-metadata-token: garbage"),
			status:  unauthorized},
	}

	_, address := newTranscriptNode(t, nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			source := tt.source
			if source == "" {
				source = known
			}
			got := parse(t, exchangeTCP(t, address, source, tt.request))
			if got.status != tt.status {
				t.Fatalf("status line %q, want %q", got.status, tt.status)
			}
			code, _ := strconv.Atoi(strings.Fields(tt.status)[1])
			want := map[string]string{
				"Accept-Ranges":  "none",
				"Connection":     "close",
				"Content-Length": strconv.Itoa(len(got.body)),
				"Content-Type":   "text/plain",
				"Server":         "EC2ws",
			}
			if code >= 400 {
				want["Content-Type"] = "text/html"
			}
			maps.Copy(want, tt.header)
			isPut := strings.HasPrefix(tt.request, "PUT ")
			switch {
			case code >= 400 && want["Content-Type"] == "text/html":
				checkPage(t, code, got.body)
			case code == http.StatusOK && isPut:
				if len(got.body) != 56 || !strings.HasSuffix(got.body, "==") {
					t.Errorf("token %q does not look like one", got.body)
				}
			default:
				if diff := cmp.Diff(tt.body, got.body); diff != "" {
					t.Errorf("body (-want +got):\n%s", diff)
				}
			}
			checkHeader(t, got.header, want)
		})
	}
}

// checkHeader fails unless the header is exactly want, with a Date and a Last-Modified that are times.
func checkHeader(t *testing.T, header textproto.MIMEHeader, want map[string]string) {
	t.Helper()
	got := make(map[string]string)
	for k, v := range header {
		got[k] = strings.Join(v, " AND ")
	}
	for _, k := range []string{"Date", "Last-Modified"} {
		at, err := http.ParseTime(got[k])
		if err != nil {
			t.Errorf("%s %q: %v", k, got[k], err)
		}
		if k == "Date" && time.Since(at).Abs() > time.Minute {
			t.Errorf("date is %v, some clients take the time from it", at)
		}
		if want[k] == "" {
			delete(got, k)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
}

// The pages of real instances, to the byte. That they are not indented alike is theirs.
const (
	recorded401 = "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n" +
		"<!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Transitional//EN\"\n" +
		"\t\"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd\">\n" +
		"<html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n" +
		" <head>\n" +
		"  <title>401 - Unauthorized</title>\n" +
		" </head>\n" +
		" <body>\n" +
		"  <h1>401 - Unauthorized</h1>\n" +
		" </body>\n" +
		"</html>\n"
	recorded404 = "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n" +
		"<!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Transitional//EN\"\n" +
		"\t\t \"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd\">\n" +
		"<html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n" +
		" <head>\n" +
		"  <title>404 - Not Found</title>\n" +
		" </head>\n" +
		" <body>\n" +
		"  <h1>404 - Not Found</h1>\n" +
		" </body>\n" +
		"</html>\n"
)

// checkPage fails unless body is the error page of code: as real instances were seen to send it, or else, as far as there
// is no record, that of a 401 with the other title.
func checkPage(t *testing.T, code int, body string) {
	t.Helper()
	title := map[int]string{
		400: "400 - Missing or Invalid Parameters",
		401: "401 - Unauthorized",
		403: "403 - Forbidden",
		404: "404 - Not Found",
		405: "405 - Method Not Allowed",
		503: "503 - Service Unavailable",
	}[code]
	want := strings.ReplaceAll(recorded401, "401 - Unauthorized", title)
	if code == http.StatusNotFound {
		want = recorded404
	}
	if diff := cmp.Diff(want, body); diff != "" {
		t.Errorf("page of %d (-want +got):\n%s", code, diff)
	}
}

// What is on record of the pages is their length.
func TestRecordedPages(t *testing.T) {
	if len(recorded401) != 343 || len(recorded404) != 339 {
		t.Errorf("the pages have %d and %d bytes, want 343 and 339", len(recorded401), len(recorded404))
	}
}

// mustToken gets a token as source.
func mustToken(t *testing.T, address, source string) string {
	t.Helper()
	r := parse(t, exchangeTCP(t, address, source,
		put("300")))
	if !strings.Contains(r.status, "200") {
		t.Fatalf("PUT: %s", r.status)
	}
	return r.body
}

func withToken(token string) string { return "X-aws-ec2-metadata-token: " + token }

func status(t *testing.T, raw string) int {
	t.Helper()
	return codeOf(t, parse(t, raw))
}

func codeOf(t *testing.T, r response) int {
	t.Helper()
	code, err := strconv.Atoi(strings.Fields(r.status)[1])
	if err != nil {
		t.Fatal(err)
	}
	return code
}

func TestTokens(t *testing.T) {
	var elapsed atomic.Int64
	n, address := newTranscriptNode(t, func(c *Config) {
		c.Now = func() time.Time { return testStart.Add(time.Duration(elapsed.Load())) }
	})
	token := mustToken(t, address, known)
	elapsed.Store(int64(100 * time.Second))
	r := parse(t, exchangeTCP(t, address, known, get(sc+"/web", withToken(token))))
	if !strings.Contains(r.status, "200") || r.body != credentialsBody {
		t.Fatalf("with a token: %s %q", r.status, r.body)
	}
	if got := r.header.Get("X-Aws-Ec2-Metadata-Token-Ttl-Seconds"); got != "200" {
		t.Errorf("remaining TTL %q after 100 s of 300, want 200", got)
	}
	if got := status(t, exchangeTCP(t, address, cold, get(sc+"/", withToken(token)))); got != 401 {
		t.Errorf("from another address: %d, want 401", got)
	}
	if got := status(t, exchangeTCP(t, address, known, get("/latest/user-data", withToken(token)))); got != 404 {
		t.Errorf("unknown path: %d, want 404", got)
	}

	// The address is taken over by another pod: the old one's token is worth nothing any more, and the reverse.
	successor := testPod("successor")
	n.identity.put(netip.MustParseAddr(known), successor)
	n.roles.put(successor, decision{grant: testGrant("web")})
	for _, path := range []string{sc + "/", sc + "/web", "/latest/meta-data/iam/info", regionPath} {
		if got := status(t, exchangeTCP(t, address, known, get(path, withToken(token)))); got != 401 {
			t.Errorf("GET %s with the token of the pod before: %d, want 401", path, got)
		}
	}
	n.identity.put(netip.MustParseAddr(known), testPod("web"))

	// A token that was minted before the pod was known is good once it is.
	early := mustToken(t, address, stranger)
	if got := status(t, exchangeTCP(t, address, stranger, get(regionPath, withToken(early)))); got != 200 {
		t.Errorf("region with a token while unknown: %d, want 200", got)
	}
	n.identity.put(netip.MustParseAddr(stranger), testPod("web"))
	if got := status(t, exchangeTCP(t, address, stranger, get(sc+"/web", withToken(early)))); got != 200 {
		t.Errorf("with the token from before the pod was known: %d, want 200", got)
	}

	elapsed.Store(int64(299 * time.Second))
	if got := status(t, exchangeTCP(t, address, known, get(sc+"/", withToken(token)))); got != 200 {
		t.Errorf("one second before its end: %d, want 200", got)
	}
	elapsed.Store(int64(300 * time.Second))
	if got := status(t, exchangeTCP(t, address, known, get(sc+"/", withToken(token)))); got != 401 {
		t.Errorf("at its end: %d, want 401", got)
	}
}

// Rules 12 and 14: without IMDSv1, exactly the requests without a token are refused.
func TestVersion2Only(t *testing.T) {
	_, address := newTranscriptNode(t, func(c *Config) { c.IMDSv1 = false })
	for _, path := range []string{"/", "/latest/", sc, sc + "/web", regionPath, "/latest/user-data"} {
		if got := status(t, exchangeTCP(t, address, known, get(path))); got != 401 {
			t.Errorf("GET %s without a token: %d, want 401", path, got)
		}
	}
	token := mustToken(t, address, known)
	if got := status(t, exchangeTCP(t, address, known, get(sc+"/web", withToken(token)))); got != 200 {
		t.Errorf("with a token: %d, want 200", got)
	}
}

// Rule 15: a token outlives the server, also when the key that signed it is the second in the ring by then.
func TestTokenSurvivesRestart(t *testing.T) {
	newer := []byte("fedcba9876543210fedcba9876543210")
	_, before := newTranscriptNode(t, nil)
	token := mustToken(t, before, known)
	for name, tt := range map[string]struct {
		keys [][]byte
		want int
	}{
		"same":    {[][]byte{testKey}, 200},
		"rotated": {[][]byte{newer, testKey}, 200},
		"dropped": {[][]byte{newer}, 401},
	} {
		t.Run(name, func(t *testing.T) {
			_, after := newTranscriptNode(t, func(c *Config) { c.Keys = tt.keys })
			if got := status(t, exchangeTCP(t, after, known, get(sc+"/web", withToken(token)))); got != tt.want {
				t.Errorf("status %d, want %d", got, tt.want)
			}
		})
	}
}

// The metadata service answers at the addresses that it has been given, and at no others.
func TestOtherAddresses(t *testing.T) {
	_, address := newTranscriptNode(t, func(c *Config) {
		c.Addresses = []netip.Addr{netip.MustParseAddr("10.255.0.1"), netip.MustParseAddr("fd12::1")}
	})
	for host, want := range map[string]int{
		"10.255.0.1": 200, "10.255.0.1:80": 200, "[fd12::1]": 200, "[FD12:0::1]:80": 200, "": 200,
		metadataHost: 403, "[fd00:ec2::254]": 403, "10.255.0.2": 403, "rebound.example": 403,
	} {
		request := "GET " + sc + "/web HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
		if got := status(t, exchangeTCP(t, address, known, request)); got != want {
			t.Errorf("Host %q: %d, want %d", host, got, want)
		}
	}
	if got := status(t, exchangeTCP(t, address, known, "GET "+sc+"/web HTTP/1.1\r\n\r\n")); got != 200 {
		t.Errorf("without a Host: %d, want 200", got)
	}
}

// What net/http refuses before there is a request is not ours to dress, but it must be closed, and not JSON.
func TestMalformed(t *testing.T) {
	_, address := newTranscriptNode(t, nil)
	for name, raw := range map[string]string{
		"no_http":       "hello\r\n\r\n",
		"two_hosts":     "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\nHost: 169.254.169.254\r\n\r\n",
		"bad_escape":    "GET /%zz HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
		"http2":         "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"large_head":    "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n",
		"many_headers":  "GET / HTTP/1.1\r\n" + strings.Repeat("X: y\r\n", 16<<10) + "\r\n",
		"smuggled_host": "GET / HTTP/1.1\r\nHost : 169.254.169.254\r\n\r\n",
		"empty_line":    "\r\nGET / HTTP/1.1\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(known)}}
			c, err := d.DialContext(t.Context(), "tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			go io.WriteString(c, raw)
			got, _ := io.ReadAll(c) // a reset is fine: we may not have read it all
			refused := strings.HasPrefix(string(got), "HTTP/1.1 4") || strings.HasPrefix(string(got), "HTTP/1.1 505")
			if len(got) > 0 && !refused {
				t.Errorf("response %q", got)
			}
			if strings.Contains(string(got), "{") {
				t.Errorf("response may be taken for JSON: %q", got)
			}
		})
	}
}

// The wordiest SDK sends a head of about 1 KiB. There is room for some times that, and for no more.
func TestLargeHeads(t *testing.T) {
	_, address := newTranscriptNode(t, nil)
	for size, want := range map[int]int{1 << 10: 200, 7 << 10: 200, 13 << 10: 431} {
		if got := status(t, exchangeTCP(t, address, known, get(sc+"/", "X: "+strings.Repeat("x", size)))); got != want {
			t.Errorf("a head of %d bytes: %d, want %d", size, got, want)
		}
	}
}

func TestObserve(t *testing.T) {
	type seen struct {
		Route Route
		Code  int
	}
	observed := make(chan seen, 1)
	_, address := newTranscriptNode(t, func(c *Config) {
		c.Observe = func(r Route, code int, took time.Duration) {
			if took <= 0 {
				t.Errorf("took %v", took)
			}
			observed <- seen{r, code}
		}
	})
	for _, tt := range []struct {
		request string
		want    seen
	}{
		{request("PUT", "/latest/api/token"), seen{RouteToken, 400}},
		{get(sc), seen{RouteRole, 200}},
		{get(sc + "/web"), seen{RouteCredentials, 200}},
		{get(sc + "-extended/nobody"), seen{RouteCredentials, 404}},
		{get("/latest/meta-data/iam/info"), seen{RouteInfo, 200}},
		{get("/"), seen{RouteVersions, 200}},
		{get("/latest/"), seen{RouteMetadata, 200}},
		{get("/latest/user-data"), seen{RouteUnknown, 404}},
		{get("/nothing"), seen{RouteUnknown, 404}},
		{request("POST", sc), seen{RouteRole, 405}},
	} {
		exchangeTCP(t, address, known, tt.request)
		if diff := cmp.Diff(tt.want, <-observed); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.request, diff)
		}
	}
}

// One listener for both IP versions reports IPv4 peers as mapped addresses; identity knows them as IPv4.
func TestMappedSource(t *testing.T) {
	n := newNode(t, nil)
	n.serve("10.1.2.3", "web", time.Now())
	l := newPipes()
	n.start(t, l)
	if got := parse(t, l.ask("::ffff:10.1.2.3", get(sc))); got.body != "web" {
		t.Errorf("mapped IPv4 source: %s %q", got.status, got.body)
	}
}

func TestNewRefuses(t *testing.T) {
	n := newNode(t, nil)
	valid := Config{Identity: n.identity, Roles: n.roles, Sessions: n.sessions, Keys: [][]byte{testKey}}
	if _, err := New(valid); err != nil {
		t.Fatalf("the least configuration: %v", err)
	}
	for name, edit := range map[string]func(*Config){
		"identity": func(c *Config) { c.Identity = nil },
		"roles":    func(c *Config) { c.Roles = nil },
		"sessions": func(c *Config) { c.Sessions = nil },
		"no_keys":  func(c *Config) { c.Keys = nil },
		"weak_key": func(c *Config) { c.Keys = [][]byte{testKey, []byte("short")} },
		"wait":     func(c *Config) { c.Wait = -1 },
		"grace":    func(c *Config) { c.Grace = -1 },
		"rate":     func(c *Config) { c.Rate = -1 },
		"address":  func(c *Config) { c.Addresses = []netip.Addr{{}} },
		"mapped":   func(c *Config) { c.Addresses = []netip.Addr{netip.MustParseAddr("::ffff:169.254.169.254")} },
		"zone":     func(c *Config) { c.Addresses = []netip.Addr{netip.MustParseAddr("fe80::1%eth0")} },
	} {
		t.Run(name, func(t *testing.T) {
			c := valid
			edit(&c)
			if _, err := New(c); err == nil {
				t.Error("accepted")
			} else if strings.Contains(err.Error(), string(testKey)) {
				t.Errorf("the error prints a key: %v", err)
			}
		})
	}
}

// On a node of which nothing is known, listings are there all the same.
func TestWithoutMetadata(t *testing.T) {
	_, address := newTranscriptNode(t, func(c *Config) { c.Metadata = nil })
	if got := status(t, exchangeTCP(t, address, known, get(regionPath))); got != 404 {
		t.Errorf("region: %d, want 404", got)
	}
	r := parse(t, exchangeTCP(t, address, known, get("/latest/dynamic/instance-identity/")))
	if !strings.Contains(r.status, "200") || r.body != "" {
		t.Errorf("instance-identity/: %s %q, want an empty listing", r.status, r.body)
	}
}
