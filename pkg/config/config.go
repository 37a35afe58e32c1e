// Package config turns command-line flags and environment variables into one validated [Config]. A Config that
// [Flags.Load] returned needs no further check by whoever uses it: every value is parsed, in range and consistent with
// the others. What cannot be used is refused before anything starts, all of it at once, one line per [Fault].
//
// A setting is one row of the table in table.go. Help text, reference documentation, environment variables and error
// messages are all made from that row.
package config

import (
	"log/slog"
	"net/netip"
	"net/url"
	"time"

	"github.com/podrole/podrole/pkg/authority"
	"github.com/podrole/podrole/pkg/proxy/metadata"
	"github.com/podrole/podrole/pkg/role"
)

// Config is everything that can be chosen about an agent.
type Config struct {
	Cluster       Cluster
	Roles         Roles
	STS           STS
	Metadata      Metadata
	Redirect      Redirect
	Observability Observability
	State         State
	Shutdown      Shutdown
}

// Cluster says which node this is and where Kubernetes objects come from.
type Cluster struct {
	NodeName    string // of the Node object, as in spec.nodeName of its pods; never empty for podrole run
	Kubeconfig  string // path; empty: the ServiceAccount of the agent's own pod
	KubeObjects string // folder of YAML files instead of an API server; empty: an API server
	CNIDir      string // holds the folder results
	// SharedInterfaces are those that a CNI puts all pods of the node behind.
	SharedInterfaces []string
	StartupTaint     string // key of the taint to remove from the node once its pods are served; empty: none
	ClusterName      string // value of the cluster session tag; not empty when Roles.SessionTags is set
}

// Roles says which annotations name a role and what a session looks like unless an annotation says otherwise.
type Roles struct {
	BaseRoleARN                string        // ends in a slash; empty: bare role names cannot be resolved
	DiscoverBaseRoleARN        bool          // whether BaseRoleARN is the account of the node's instance profile
	DefaultRole                string        // ARN, or a bare name when BaseRoleARN is set; empty: none
	RoleARNAnnotation          string        // on ServiceAccounts
	IRSARoleARNAnnotation      string        // on ServiceAccounts
	PodRoleAnnotations         bool          // whether PodRoleAnnotation counts
	PodRoleAnnotation          string        // on pods
	AllowedRolesFormat         PatternFormat // of the list of roles that a Namespace allows
	RequireNamespacePermission bool          // whether a namespace must permit the role; always false with web identity
	SessionDuration            time.Duration // whole seconds, within what the credential source can do
	SessionTags                bool
	LastValidGrant             time.Duration // how long a pod keeps its role when an edit cannot be read
}

// PatternFormat is how patterns of roles are written.
type PatternFormat string

// The pattern formats.
const (
	FormatGlob   PatternFormat = "glob"
	FormatRegexp PatternFormat = "regexp"
)

// STS says how credentials are minted.
type STS struct {
	CredentialSource role.Source
	// TokenAuthority is never authority.None: without web identity it says nothing.
	TokenAuthority  authority.Kind
	Region          string        // empty: to be discovered on the node
	FailoverRegions []string      // called in this order while Region does not answer
	FIPS            bool          // whether the FIPS 140 endpoints are called
	DualStack       bool          // whether the endpoints that speak IPv6 too are called
	AssumeRoleARN   string        // role between the agent's own credentials and the pods' roles; empty: none
	Endpoint        *url.URL      // nil: the region's own
	Audiences       []string      // at least one, no duplicates; the first is what tokens ask for by default
	TokenLifetime   time.Duration // of ServiceAccount tokens; whole seconds
	Rate            float64       // calls per second of this node, greater than zero
	Timeout         time.Duration // of one attempt
	Linger          time.Duration // how long a session is refreshed after its last pod is gone; zero: one life of it; negative: not at all
}

// Metadata says what the metadata service answers, and on behalf of which address.
type Metadata struct {
	Address          netip.Addr    // IPv4, what pods call
	AddressIPv6      netip.Addr    // IPv6, what pods call
	IMDSv1           bool          // whether requests without a token are answered
	RequestWait      time.Duration // how long a request of a pod that is not known yet may wait
	AvailabilityZone string        // empty: to be discovered on the node
	Upstream         bool          // whether the node's own metadata service is asked for region, zone and node facts
	InstanceFacts    bool          // whether pods may read what identifies the node but opens nothing
	// Allow is what every pod may read of the node's metadata beyond what SDKs need.
	Allow []metadata.Pattern
	// RequestRate is how many requests per second each pod may make in the long run; 0: any number.
	RequestRate float64
	// ContainerCredentials is whether pods are served at the addresses of the container credentials endpoints, too.
	ContainerCredentials bool
}

// Backend chooses the iptables commands.
type Backend string

// The backends.
const (
	BackendAuto   Backend = "auto" // as the host does
	BackendNFT    Backend = "nft"
	BackendLegacy Backend = "legacy"
)

// Mode is whether something is done, or found out.
type Mode string

// The modes.
const (
	ModeAuto Mode = "auto" // where the node has it
	ModeOn   Mode = "on"
	ModeOff  Mode = "off"
)

// Redirect says how pod traffic is brought to the agent.
type Redirect struct {
	AgentAddress     netip.Addr // IPv4 link-local, not one that AWS uses
	AgentAddressIPv6 netip.Addr // IPv6 unique local, not one that AWS uses
	IPTablesBackend  Backend
	GuardExceptDNS   bool
	IPv6             Mode
	Sweep            time.Duration // how often rules and guard are compared with what they should be
}

// Observability says where metrics and logs go.
type Observability struct {
	// MetricsAddress is what net.Listen takes: an IP address or nothing, a colon and a port. It is no netip.AddrPort
	// because "every address, IPv4 and IPv6 as the node has them" has no netip form. Empty: no metrics are served.
	MetricsAddress string
	ProbeSocket    string // path of a Unix socket where health is served; empty: none
	LogLevel       slog.Level
	LogFormat      LogFormat
}

// LogFormat is how log records are written.
type LogFormat string

// The log formats.
const (
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// State says what outlives the agent.
type State struct {
	Dir    string        // for sessions, tokens, keys and decisions; empty: none, every start is cold
	OnDisk bool          // whether Dir may be on a file system that is not memory
	MaxAge time.Duration // of decisions that count while the API server cannot be asked
}

// Shutdown says how the agent stops.
type Shutdown struct {
	Drain time.Duration // how long requests that have begun may take to end
}
