package awstest

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"
)

// NodeConfig configures the instance metadata service of one node. Only RoleARN and Region are required; the rest has
// plausible defaults.
type NodeConfig struct {
	// RoleARN is the node role. It must exist and trust ec2.amazonaws.com (ec2.amazonaws.com.cn in China).
	RoleARN string
	Region  string

	AvailabilityZone   string // Region + "a"
	AvailabilityZoneID string // use1-az1 in the manner of the region
	InstanceID         string // i-0a1b2c3d4e5f60718; also the session name of the node role
	InstanceType       string // m5.large
	ImageID            string
	LocalIPv4          netip.Addr
	MAC                net.HardwareAddr
	Hostname           string
	UserData           string // something that looks like a bootstrap secret

	// TokensRequired refuses IMDSv1, as HttpTokens=required does. See [Metadata.SetTokensRequired].
	TokensRequired bool
	// Allowed says which sources may call. Requests of others are answered all the same, for a leak must succeed to be
	// seen, and are recorded as leaks. nil allows every source. It must be safe for concurrent use.
	Allowed func(netip.Addr) bool
	// CredentialLifetime is the life of the node role's credentials, 6 hours when zero; they are renewed at half of it.
	// [AWS.SetSessionLifetime] does not apply.
	CredentialLifetime time.Duration
	// RecordLimit bounds Requests and Leaks each, newest dropped; 16384 when zero. LeakCount stays exact.
	RecordLimit int
}

// Metadata is the instance metadata service of one node. It is an http.Handler; for connections that send no request to
// count as leaks too, set http.Server.ConnState to its ConnState. All methods are safe for concurrent use.
type Metadata struct {
	aws     *AWS
	cfg     NodeConfig
	key     []byte // of the session tokens' HMAC
	started time.Time

	mu             sync.Mutex // guards the following
	tokensRequired bool
	current        *session
	requests       []MetadataRequest
	requestCount   int
	leaks          []MetadataRequest
	leakCount      int
}

// NewMetadata returns the metadata service of a node whose role is in this AWS.
func (a *AWS) NewMetadata(cfg NodeConfig) (*Metadata, error) {
	if cfg.Region == "" {
		return nil, errors.New("new metadata service: no region")
	}
	r := a.iam.role(cfg.RoleARN)
	if r == nil {
		return nil, fmt.Errorf("new metadata service: no role %q: put it first", cfg.RoleARN)
	}
	ec2 := &principal{kind: servicePrincipal, arn: "ec2." + domainOf(r.arn.partition)}
	if r.trust.evaluate(ec2, "sts:AssumeRole", "", map[string][]string{}) != allowed {
		return nil, fmt.Errorf("new metadata service: role %s does not trust %s: see TrustService", cfg.RoleARN, ec2.arn)
	}
	if partitionOf(cfg.Region) != r.arn.partition {
		return nil, fmt.Errorf("new metadata service: role %s is not of the partition of %s", cfg.RoleARN, cfg.Region)
	}
	fill := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	fill(&cfg.AvailabilityZone, cfg.Region+"a")
	fill(&cfg.AvailabilityZoneID, strings.ReplaceAll(cfg.Region, "-", "")+"-az1")
	fill(&cfg.InstanceID, "i-0a1b2c3d4e5f60718")
	fill(&cfg.InstanceType, "m5.large")
	fill(&cfg.ImageID, "ami-0f1e2d3c4b5a69788")
	if !cfg.LocalIPv4.IsValid() {
		cfg.LocalIPv4 = netip.AddrFrom4([4]byte{10, 0, 1, 10})
	}
	if cfg.MAC == nil {
		cfg.MAC = net.HardwareAddr{0x0a, 0x1b, 0x2c, 0x3d, 0x4e, 0x5f}
	}
	fill(&cfg.Hostname, "ip-"+strings.ReplaceAll(cfg.LocalIPv4.String(), ".", "-")+"."+cfg.Region+".compute.internal")
	fill(&cfg.UserData, "#!/bin/bash\nBOOTSTRAP_TOKEN=node-secret.never-for-pods\n")
	if cfg.CredentialLifetime == 0 {
		cfg.CredentialLifetime = 6 * time.Hour
	}
	if cfg.RecordLimit == 0 {
		cfg.RecordLimit = 16384
	}
	key := make([]byte, 32)
	rand.Read(key) // never fails
	return &Metadata{aws: a, cfg: cfg, key: key, started: a.now(), tokensRequired: cfg.TokensRequired}, nil
}

// SetTokensRequired switches IMDSv1 off or on.
func (m *Metadata) SetTokensRequired(required bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokensRequired = required
}

// ServeHTTP implements http.Handler.
func (m *Metadata) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	record := MetadataRequest{Time: m.aws.now(), Method: r.Method, Path: r.URL.Path}
	record.Source, _ = netip.ParseAddrPort(r.RemoteAddr)
	m.mu.Lock()
	m.requestCount++
	place := -1
	if len(m.requests) < m.cfg.RecordLimit {
		place = len(m.requests)
		m.requests = append(m.requests, record)
	}
	if !m.allows(record.Source) {
		m.leak(record)
	}
	m.mu.Unlock()

	clean := path.Clean("/" + r.URL.Path)
	latency, outcome := m.aws.faults.hit(
		Call{Service: ServiceIMDS, Action: clean, Region: m.cfg.Region, RoleARN: m.cfg.RoleARN})
	if !pause(r.Context(), latency) {
		return
	}
	var answer metadataReply
	switch {
	case outcome != nil && outcome.Hang:
		<-r.Context().Done()
		return
	case outcome != nil && outcome.Reset:
		reset(w)
		return
	case outcome != nil:
		answer = refusal(outcome.Status)
	default:
		answer = m.answer(r, clean)
	}
	if place >= 0 {
		m.mu.Lock()
		m.requests[place].Status = answer.status
		m.mu.Unlock()
	}
	answer.write(w)
}

const (
	ttlHeader   = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	tokenHeader = "X-Aws-Ec2-Metadata-Token"
	tokenPath   = "/latest/api/token"
)

// answer routes a request whose path has been cleaned of //, . and .. elements.
func (m *Metadata) answer(r *http.Request, clean string) metadataReply {
	if r.Method == http.MethodPut {
		if r.URL.Path != tokenPath || r.Header.Get("X-Forwarded-For") != "" {
			return metadataReply{status: http.StatusForbidden}
		}
		seconds, err := strconv.Atoi(r.Header.Get(ttlHeader))
		if err != nil || seconds < 1 || seconds > 21600 {
			return refusal(http.StatusBadRequest)
		}
		return metadataReply{status: http.StatusOK, body: m.token(seconds), ttl: seconds}
	}
	if clean == tokenPath {
		if r.Method == http.MethodOptions {
			return metadataReply{status: http.StatusOK, allow: "OPTIONS, PUT"}
		}
		return refusal(http.StatusMethodNotAllowed)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return refusal(http.StatusMethodNotAllowed)
	}
	ttl := 0
	if token := r.Header.Get(tokenHeader); token != "" {
		if r.Header.Get("X-Forwarded-For") != "" {
			return refusal(http.StatusForbidden)
		}
		if ttl = m.tokenLeft(token); ttl <= 0 {
			return refusal(http.StatusUnauthorized)
		}
	} else {
		m.mu.Lock()
		required := m.tokensRequired
		m.mu.Unlock()
		if required {
			return refusal(http.StatusUnauthorized)
		}
	}
	body, ok := m.lookup(clean)
	if !ok {
		return refusal(http.StatusNotFound)
	}
	return metadataReply{status: http.StatusOK, body: body, ttl: ttl}
}

// session returns the node role's current credentials.
func (m *Metadata) session() (*session, error) {
	r := m.aws.iam.role(m.cfg.RoleARN)
	if r == nil {
		return nil, fmt.Errorf("role %s was deleted", m.cfg.RoleARN)
	}
	now := m.aws.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == nil || m.current.Expires.Sub(now) < m.cfg.CredentialLifetime/2 {
		m.current = m.aws.sessions.mint(now, m.aws.tokenSize, mintRequest{
			role: r, name: m.cfg.InstanceID, action: "InstanceProfile", exact: m.cfg.CredentialLifetime,
		})
	}
	return m.current, nil
}
