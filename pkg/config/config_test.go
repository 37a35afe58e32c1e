package config

import (
	"errors"
	"log/slog"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/podrole/podrole/pkg/authority"
	"github.com/podrole/podrole/pkg/proxy/metadata"
	"github.com/podrole/podrole/pkg/role"
)

// minimal is the shortest command line that starts an agent.
func minimal(more ...string) []string { return append([]string{"--node-name=node-1"}, more...) }

func compareAddresses() cmp.Option {
	return cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b metadata.Pattern) bool { return a.String() == b.String() }),
	}
}

func TestDefaults(t *testing.T) {
	got, err := ForRun().Parse(minimal(), nil, "")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Cluster: Cluster{
			NodeName:         "node-1",
			CNIDir:           "/var/lib/cni",
			SharedInterfaces: []string{"cilium_host", "ovn-k8s-mp0", "antrea-gw0"},
		},
		Roles: Roles{
			RoleARNAnnotation:     "podrole.io/role-arn",
			IRSARoleARNAnnotation: "eks.amazonaws.com/role-arn",
			PodRoleAnnotation:     "iam.amazonaws.com/role",
			AllowedRolesFormat:    FormatGlob,
			SessionDuration:       time.Hour,
			LastValidGrant:        24 * time.Hour,
		},
		STS: STS{
			CredentialSource: role.WebIdentity,
			TokenAuthority:   authority.Direct,
			Audiences:        []string{"sts.amazonaws.com"},
			TokenLifetime:    6 * time.Hour,
			Rate:             10,
			Timeout:          10 * time.Second,
		},
		Metadata: Metadata{
			Address:       netip.MustParseAddr("169.254.169.254"),
			AddressIPv6:   netip.MustParseAddr("fd00:ec2::254"),
			IMDSv1:        true,
			RequestWait:   900 * time.Millisecond,
			Upstream:      true,
			InstanceFacts: true,
			RequestRate:   100,
		},
		Redirect: Redirect{
			AgentAddress:     netip.MustParseAddr("169.254.77.1"),
			AgentAddressIPv6: netip.MustParseAddr("fd70:6f64:726f:6c65::1"),
			IPTablesBackend:  BackendAuto,
			IPv6:             ModeAuto,
			Sweep:            30 * time.Second,
		},
		Observability: Observability{MetricsAddress: ":9716", LogLevel: slog.LevelInfo, LogFormat: LogJSON},
		State:         State{MaxAge: 6 * time.Hour},
		Shutdown:      Shutdown{Drain: 2 * time.Second},
	}
	if diff := cmp.Diff(want, got, compareAddresses()); diff != "" {
		t.Error(diff)
	}
}

// samples returns a good value for each setting, other than its default, and what it makes of the Config.
func samples() map[string]struct {
	value string
	apply func(*Config)
} {
	type sample = struct {
		value string
		apply func(*Config)
	}
	return map[string]sample{
		"node-name":                    {"node-2", func(c *Config) { c.Cluster.NodeName = "node-2" }},
		"kubeconfig":                   {"/etc/k", func(c *Config) { c.Cluster.Kubeconfig = "/etc/k" }},
		"cni-dir":                      {"/srv/cni", func(c *Config) { c.Cluster.CNIDir = "/srv/cni" }},
		"shared-interfaces":            {"a0, b0", func(c *Config) { c.Cluster.SharedInterfaces = []string{"a0", "b0"} }},
		"startup-taint":                {"a.b/c", func(c *Config) { c.Cluster.StartupTaint = "a.b/c" }},
		"cluster-name":                 {"prod", func(c *Config) { c.Cluster.ClusterName = "prod" }},
		"base-role-arn":                {"arn:aws-cn:iam::111122223333:role/x", func(c *Config) { c.Roles.BaseRoleARN = "arn:aws-cn:iam::111122223333:role/x/" }},
		"default-role":                 {"arn:aws-iso-b:iam::111122223333:role/x", func(c *Config) { c.Roles.DefaultRole = "arn:aws-iso-b:iam::111122223333:role/x" }},
		"role-arn-annotation":          {"a.b/c", func(c *Config) { c.Roles.RoleARNAnnotation = "a.b/c" }},
		"irsa-role-arn-annotation":     {"a.b/c", func(c *Config) { c.Roles.IRSARoleARNAnnotation = "a.b/c" }},
		"pod-role-annotations":         {"true", func(c *Config) { c.Roles.PodRoleAnnotations = true }},
		"require-namespace-permission": {"false", func(*Config) {}},
		"allowed-roles-format":         {"regexp", func(c *Config) { c.Roles.AllowedRolesFormat = FormatRegexp }},
		"discover-base-role-arn":       {"true", func(c *Config) { c.Roles.DiscoverBaseRoleARN = true }},
		"last-valid-grant":             {"0s", func(c *Config) { c.Roles.LastValidGrant = 0 }},
		"session-duration":             {"12h", func(c *Config) { c.Roles.SessionDuration = 12 * time.Hour }},
		"credential-source": {"assume-role", func(c *Config) {
			c.STS.CredentialSource, c.Roles.RequireNamespacePermission = role.AssumeRole, true
		}},
		"kube-objects": {"/objects", func(c *Config) {
			c.Cluster.KubeObjects, c.STS.CredentialSource, c.Roles.RequireNamespacePermission = "/objects", role.AssumeRole, true
		}},
		"token-authority":       {"node", func(c *Config) { c.STS.TokenAuthority = authority.Node }},
		"sts-region":            {"us-gov-west-1", func(c *Config) { c.STS.Region = "us-gov-west-1" }},
		"sts-endpoint":          {"http://127.0.0.1:4566", func(c *Config) { c.STS.Endpoint = &url.URL{Scheme: "http", Host: "127.0.0.1:4566"} }},
		"audiences":             {"a, b", func(c *Config) { c.STS.Audiences = []string{"a", "b"} }},
		"sts-failover-regions":  {"eu-west-1, us-east-1", func(c *Config) { c.STS.FailoverRegions = []string{"eu-west-1", "us-east-1"} }},
		"sts-fips":              {"true", func(c *Config) { c.STS.FIPS = true }},
		"sts-dual-stack":        {"true", func(c *Config) { c.STS.DualStack = true }},
		"state-dir":             {"/run/podrole", func(c *Config) { c.State.Dir = "/run/podrole" }},
		"state-dir-on-disk":     {"true", func(c *Config) { c.State.OnDisk = true }},
		"probe-socket":          {"/run/p/socket", func(c *Config) { c.Observability.ProbeSocket = "/run/p/socket" }},
		"state-max-age":         {"0", func(c *Config) { c.State.MaxAge = 0 }},
		"linger":                {"0", func(c *Config) { c.STS.Linger = -1 }},
		"token-lifetime":        {"10m", func(c *Config) { c.STS.TokenLifetime = 10 * time.Minute }},
		"sts-rate":              {"0.5", func(c *Config) { c.STS.Rate = 0.5 }},
		"sts-timeout":           {"3s", func(c *Config) { c.STS.Timeout = 3 * time.Second }},
		"metadata-address":      {"10.0.0.1", func(c *Config) { c.Metadata.Address = netip.MustParseAddr("10.0.0.1") }},
		"metadata-address-ipv6": {"fd00::1", func(c *Config) { c.Metadata.AddressIPv6 = netip.MustParseAddr("fd00::1") }},
		"imdsv1":                {"false", func(c *Config) { c.Metadata.IMDSv1 = false }},
		"request-wait":          {"0s", func(c *Config) { c.Metadata.RequestWait = 0 }},
		"availability-zone":     {"us-west-2-lax-1a", func(c *Config) { c.Metadata.AvailabilityZone = "us-west-2-lax-1a" }},
		"metadata-upstream":     {"false", func(c *Config) { c.Metadata.Upstream = false }},
		"instance-facts":        {"false", func(c *Config) { c.Metadata.InstanceFacts = false }},
		"metadata-allow": {"tags/**, dynamic/x", func(c *Config) {
			for _, text := range []string{"tags/**", "dynamic/x"} {
				p, err := metadata.ParsePattern(text)
				if err != nil {
					panic(err)
				}
				c.Metadata.Allow = append(c.Metadata.Allow, p)
			}
		}},
		"request-rate":          {"0", func(c *Config) { c.Metadata.RequestRate = 0 }},
		"container-credentials": {"true", func(c *Config) { c.Metadata.ContainerCredentials = true }},
		"agent-address":         {"169.254.78.9", func(c *Config) { c.Redirect.AgentAddress = netip.MustParseAddr("169.254.78.9") }},
		"agent-address-ipv6":    {"fd12::1", func(c *Config) { c.Redirect.AgentAddressIPv6 = netip.MustParseAddr("fd12::1") }},
		"iptables-backend":      {"legacy", func(c *Config) { c.Redirect.IPTablesBackend = BackendLegacy }},
		"guard-except-dns":      {"true", func(c *Config) { c.Redirect.GuardExceptDNS = true }},
		"ipv6":                  {"off", func(c *Config) { c.Redirect.IPv6 = ModeOff }},
		"redirect-sweep":        {"1s", func(c *Config) { c.Redirect.Sweep = time.Second }},
		"metrics-address":       {"", func(c *Config) { c.Observability.MetricsAddress = "" }},
		"log-level":             {"debug", func(c *Config) { c.Observability.LogLevel = slog.LevelDebug }},
		"log-format":            {"text", func(c *Config) { c.Observability.LogFormat = LogText }},
		"drain":                 {"0", func(c *Config) { c.Shutdown.Drain = 0 }},
	}
}

// together are settings that mean something only with another one: they are tested with it.
func together() []string { return []string{"pod-role-annotation", "session-tags", "assume-role-arn"} }

func TestEverySettingHasFlagAndVariable(t *testing.T) {
	all := samples()
	for _, s := range table(new(Config)) {
		t.Run(s.name, func(t *testing.T) {
			if v := s.variable(); v != "PODROLE_"+strings.ReplaceAll(strings.ToUpper(s.name), "-", "_") {
				t.Errorf("variable %s", v)
			}
			sample, ok := all[s.name]
			if !ok {
				if slices.Contains(together(), s.name) {
					return
				}
				t.Fatal("no sample value: add one")
			}
			want, err := ForRun().Parse(minimal(), nil, "")
			if err != nil {
				t.Fatal(err)
			}
			sample.apply(&want)

			base := minimal()
			if s.name == "node-name" {
				base = nil
			}
			byFlag, err := ForRun().Parse(append(base, "--"+s.name+"="+sample.value), nil, "")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, byFlag, compareAddresses()); diff != "" {
				t.Errorf("flag: %s", diff)
			}
			byVariable, err := ForRun().Parse(base, []string{s.variable() + "=" + sample.value}, "")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, byVariable, compareAddresses()); diff != "" {
				t.Errorf("variable: %s", diff)
			}
			// The flag wins, however wrong the variable.
			both, err := ForRun().Parse(append(base, "--"+s.name+"="+sample.value), []string{s.variable() + "=\x00"}, "")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, both, compareAddresses()); diff != "" {
				t.Errorf("flag and variable: %s", diff)
			}
		})
	}
}

func TestSettingsThatGoTogether(t *testing.T) {
	got, err := ForRun().Parse(minimal("--pod-role-annotations", "--credential-source=assume-role", "--session-tags", "--cluster-name=prod",
		"--assume-role-arn=arn:aws:iam::111122223333:role/kiam"),
		[]string{"PODROLE_POD_ROLE_ANNOTATION=a/b"}, "")
	if err != nil {
		t.Fatal(err)
	}
	if !got.Roles.PodRoleAnnotations || got.Roles.PodRoleAnnotation != "a/b" || !got.Roles.SessionTags || got.STS.AssumeRoleARN == "" {
		t.Errorf("%+v", got.Roles)
	}
}

// bad is one wrong value, or combination, per line: what is given, and what the one line of the answer begins with.
func bad() map[string][]struct{ args, line string } {
	const arn = "arn:aws:iam::111122223333:role/"
	return map[string][]struct{ args, line string }{
		"node-name": {
			{"--node-name=Node_1", `--node-name "Node_1": not a node name`},
			{"--node-name=", `--node-name "": missing`},
		},
		"kubeconfig": {{"--kubeconfig=/k --kube-objects=/o", `--kubeconfig "/k": excluded by --kube-objects`}},
		"kube-objects": {{"--kube-objects=/o --credential-source=web-identity",
			`--credential-source "web-identity": not possible with --kube-objects`}},
		"cni-dir":           {{"--cni-dir=", `--cni-dir "": no path`}, {"--cni-dir=cni", `--cni-dir "cni": not an absolute path`}},
		"shared-interfaces": {{"--shared-interfaces=a,,b", `--shared-interfaces "a,,b": holds an empty interface`}},
		"startup-taint":     {{"--startup-taint=a:NoSchedule", `--startup-taint "a:NoSchedule": not the key of a taint`}},
		"cluster-name":      {{"--cluster-name=a*b", `--cluster-name "a*b": not the value of a session tag`}},
		"base-role-arn": {
			{"--base-role-arn=role/x", `--base-role-arn "role/x": not the beginning of role ARNs`},
			{"--base-role-arn=arn:aws-mars:iam::111122223333:role/", `--base-role-arn "arn:aws-mars:iam::111122223333:role/": aws-mars is no AWS partition`},
		},
		"default-role": {
			{"--default-role=app", `--default-role "app": a bare name without --base-role-arn`},
			{"--default-role=a!b --base-role-arn=" + arn, `--default-role "a!b": not the ARN of an IAM role`},
			{"--default-role=arn:aws:iam::1:role/x", `--default-role "arn:aws:iam::1:role/x": not the ARN`},
			{"--default-role=arn:awsome:iam::111122223333:role/x", `--default-role "arn:awsome:iam::111122223333:role/x": awsome is no AWS partition`},
		},
		"role-arn-annotation": {
			{"--role-arn-annotation=a/b/c", `--role-arn-annotation "a/b/c": not an annotation key`},
			{"--role-arn-annotation=eks.amazonaws.com/role-arn", `--role-arn-annotation "eks.amazonaws.com/role-arn": is the key of --irsa-role-arn-annotation too`},
		},
		"irsa-role-arn-annotation": {
			{"--irsa-role-arn-annotation=", `--irsa-role-arn-annotation "": not an annotation key`},
			{"--irsa-role-arn-annotation=podrole.io/role-arn", `--irsa-role-arn-annotation "podrole.io/role-arn": is the key of --role-arn-annotation too`},
		},
		"pod-role-annotations": {{"--pod-role-annotations=yes", `--pod-role-annotations "yes": not a boolean`}},
		"pod-role-annotation": {
			{"--pod-role-annotation=false", `--pod-role-annotation "false": has no effect`},
			{"--pod-role-annotation=-- --pod-role-annotations", `--pod-role-annotation "--": not an annotation key`},
		},
		"require-namespace-permission": {
			{"--require-namespace-permission=1", `--require-namespace-permission "1": not a boolean`},
			{"--require-namespace-permission", `--require-namespace-permission "true": has no effect with web-identity`},
		},
		"session-duration": {
			{"--session-duration=3600", `--session-duration "3600": not a duration`},
			{"--session-duration=14m59s", `--session-duration "14m59s": too short`},
			{"--session-duration=13h", `--session-duration "13h": too long`},
			{"--session-duration=15m0.5s", `--session-duration "15m0.5s": not a whole number of seconds`},
			{"--session-duration=2h --credential-source=assume-role", `--session-duration "2h": too long for a role assumed by a role`},
			{"--session-duration=2h --kube-objects=/o", `--session-duration "2h": too long for a role assumed by a role`},
		},
		"session-tags": {
			{"--session-tags=on", `--session-tags "on": not a boolean`},
			{"--session-tags --credential-source=assume-role", `--session-tags "true": the cluster has no name`},
			{"--session-tags --cluster-name=c", `--session-tags "true": AssumeRoleWithWebIdentity takes no tags`},
		},
		"credential-source":    {{"--credential-source=irsa", `--credential-source "irsa": not one of the choices`}},
		"allowed-roles-format": {{"--allowed-roles-format=regex", `--allowed-roles-format "regex": not one of the choices`}},
		"token-authority": {
			{"--token-authority=none", `--token-authority "none": not one of the choices`},
			{"--token-authority=node --credential-source=assume-role", `--token-authority "node": assume-role requests no tokens`},
		},
		"sts-region": {{"--sts-region=Frankfurt", `--sts-region "Frankfurt": not an AWS region`}},
		"sts-endpoint": {
			{"--sts-endpoint=sts.example.com", `--sts-endpoint "sts.example.com": not an http or https URL`},
			{"--sts-endpoint=https://", `--sts-endpoint "https://": without a host`},
			{"--sts-endpoint=https://u:secret@h", `--sts-endpoint "https://xxxxx@h": holds credentials`},
			{"--sts-endpoint=https://u:sec%ret@h", `--sts-endpoint "https://xxxxx@h": not a URL`},
			{"--sts-endpoint=https://h?a=b", `--sts-endpoint "https://h?a=b": has a query`},
		},
		"audiences": {
			{"--audiences=", `--audiences "": holds an empty audience`},
			{"--audiences=a,b,a", `--audiences "a,b,a": names "a" twice`},
			{"--audiences=a --audiences=a", `--audiences "a,a": names "a" twice`},
		},
		"sts-failover-regions": {
			{"--sts-failover-regions=here", `--sts-failover-regions "here": "here": not an AWS region`},
			{"--sts-failover-regions=eu-west-1 --sts-endpoint=http://x", `--sts-failover-regions "eu-west-1": --sts-endpoint is one endpoint`},
		},
		"sts-fips": {
			{"--sts-fips=on", `--sts-fips "on": not a boolean`},
			{"--sts-fips --sts-endpoint=http://x", `--sts-fips "true": --sts-endpoint is one endpoint`},
		},
		"sts-dual-stack":    {{"--sts-dual-stack=on", `--sts-dual-stack "on": not a boolean`}},
		"state-dir":         {{"--state-dir=run", `--state-dir "run": not an absolute path`}},
		"state-dir-on-disk": {{"--state-dir-on-disk=on", `--state-dir-on-disk "on": not a boolean`}},
		"state-max-age": {
			{"--state-max-age=25h", `--state-max-age "25h": too long`},
			{"--state-max-age=-1s", `--state-max-age "-1s": too short`},
			{"--state-max-age=", `--state-max-age "": not a duration`},
		},
		"metadata-allow": {
			{"--metadata-allow=iam/**", `--metadata-allow "iam/**": metadata pattern "iam/**": it covers meta-data/iam`},
			{"--metadata-allow=tags//x", `--metadata-allow "tags//x": metadata pattern "tags//x": write segments`},
		},
		"request-rate": {
			{"--request-rate=-1", `--request-rate "-1": not greater than zero`},
			{"--request-rate=many", `--request-rate "many": not a number`},
		},
		"container-credentials": {{"--container-credentials=on", `--container-credentials "on": not a boolean`}},
		"probe-socket":          {{"--probe-socket=socket", `--probe-socket "socket": not an absolute path`}},
		"linger": {
			{"--linger=25h", `--linger "25h": too long`},
			{"--linger=always", `--linger "always": not a duration`},
		},
		"assume-role-arn": {
			{"--assume-role-arn=kiam", `--assume-role-arn "kiam": not`},
			{"--assume-role-arn=arn:aws:iam::111122223333:role/kiam", `--assume-role-arn "arn:aws:iam::111122223333:role/kiam": web-identity assumes`},
		},
		"discover-base-role-arn": {
			{"--discover-base-role-arn=on", `--discover-base-role-arn "on": not a boolean`},
			{"--discover-base-role-arn --base-role-arn=arn:aws:iam::111122223333:role/", `--discover-base-role-arn "true": --base-role-arn is given too`},
			{"--discover-base-role-arn --metadata-upstream=false", `--discover-base-role-arn "true": only the node's metadata`},
		},
		"last-valid-grant": {
			{"--last-valid-grant=-1s", `--last-valid-grant "-1s": too short`},
			{"--last-valid-grant=169h", `--last-valid-grant "169h": too long`},
			{"--last-valid-grant=day", `--last-valid-grant "day": not a duration`},
		},
		"token-lifetime": {
			{"--token-lifetime=9m", `--token-lifetime "9m": too short`},
			{"--token-lifetime=25h", `--token-lifetime "25h": too long`},
		},
		"sts-rate": {
			{"--sts-rate=fast", `--sts-rate "fast": not a number; give calls per second, for example 10`},
			{"--sts-rate=0", `--sts-rate "0": not greater than zero`},
			{"--sts-rate=NaN", `--sts-rate "NaN": not a number`},
			{"--sts-rate=inf", `--sts-rate "inf": not a number`},
		},
		"sts-timeout":           {{"--sts-timeout=0", `--sts-timeout "0": too short`}},
		"metadata-address":      {{"--metadata-address=fd00::1", `--metadata-address "fd00::1": not an IPv4 address`}, {"--metadata-address=127.0.0.1", `--metadata-address "127.0.0.1": not an address that a pod can`}},
		"metadata-address-ipv6": {{"--metadata-address-ipv6=fe80::1%eth0", `--metadata-address-ipv6 "fe80::1%eth0": not an IPv6 address`}},
		"imdsv1":                {{"--imdsv1=off", `--imdsv1 "off": not a boolean`}},
		"request-wait":          {{"--request-wait=1s", `--request-wait "1s": too long`}, {"--request-wait=-1ms", `--request-wait "-1ms": too short`}},
		"availability-zone":     {{"--availability-zone=1a", `--availability-zone "1a": not an availability zone`}},
		"metadata-upstream":     {{"--metadata-upstream=maybe", `--metadata-upstream "maybe": not a boolean`}},
		"instance-facts":        {{"--instance-facts=some", `--instance-facts "some": not a boolean`}},
		"agent-address": {
			{"--agent-address=10.0.0.1", `--agent-address "10.0.0.1": not a link-local address`},
			{"--agent-address=169.254.170.23", `--agent-address "169.254.170.23": in 169.254.170.0/24, which AWS uses`},
			{"--agent-address=169.254.9.9 --metadata-address=169.254.9.9", `--agent-address "169.254.9.9": is the metadata address`},
		},
		"agent-address-ipv6": {
			{"--agent-address-ipv6=2001:db8::1", `--agent-address-ipv6 "2001:db8::1": not a unique local address`},
			{"--agent-address-ipv6=fd00:ec2::23", `--agent-address-ipv6 "fd00:ec2::23": in fd00:ec2::/32, which AWS uses`},
			{"--agent-address-ipv6=fd11::1 --metadata-address-ipv6=fd11::1", `--agent-address-ipv6 "fd11::1": is the metadata address`},
		},
		"iptables-backend": {{"--iptables-backend=nftables", `--iptables-backend "nftables": not one of the choices; give auto, nft or legacy`}},
		"guard-except-dns": {{"--guard-except-dns=x", `--guard-except-dns "x": not a boolean`}},
		"ipv6":             {{"--ipv6=true", `--ipv6 "true": not one of the choices`}},
		"redirect-sweep":   {{"--redirect-sweep=1ms", `--redirect-sweep "1ms": too short`}},
		"metrics-address": {
			{"--metrics-address=9716", `--metrics-address "9716": not an address with a port`},
			{"--metrics-address=:http", `--metrics-address ":http": not a port`},
			{"--metrics-address=localhost:9716", `--metrics-address "localhost:9716": not an IP address`},
		},
		"log-level":  {{"--log-level=INFO", `--log-level "INFO": not a log level`}},
		"log-format": {{"--log-format=logfmt", `--log-format "logfmt": not one of the choices`}},
		"drain":      {{"--drain=1m", `--drain "1m": too long`}},
	}
}

func TestBadValues(t *testing.T) {
	cases := bad()
	for _, s := range table(new(Config)) {
		if len(cases[s.name]) == 0 {
			t.Errorf("no bad value for --%s: add one", s.name)
		}
	}
	for name, list := range cases {
		t.Run(name, func(t *testing.T) {
			for _, c := range list {
				args := strings.Split(c.args, " ")
				if name != "node-name" {
					args = minimal(args...)
				}
				_, err := ForRun().Parse(args, nil, "host")
				if err == nil {
					t.Errorf("%s: accepted", c.args)
					continue
				}
				line := err.Error()
				if !strings.HasPrefix(line, c.line) || strings.Contains(line, "\n") {
					t.Errorf("%s:\n got %s\nwant %s…", c.args, line, c.line)
				}
				if _, remedy, _ := strings.Cut(line, "; "); remedy == "" {
					t.Errorf("%s: no remedy in %s", c.args, line)
				}
				if strings.Contains(line, "secret") {
					t.Errorf("%s: credentials in %s", c.args, line)
				}
			}
		})
	}
}

func TestEveryFaultIsFound(t *testing.T) {
	_, err := ForRun().Parse([]string{"--sts-rate=fast"},
		[]string{"PODROLE_DRAIN=1d", "AWS_REGION=Frankfurt", "PODROLE_STS_RAT=1", "PODROLE_QUITE_UNLIKE=x\ny"}, "")
	joined, ok := errors.AsType[interface {
		error
		Unwrap() []error
	}](err)
	if !ok {
		t.Fatalf("not joined: %v", err)
	}
	var settings []string
	for _, e := range joined.Unwrap() {
		fault, ok := errors.AsType[*Fault](e)
		if !ok {
			t.Fatalf("not a Fault: %v", e)
		}
		settings = append(settings, fault.Setting)
	}
	want := []string{"--node-name", "--sts-rate", "AWS_REGION", "PODROLE_DRAIN", "PODROLE_QUITE_UNLIKE", "PODROLE_STS_RAT"}
	if diff := cmp.Diff(want, settings, cmpopts.SortSlices(strings.Compare)); diff != "" {
		t.Error(diff)
	}
	if lines := strings.Count(err.Error(), "\n") + 1; lines != len(want) {
		t.Errorf("%d lines:\n%v", lines, err)
	}
	for _, part := range []string{
		`PODROLE_STS_RAT "1": no such setting; did you mean PODROLE_STS_RATE?`,
		`PODROLE_QUITE_UNLIKE "x\ny": no such setting; remove it`,
	} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in\n%v", part, err)
		}
	}
}

func TestServiceLinksAreNoSettings(t *testing.T) {
	environ := []string{
		"PODROLE_SERVICE_HOST=10.0.0.1", "PODROLE_SERVICE_PORT=80", "PODROLE_SERVICE_PORT_METRICS=80",
		"PODROLE_PORT=tcp://10.0.0.1:80", "PODROLE_PORT_80_TCP_ADDR=10.0.0.1",
		"PODROLE_METRICS_SERVICE_HOST=10.0.0.2", "PODROLE_METRICS_PORT=tcp://10.0.0.2:80",
	}
	if _, err := ForRun().Parse(minimal(), environ, ""); err != nil {
		t.Error(err)
	}
	if _, err := ForRun().Parse(minimal(), []string{"PODROLE_PORT=80"}, ""); err == nil {
		t.Error("PODROLE_PORT accepted without a Service")
	}
}

func TestNodeNameFromHost(t *testing.T) {
	got, err := ForRun().Parse([]string{"--kube-objects=/o"}, nil, "Laptop.local")
	if err != nil || got.Cluster.NodeName != "laptop.local" {
		t.Errorf("%q, %v", got.Cluster.NodeName, err)
	}
	_, err = ForRun().Parse([]string{"--kube-objects=/o"}, nil, "my_laptop")
	if err == nil || !strings.Contains(err.Error(), "--node-name: missing, and the host's name is not a node name") {
		t.Error(err)
	}
}

func TestRegionFallsBackOnAWSRegion(t *testing.T) {
	got, err := ForRun().Parse(minimal(), []string{"AWS_REGION=eu-west-1"}, "")
	if err != nil || got.STS.Region != "eu-west-1" {
		t.Errorf("%q, %v", got.STS.Region, err)
	}
	got, err = ForRun().Parse(minimal(), []string{"AWS_REGION=eu-west-1", "PODROLE_STS_REGION=eu-west-2"}, "")
	if err != nil || got.STS.Region != "eu-west-2" {
		t.Errorf("%q, %v", got.STS.Region, err)
	}
}

func TestUninstall(t *testing.T) {
	environ := []string{"PODROLE_AGENT_ADDRESS=169.254.1.1", "PODROLE_STS_RATE=fast", "PODROLE_SESSION_TAGS=true"}
	got, err := ForUninstall().Parse([]string{"--log-format=text"}, environ, "")
	if err != nil {
		t.Fatal(err)
	}
	if got.Redirect.AgentAddress != netip.MustParseAddr("169.254.1.1") || got.Observability.LogFormat != LogText {
		t.Errorf("%+v", got)
	}
	for args, want := range map[string]string{
		"--node-name=x":    "--node-name: no flag of this command; --help lists all flags",
		"--agent-adress=x": "--agent-adress: no such flag; did you mean --agent-address?",
		"-v":               "-v: no such flag; --help lists all flags",
		"--ipv6":           "--ipv6: has no value; give auto, on or off",
		"--=x":             "--=x: not a flag; write --NAME=VALUE or --NAME VALUE",
		"x":                `argument "x": not a flag; --help lists all flags`,
	} {
		if _, err := ForUninstall().Parse([]string{args}, nil, ""); err == nil || err.Error() != want {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func TestHelpAndReference(t *testing.T) {
	var help, helpUninstall, helpGuard, reference strings.Builder
	if err := ForRun().WriteHelp(&help); err != nil {
		t.Fatal(err)
	}
	if err := ForUninstall().WriteHelp(&helpUninstall); err != nil {
		t.Fatal(err)
	}
	if err := ForGuard().WriteHelp(&helpGuard); err != nil {
		t.Fatal(err)
	}
	if err := WriteReference(&reference); err != nil {
		t.Fatal(err)
	}
	for _, s := range table(new(Config)) {
		if s.help == "" || s.want == "" || s.topic == "" || (s.preset == "" && s.unset == "") {
			t.Errorf("--%s: the row is not complete", s.name)
		}
		if n := strings.Count(help.String(), "\n  --"+s.name+" "); n != 1 {
			t.Errorf("--%s is in the help text %d times", s.name, n)
		}
		if n := strings.Count(reference.String(), "| `--"+s.name+"`"); n != 1 {
			t.Errorf("--%s is in the reference %d times", s.name, n)
		}
		if strings.Contains(helpUninstall.String(), "\n  --"+s.name+" ") != (s.beside&uninstall != 0) {
			t.Errorf("--%s: wrong in the help text of uninstall", s.name)
		}
		if strings.Contains(helpGuard.String(), "\n  --"+s.name+" ") != (s.beside&guard != 0) {
			t.Errorf("--%s: wrong in the help text of guard", s.name)
		}
	}
	for _, topic := range topics() {
		if strings.Count(help.String(), string(topic)+":\n") != 1 {
			t.Errorf("topic %s", topic)
		}
	}
	for line := range strings.Lines(help.String()) {
		if len(line) > helpWidth+1 {
			t.Errorf("too long: %s", line)
		}
	}
	if strings.Count(help.String(), "PODROLE_") != 1 {
		t.Error("the rule for environment variables is not there once")
	}
}

func FuzzParse(f *testing.F) {
	for name, list := range bad() {
		for _, c := range list {
			_, value, _ := strings.Cut(c.args, "=")
			f.Add(name, value)
		}
	}
	for name, sample := range samples() {
		f.Add(name, sample.value)
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		if !slices.ContainsFunc(table(new(Config)), func(s setting) bool { return s.name == name }) {
			return
		}
		_, err := ForRun().Parse([]string{"--" + name + "=" + value}, nil, "host")
		if err == nil {
			return
		}
		for line := range strings.SplitSeq(err.Error(), "\n") {
			if !strings.Contains(line, ": ") || !strings.Contains(line, "; ") {
				t.Errorf("a line without problem or remedy: %q", line)
			}
		}
	})
}
