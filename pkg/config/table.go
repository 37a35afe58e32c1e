package config

import (
	"strings"
	"time"

	"github.com/podrole/podrole/pkg/authority"
	"github.com/podrole/podrole/pkg/proxy/metadata"
	"github.com/podrole/podrole/pkg/role"
)

// Limits that are not ours.
const (
	// minTokenLifetime is the shortest a TokenRequest may ask for
	// (https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-request-v1/).
	minTokenLifetime = 10 * time.Minute
	// maxTokenLifetime is the longest AWS accepts a token for: it refuses one issued more than a day ago.
	maxTokenLifetime = 24 * time.Hour
	// maxRequestWait keeps the answer within the second after which most SDKs give up.
	maxRequestWait = 950 * time.Millisecond
)

// topic is a heading of the help text.
type topic string

const (
	topicCluster       topic = "Cluster"
	topicRoles         topic = "Roles"
	topicSTS           topic = "STS"
	topicMetadata      topic = "Metadata"
	topicRedirect      topic = "Redirect"
	topicObservability topic = "Observability"
	topicState         topic = "State"
	topicShutdown      topic = "Shutdown"
)

// topics returns the headings in the order in which they are printed.
func topics() []topic {
	return []topic{
		topicCluster, topicRoles, topicSTS, topicMetadata, topicRedirect, topicObservability, topicState,
		topicShutdown,
	}
}

// setting is one row of the table: all there is to know about one flag and its environment variable.
type setting struct {
	topic  topic
	name   string                   // of the flag, without dashes
	value  string                   // placeholder of the value in the help text, which tells its unit; empty: a bool
	preset string                   // default, as a user would write it
	unset  string                   // what happens by default, where preset is empty
	help   string                   // what the setting does, in one or two lines
	want   string                   // what to give instead of a wrong value; completes "give …"
	also   string                   // another environment variable that is read when the flag and its own are not given
	beside command                  // the commands that have it too, beside run
	parse  func(value string) error // puts value into the Config, or says what is wrong with it
}

// variable is the name of the setting's environment variable.
func (s *setting) variable() string {
	return variablePrefix + strings.ToUpper(strings.ReplaceAll(s.name, "-", "_"))
}

// isBool tells whether the flag may stand without a value.
func (s *setting) isBool() bool { return s.value == "" }

// table returns every setting there is, in the order of the help text. Parsing a row fills in c.
func table(c *Config) []setting {
	keys := role.DefaultKeys()
	return []setting{
		{
			topic: topicCluster, name: "node-name", value: "NAME",
			unset: "none, required; with --kube-objects the host's name",
			help:  "Name of the node, as spec.nodeName of its pods says it.",
			want:  "the node's name, in a DaemonSet from the field spec.nodeName of the agent's pod",
			parse: into(&c.Cluster.NodeName, optional(nodeName)),
		}, {
			topic: topicCluster, name: "kubeconfig", value: "FILE", unset: "the ServiceAccount of the agent's own pod",
			help:  "How to reach the API server.",
			want:  "the path of a kubeconfig file, or leave it out inside a cluster",
			parse: into(&c.Cluster.Kubeconfig, text),
		}, {
			topic: topicCluster, name: "kube-objects", value: "DIR", unset: "an API server",
			help: "Read Pods, ServiceAccounts and Namespaces from the YAML files of this folder, and follow their " +
				"changes, instead of asking an API server. Implies --credential-source assume-role.",
			want:  "the path of a folder, or leave it out to use an API server",
			parse: into(&c.Cluster.KubeObjects, text),
		}, {
			topic: topicCluster, name: "cni-dir", value: "DIR", preset: "/var/lib/cni",
			help: "Where the container runtime keeps the results of the CNI plugins. They name a pod's address before its " +
				"first container starts. Without them pods are known when the API names their address.",
			want:  "the path of a folder",
			parse: into(&c.Cluster.CNIDir, absolute),
		}, {
			topic: topicCluster, name: "shared-interfaces", value: "LIST", preset: "cilium_host,ovn-k8s-mp0,antrea-gw0",
			help: "Interfaces, separated by commas, that a CNI puts all pods of the node behind. Pods there are known by their " +
				"address alone.",
			want:  "names of interfaces separated by commas",
			parse: into(&c.Cluster.SharedInterfaces, interfaces),
		}, {
			topic: topicCluster, name: "startup-taint", value: "KEY", unset: "none",
			help: "Key of a taint that new nodes are registered with, and that is removed from this node once its pods are served, " +
				"such as podrole.io/agent-not-ready. Needs the rights of manifests/options/startup-taint.",
			want:  "the key of a taint, for example podrole.io/agent-not-ready",
			parse: into(&c.Cluster.StartupTaint, optional(taintKey)),
		}, {
			topic: topicCluster, name: "cluster-name", value: "NAME", unset: "none",
			help:  "Name of the cluster, for the session tag. Required with --session-tags.",
			want:  "a name of at most 256 letters, digits, spaces and _.:/=+-@",
			parse: into(&c.Cluster.ClusterName, optional(tagValue)),
		},

		{
			topic: topicRoles, name: "base-role-arn", value: "ARN", unset: "none: only full ARNs are understood",
			help:  "What is put before a role that is given by its bare name.",
			want:  "the beginning of role ARNs, for example arn:aws:iam::111122223333:role/",
			parse: into(&c.Roles.BaseRoleARN, optional(baseRoleARN)),
		}, {
			topic: topicRoles, name: "discover-base-role-arn", preset: "false",
			help: "Whether --base-role-arn is taken from the node's instance profile: its account, without a path, as kube2iam " +
				"can do.",
			want:  "true or false",
			parse: into(&c.Roles.DiscoverBaseRoleARN, boolean),
		}, {
			topic: topicRoles, name: "default-role", value: "ROLE", unset: "none: such pods get no credentials",
			help:  "Role of pods for which no annotation names one: an ARN, or a name behind --base-role-arn.",
			want:  "a role's ARN, for example arn:aws:iam::111122223333:role/app, or its name together with --base-role-arn",
			parse: into(&c.Roles.DefaultRole, text),
		}, {
			topic: topicRoles, name: "role-arn-annotation", value: "KEY", preset: keys.RoleARN,
			help:  "ServiceAccount annotation that names the role. The first to be looked at.",
			want:  "an annotation key, for example " + keys.RoleARN,
			parse: into(&c.Roles.RoleARNAnnotation, annotationKey),
		}, {
			topic: topicRoles, name: "irsa-role-arn-annotation", value: "KEY", preset: keys.IRSARoleARN,
			help:  "ServiceAccount annotation that names the role for IRSA. Looked at where the one above is absent.",
			want:  "an annotation key, for example " + keys.IRSARoleARN,
			parse: into(&c.Roles.IRSARoleARNAnnotation, annotationKey),
		}, {
			topic: topicRoles, name: "pod-role-annotations", preset: "false",
			help:  "Whether the pod's own annotation may name the role, as with kube2iam and kiam. Looked at last.",
			want:  "true or false",
			parse: into(&c.Roles.PodRoleAnnotations, boolean),
		}, {
			topic: topicRoles, name: "pod-role-annotation", value: "KEY", preset: keys.PodRole,
			help:  "Pod annotation that names the role. Has a meaning with --pod-role-annotations only.",
			want:  "an annotation key, for example " + keys.PodRole,
			parse: into(&c.Roles.PodRoleAnnotation, annotationKey),
		}, {
			topic: topicRoles, name: "require-namespace-permission", preset: "true",
			help: "Whether a role may be used only where an annotation of the Namespace permits it. Applies to " +
				"--credential-source assume-role; with web-identity the role's trust policy decides.",
			want:  "true or false",
			parse: into(&c.Roles.RequireNamespacePermission, boolean),
		}, {
			topic: topicRoles, name: "allowed-roles-format", value: "FORMAT", preset: string(FormatGlob),
			help: "What iam.amazonaws.com/allowed-roles of a Namespace lists, as kube2iam's --namespace-restriction-format: glob, or regexp for " +
				"regular expressions, of which each must match all of a role's name or ARN.",
			want:  "glob or regexp",
			parse: into(&c.Roles.AllowedRolesFormat, oneOf(FormatGlob, FormatRegexp)),
		}, {
			topic: topicRoles, name: "session-duration", value: "DURATION", preset: "1h",
			help: "How long credentials live, unless an annotation says otherwise: 15m to 12h, with assume-role at " +
				"most 1h (the limit of AWS on a role assumed by a role).",
			want:  "15m to 12h, with assume-role at most 1h",
			parse: into(&c.Roles.SessionDuration, seconds(role.MinDuration, role.MaxDuration)),
		}, {
			topic: topicRoles, name: "session-tags", preset: "false",
			help: "With assume-role: whether sessions carry the tags cluster, namespace and service account. Every role's trust policy " +
				"must then allow sts:TagSession.",
			want:  "true or false",
			parse: into(&c.Roles.SessionTags, boolean),
		}, {
			topic: topicRoles, name: "last-valid-grant", value: "DURATION", preset: "24h",
			help: "How long a running pod keeps its role after an annotation was changed into something that cannot be " +
				"read, 0 to 7 days. New pods are denied meanwhile.",
			want:  "0s to 168h",
			parse: into(&c.Roles.LastValidGrant, duration(0, 7*24*time.Hour)),
		},

		{
			topic: topicSTS, name: "credential-source", value: "SOURCE", preset: "web-identity",
			help: "web-identity: the token of the pod's ServiceAccount, no AWS credentials on the node. assume-role: " +
				"the node's or the agent's own credentials, as kube2iam and kiam do; the default with --kube-objects.",
			want:  "web-identity or assume-role",
			parse: into(&c.STS.CredentialSource, oneOf(role.WebIdentity, role.AssumeRole)),
		}, {
			topic: topicSTS, name: "token-authority", value: "AUTHORITY", preset: string(authority.Direct),
			help: "By which right ServiceAccount tokens are requested: direct, the agent's own, bounded by manifests/policies/direct-tokens; " +
				"node, as the agent's node, by manifests/policies/node-tokens (Kubernetes 1.36), with which pods are read that way, too. The " +
				"agent tries at its start that it is granted no more than that, and does not become ready otherwise; unverified is any right, untried.",
			want:  "direct, node or unverified",
			parse: into(&c.STS.TokenAuthority, oneOf(authority.Direct, authority.Node, authority.Unverified)),
		}, {
			topic: topicSTS, name: "sts-region", value: "REGION", unset: "AWS_REGION, AWS configuration, node's metadata",
			help:  "Region whose STS is called.",
			want:  "an AWS region, for example eu-central-1",
			also:  "AWS_REGION",
			parse: into(&c.STS.Region, optional(region)),
		}, {
			topic: topicSTS, name: "sts-endpoint", value: "URL", unset: "the region's own endpoint",
			help:  "Where STS is called instead, for a VPC endpoint with its own name or an AWS stand-in.",
			want:  "a URL without credentials or query, for example https://sts.eu-central-1.amazonaws.com",
			parse: into(&c.STS.Endpoint, optional(endpoint)),
		}, {
			topic: topicSTS, name: "sts-failover-regions", value: "LIST", unset: "none",
			help: "Regions whose STS is called, in this order, while the ones before do not answer. Sessions are good in all " +
				"regions of a partition.",
			want:  "regions separated by commas, for example eu-west-1,eu-north-1",
			parse: into(&c.STS.FailoverRegions, optional(regions)),
		}, {
			topic: topicSTS, name: "sts-fips", preset: "false",
			help:  "Whether the FIPS 140 endpoints of STS are called.",
			want:  "true or false",
			parse: into(&c.STS.FIPS, boolean),
		}, {
			topic: topicSTS, name: "sts-dual-stack", preset: "false",
			help:  "Whether the endpoints of STS that speak IPv6 as well are called.",
			want:  "true or false",
			parse: into(&c.STS.DualStack, boolean),
		}, {
			topic: topicSTS, name: "assume-role-arn", value: "ARN", unset: "none",
			help:  "With assume-role: a role that is assumed first, and that the pods' roles trust, as kiam's servers had it.",
			want:  "the ARN of an IAM role",
			parse: into(&c.STS.AssumeRoleARN, optional(oneRoleARN)),
		}, {
			topic: topicSTS, name: "audiences", value: "LIST", preset: "sts.amazonaws.com",
			help: "Audiences that ServiceAccount tokens may be asked for, separated by commas. The first is the default. Any but " +
				"sts.amazonaws.com has to be in the policies of manifests/policies too.",
			want:  "audiences separated by commas, for example sts.amazonaws.com",
			parse: into(&c.STS.Audiences, audiences),
		}, {
			topic: topicSTS, name: "token-lifetime", value: "DURATION", preset: "6h",
			help: "How long ServiceAccount tokens live, 10m to 24h. Sessions outlast an API server that is down for " +
				"half of that at least. More than 6h has to be in the policies of manifests/policies too.",
			want:  "10m to 24h, for example 6h",
			parse: into(&c.STS.TokenLifetime, seconds(minTokenLifetime, maxTokenLifetime)),
		}, {
			topic: topicSTS, name: "sts-rate", value: "CALLS/S", preset: "10",
			help:  "How many calls per second this node makes to STS at most.",
			want:  "calls per second, for example 10",
			parse: into(&c.STS.Rate, rate),
		}, {
			topic: topicSTS, name: "sts-timeout", value: "DURATION", preset: "10s",
			help:  "How long one call to STS may take, 100ms to 1m.",
			want:  "100ms to 1m, for example 10s",
			parse: into(&c.STS.Timeout, duration(100*time.Millisecond, time.Minute)),
		}, {
			topic: topicSTS, name: "linger", value: "DURATION", unset: "one life of the session",
			help: "How long a session is refreshed after its last pod on this node is gone, so that the pod of an hourly CronJob finds " +
				"it warm, 0 to 24h.",
			want:  "0s to 24h, for example 1h",
			parse: into(&c.STS.Linger, optional(linger)),
		},

		{
			topic: topicMetadata, name: "metadata-address", value: "IP", preset: "169.254.169.254", beside: uninstall | guard,
			help:  "IPv4 address of the metadata service, as pods call it.",
			want:  "an IPv4 address, for example 169.254.169.254",
			parse: into(&c.Metadata.Address, ipv4),
		}, {
			topic: topicMetadata, name: "metadata-address-ipv6", value: "IP", preset: "fd00:ec2::254", beside: uninstall | guard,
			help:  "IPv6 address of the metadata service, as pods call it.",
			want:  "an IPv6 address, for example fd00:ec2::254",
			parse: into(&c.Metadata.AddressIPv6, ipv6),
		}, {
			topic: topicMetadata, name: "imdsv1", preset: "true",
			help: "Whether requests without a session token (IMDSv1) are answered. SDKs from before November 2019 " +
				"know no others.",
			want:  "true or false",
			parse: into(&c.Metadata.IMDSv1, boolean),
		}, {
			topic: topicMetadata, name: "request-wait", value: "DURATION", preset: "900ms",
			help: "How long a request may wait for its pod to become known before it is answered 503, 0 to 950ms. " +
				"Most SDKs give up after a second.",
			want:  "0 to 950ms, for example 900ms",
			parse: into(&c.Metadata.RequestWait, duration(0, maxRequestWait)),
		}, {
			topic: topicMetadata, name: "availability-zone", value: "ZONE", unset: "the node's metadata",
			help:  "Availability zone that pods are told where the node's metadata service does not say.",
			want:  "an availability zone, for example eu-central-1a",
			parse: into(&c.Metadata.AvailabilityZone, optional(zone)),
		}, {
			topic: topicMetadata, name: "metadata-upstream", preset: "true",
			help: "Whether region, zone and facts of the node are read from the node's own metadata service. Credentials " +
				"never are.",
			want:  "true or false",
			parse: into(&c.Metadata.Upstream, boolean),
		}, {
			topic: topicMetadata, name: "instance-facts", preset: "true",
			help: "Whether pods may read what identifies the node but opens nothing: its instance ID, type and life cycle, its names, " +
				"address and MAC, its image ID. The identity document, which SDKs read the region from, says some of it all the same.",
			want:  "true or false",
			parse: into(&c.Metadata.InstanceFacts, boolean),
		}, {
			topic: topicMetadata, name: "metadata-allow", value: "LIST", unset: "what SDKs need, and nothing more",
			help: "What every pod may read besides of the node's metadata: paths below meta-data/, with * for a segment and ** for " +
				"the rest. For a single workload use the ServiceAccount annotation podrole.io/metadata-allow.",
			want:  "paths separated by commas, for example network/interfaces/macs/**",
			parse: into(&c.Metadata.Allow, metadata.ParsePatterns),
		}, {
			topic: topicMetadata, name: "request-rate", value: "REQUESTS/S", preset: "100",
			help: "How many requests per second each pod may make in the long run, with five seconds' worth of them at once; 0 is any " +
				"number. What is beyond is delayed, and closed after a second.",
			want:  "requests per second, for example 100, or 0",
			parse: into(&c.Metadata.RequestRate, requestRate),
		}, {
			topic: topicMetadata, name: "container-credentials", preset: "false", beside: guard,
			help: "Whether pods are also served at 169.254.170.2, 169.254.170.23 and fd00:ec2::23, the container credentials endpoints " +
				"of ECS and of EKS Pod Identity. Not beside the EKS Pod Identity Agent.",
			want:  "true or false",
			parse: into(&c.Metadata.ContainerCredentials, boolean),
		},

		{
			topic: topicRedirect, name: "agent-address", value: "IP", preset: "169.254.77.1", beside: uninstall | guard,
			help:  "IPv4 address on the loopback interface to which pod traffic is redirected, the same on every node.",
			want:  "a free address in 169.254.0.0/16, for example 169.254.77.1",
			parse: into(&c.Redirect.AgentAddress, agentIPv4),
		}, {
			topic: topicRedirect, name: "agent-address-ipv6", value: "IP", preset: "fd70:6f64:726f:6c65::1",
			beside: uninstall | guard,
			help:   "The same for IPv6.",
			want:   "a free address in fd00::/8, for example fd70:6f64:726f:6c65::1",
			parse:  into(&c.Redirect.AgentAddressIPv6, agentIPv6),
		}, {
			topic: topicRedirect, name: "iptables-backend", value: "BACKEND", preset: string(BackendAuto), beside: uninstall,
			help:  "Which iptables holds the rules: nft, legacy, or auto for the one that the host uses.",
			want:  "auto, nft or legacy",
			parse: into(&c.Redirect.IPTablesBackend, oneOf(BackendAuto, BackendNFT, BackendLegacy)),
		}, {
			topic: topicRedirect, name: "guard-except-dns", preset: "false", beside: uninstall | guard,
			help: "Let pods reach port 53 of the metadata address: for nodes, as on GCE, whose DNS resolver has the " +
				"same address.",
			want:  "true or false",
			parse: into(&c.Redirect.GuardExceptDNS, boolean),
		}, {
			topic: topicRedirect, name: "ipv6", value: "MODE", preset: string(ModeAuto), beside: uninstall | guard,
			help:  "Whether IPv6 traffic is redirected and guarded: on, off, or auto for nodes that have IPv6.",
			want:  "auto, on or off",
			parse: into(&c.Redirect.IPv6, oneOf(ModeAuto, ModeOn, ModeOff)),
		}, {
			topic: topicRedirect, name: "redirect-sweep", value: "DURATION", preset: "30s",
			help: "How often rules and guard are compared with what they should be even if the kernel told of no change, 100ms to " +
				"10m.",
			want:  "100ms to 10m, for example 30s",
			parse: into(&c.Redirect.Sweep, duration(100*time.Millisecond, 10*time.Minute)),
		},

		{
			topic: topicObservability, name: "metrics-address", value: "[IP]:PORT", preset: ":9716",
			help:  "Where metrics and health are served over HTTP; empty for nowhere. Without an IP: on every address.",
			want:  "[IP]:PORT, for example :9716 or 127.0.0.1:9716, or nothing to switch it off",
			parse: into(&c.Observability.MetricsAddress, optional(listenAddress)),
		}, {
			topic: topicObservability, name: "probe-socket", value: "FILE", unset: "nowhere",
			help: "Unix socket where health is served as well, for podrole-probe, which asks it. Of two agents on one node, as during " +
				"an update, only one can have --metrics-address.",
			want:  "the absolute path of a socket to be made, for example /run/podrole-probe/socket",
			parse: into(&c.Observability.ProbeSocket, optional(absolute)),
		}, {
			topic: topicObservability, name: "log-level", value: "LEVEL", preset: "info", beside: uninstall | guard,
			help:  "Least level that is logged: debug, info, warn or error.",
			want:  "debug, info, warn or error",
			parse: into(&c.Observability.LogLevel, level),
		}, {
			topic: topicObservability, name: "log-format", value: "FORMAT", preset: string(LogJSON), beside: uninstall | guard,
			help:  "How log records are written: text or json.",
			want:  "text or json",
			parse: into(&c.Observability.LogFormat, oneOf(LogText, LogJSON)),
		},

		{
			topic: topicState, name: "state-dir", value: "DIR", unset: "none: sessions are minted anew at every start",
			beside: uninstall,
			help: "Folder, on a memory file system, where sessions and the keys of IMDSv2 tokens outlive the agent, for the one " +
				"that comes after it, and where the agents of a node settle whose the redirect is.",
			want:  "the absolute path of a folder, for example /run/podrole",
			parse: into(&c.State.Dir, optional(absolute)),
		}, {
			topic: topicState, name: "state-dir-on-disk", preset: "false",
			help:  "Whether --state-dir may be on a disk. Credentials are then written to it.",
			want:  "true or false",
			parse: into(&c.State.OnDisk, boolean),
		}, {
			topic: topicState, name: "state-max-age", value: "DURATION", preset: "6h",
			help: "How old a decision in --state-dir may be by which an agent serves a running pod that starts while the API server " +
				"cannot be reached, 0 to 24h; 0 is never.",
			want:  "0s to 24h, for example 6h",
			parse: into(&c.State.MaxAge, duration(0, 24*time.Hour)),
		},

		{
			topic: topicShutdown, name: "drain", value: "DURATION", preset: "2s",
			help: "How long the agent goes on answering requests that have begun when it is told to stop, 0 to 20s. " +
				"Stay below the pod's terminationGracePeriodSeconds.",
			want:  "0 to 20s, for example 2s",
			parse: into(&c.Shutdown.Drain, duration(0, 20*time.Second)),
		},
	}
}
