package proxy

import (
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"

	"github.com/podrole/podrole/pkg/proxy/metadata"
)

// upstream is the node's own metadata service, behind the SDK's client. It has secrets and notes what it is asked for.
type upstream struct {
	has map[string]string // by path below /latest/

	mu      sync.Mutex // guards the following
	latency time.Duration
	broken  bool
	asked   map[string]int // requests, by path
	odd     []string       // requests that are more than a path
}

// nodeSecret is what no pod may ever see.
const nodeSecret = "SECRET-OF-THE-NODE"

const macPath = "meta-data/network/interfaces/macs/0a:1b:2c:3d:4e:5f"

func newUpstream() *upstream {
	return &upstream{asked: map[string]int{}, has: map[string]string{
		"meta-data/placement/region":              "eu-west-1",
		"meta-data/placement/availability-zone":   "eu-west-1b",
		"meta-data/network":                       "interfaces/",
		"meta-data/network/interfaces":            "macs/",
		"meta-data/network/interfaces/macs":       "0a:1b:2c:3d:4e:5f/",
		macPath:                                   "mac\nvpc-id",
		macPath + "/vpc-id":                       "vpc-1",
		macPath + "/mac":                          "0a:1b:2c:3d:4e:5f",
		"meta-data/spot/instance-action":          `{"action": "stop"}`,
		"meta-data":                               nodeSecret,
		"user-data":                               nodeSecret,
		"meta-data/iam/info":                      nodeSecret,
		"meta-data/iam/security-credentials":      nodeSecret,
		"meta-data/iam/security-credentials/node": nodeSecret,
		"meta-data/identity-credentials/ec2/info": nodeSecret,
		"meta-data/identity-credentials/ec2/security-credentials/ec2-instance": nodeSecret,
		"meta-data/managed-ssh-keys/active-keys/ec2-user":                      nodeSecret,
		"meta-data/public-keys/0/openssh-key":                                  nodeSecret,
		"meta-data/tags/instance/password":                                     nodeSecret,
		"dynamic/instance-identity/pkcs7":                                      nodeSecret,
		"dynamic/instance-identity/signature":                                  nodeSecret,
		"dynamic/instance-identity/rsa2048":                                    nodeSecret,
	}}
}

// Do implements imds.HTTPClient.
func (u *upstream) Do(r *http.Request) (*http.Response, error) {
	answer := func(code int, body string) (*http.Response, error) {
		header := http.Header{tokenTTLHeaderKey: {"21600"}}
		return &http.Response{StatusCode: code, Header: header, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	}
	if r.Method == http.MethodPut && r.URL.Path == tokenPath {
		return answer(http.StatusOK, "token")
	}
	path := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/latest/"), "/")
	u.mu.Lock()
	u.asked[path]++
	if r.Method != http.MethodGet || r.URL.RawQuery != "" || r.URL.RawPath != "" || r.Body != nil && r.Body != http.NoBody {
		u.odd = append(u.odd, r.Method+" "+r.URL.String())
	}
	latency, broken := u.latency, u.broken
	u.mu.Unlock()
	if latency > 0 {
		select {
		case <-time.After(latency):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	if body, ok := u.has[path]; ok && !broken {
		return answer(http.StatusOK, body)
	}
	if broken {
		return answer(http.StatusInternalServerError, "")
	}
	return answer(http.StatusNotFound, "")
}

func (u *upstream) set(edit func(*upstream)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	edit(u)
}

// paths returns what was asked for, and what else there was about a request.
func (u *upstream) paths() (asked map[string]int, odd []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	asked = make(map[string]int, len(u.asked))
	maps.Copy(asked, u.asked)
	return asked, append([]string(nil), u.odd...)
}

// store returns a Store in front of u.
func (u *upstream) store(allow ...metadata.Pattern) *metadata.Store {
	return metadata.NewStore(metadata.Config{
		Client: imds.New(imds.Options{HTTPClient: u, Retryer: aws.NopRetryer{}, ClientEnableState: imds.ClientEnabled}),
		Allow:  allow,
		Static: testStatic,
	})
}

func mustPatterns(tb testing.TB, list string) []metadata.Pattern {
	tb.Helper()
	p, err := metadata.ParsePatterns(list)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}
