package config

import (
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/podrole/podrole/pkg/authority"
	"github.com/podrole/podrole/pkg/role"
)

// The functions of this file check settings against each other. They leave alone what has already been refused by
// itself, so that one mistake makes one line.

// refuse adds a fault that names the setting as the user gave it.
func (l *loader) refuse(name, problem, remedy string) {
	src := l.sources[name]
	l.add(&Fault{Setting: src.name, Value: new(src.value), Problem: problem, Remedy: remedy})
}

// usable tells whether all these settings could be read.
func (l *loader) usable(names ...string) bool {
	for _, n := range names {
		if l.sources[n].bad {
			return false
		}
	}
	return true
}

// given tells whether the user gave the setting.
func (l *loader) given(name string) bool { return l.sources[name].given }

// checkCluster decides what a folder of objects implies, and names the node.
func (l *loader) checkCluster(hostname string) {
	c := &l.config.Cluster
	if c.KubeObjects != "" {
		if c.Kubeconfig != "" {
			l.refuse("kubeconfig", "excluded by "+l.sources["kube-objects"].name, "give one of the two")
		}
		// A folder has nobody to issue ServiceAccount tokens.
		switch {
		case !l.given("credential-source"):
			l.config.STS.CredentialSource = role.AssumeRole
		case l.usable("credential-source") && l.config.STS.CredentialSource != role.AssumeRole:
			l.refuse("credential-source", "not possible with "+l.sources["kube-objects"].name+
				", as nobody issues ServiceAccount tokens there", "give assume-role or leave it out")
		}
	}
	if c.NodeName != "" || !l.usable("node-name") {
		return
	}
	const remedy = "give the node's name, in a DaemonSet from the field spec.nodeName of the agent's pod"
	if c.KubeObjects == "" {
		src := l.sources["node-name"]
		fault := &Fault{Setting: src.name, Problem: "missing", Remedy: remedy}
		if src.given {
			fault.Value = new(src.value)
		}
		l.add(fault)
		return
	}
	// The kubelet registers nodes by their host name in lower case.
	c.NodeName = strings.ToLower(strings.TrimSpace(hostname))
	if len(validation.IsDNS1123Subdomain(c.NodeName)) > 0 {
		l.add(&Fault{Setting: "--node-name", Problem: "missing, and the host's name is not a node name", Remedy: remedy})
	}
}

// checkRoles checks what depends on the credential source, and settings that mean something only together.
func (l *loader) checkRoles() {
	r := &l.config.Roles
	if l.usable("credential-source") {
		if l.config.STS.CredentialSource == role.AssumeRole {
			if l.usable("session-duration") && r.SessionDuration > role.MaxChainedDuration {
				l.refuse("session-duration", "too long for a role assumed by a role", "give at most 1h with assume-role")
			}
		} else {
			if l.given("require-namespace-permission") && r.RequireNamespacePermission {
				l.refuse("require-namespace-permission", "has no effect with web-identity, where the role's trust policy "+
					"decides", "leave it out or choose --credential-source assume-role")
			}
			r.RequireNamespacePermission = false
		}
	}
	if sts := l.config.STS; sts.Endpoint != nil {
		for name, given := range map[string]bool{
			"sts-failover-regions": len(sts.FailoverRegions) > 0, "sts-fips": sts.FIPS, "sts-dual-stack": sts.DualStack,
		} {
			if given && l.usable(name, "sts-endpoint") {
				l.refuse(name, "--sts-endpoint is one endpoint", "give one of them")
			}
		}
	}
	if sts := l.config.STS; sts.AssumeRoleARN != "" && sts.CredentialSource == role.WebIdentity && l.usable("assume-role-arn", "credential-source") {
		l.refuse("assume-role-arn", "web-identity assumes the pods' roles directly", "leave it out or choose --credential-source assume-role")
	}
	if sts := l.config.STS; sts.TokenAuthority == authority.Node && sts.CredentialSource == role.AssumeRole && l.usable("token-authority", "credential-source") {
		l.refuse("token-authority", "assume-role requests no tokens", "leave it out or choose --credential-source web-identity")
	}
	if r.DiscoverBaseRoleARN && r.BaseRoleARN != "" && l.usable("discover-base-role-arn", "base-role-arn") {
		l.refuse("discover-base-role-arn", "--base-role-arn is given too", "give one of them")
	}
	if r.DiscoverBaseRoleARN && !l.config.Metadata.Upstream && l.usable("discover-base-role-arn", "metadata-upstream") {
		l.refuse("discover-base-role-arn", "only the node's metadata service tells", "leave out --metadata-upstream=false")
	}
	if r.DefaultRole != "" && l.usable("base-role-arn") && !r.DiscoverBaseRoleARN {
		l.checkDefaultRole()
	}
	if l.given("pod-role-annotation") && l.usable("pod-role-annotation", "pod-role-annotations") &&
		!r.PodRoleAnnotations {
		l.refuse("pod-role-annotation", "has no effect while the annotations of pods do not count",
			"add --pod-role-annotations or leave it out")
	}
	l.checkAnnotationKeys()
	if r.SessionTags && l.config.Cluster.ClusterName == "" && l.usable("session-tags", "cluster-name") {
		l.refuse("session-tags", "the cluster has no name to be tagged with", "give --cluster-name")
	}
	if r.SessionTags && l.usable("session-tags", "credential-source") && l.config.STS.CredentialSource == role.WebIdentity {
		l.refuse("session-tags", "AssumeRoleWithWebIdentity takes no tags",
			"leave it out or choose --credential-source assume-role")
	}
}

func (l *loader) checkDefaultRole() {
	arn := l.config.Roles.DefaultRole
	if !strings.HasPrefix(arn, "arn:") {
		if l.config.Roles.BaseRoleARN == "" {
			l.refuse("default-role", "a bare name without --base-role-arn", "give the role's ARN or --base-role-arn")
			return
		}
		arn = l.config.Roles.BaseRoleARN + strings.TrimPrefix(arn, "/")
	}
	if err := roleARN(arn); err != nil {
		l.refuse("default-role", err.Error(), "give "+l.flags.byName("default-role").want)
	}
}

// checkAnnotationKeys refuses one key for two meanings.
func (l *loader) checkAnnotationKeys() {
	r := &l.config.Roles
	if !l.usable("role-arn-annotation", "irsa-role-arn-annotation") {
		return
	}
	if r.RoleARNAnnotation == r.IRSARoleARNAnnotation {
		name, other := "role-arn-annotation", "irsa-role-arn-annotation"
		if l.given(other) {
			name, other = other, name
		}
		l.refuse(name, "is the key of --"+other+" too", "give each a key of its own")
	}
}

// checkAddresses refuses one address for two purposes.
func (l *loader) checkAddresses() {
	m, r := &l.config.Metadata, &l.config.Redirect
	if l.usable("agent-address", "metadata-address") && r.AgentAddress == m.Address {
		l.refuse("agent-address", "is the metadata address", "give "+l.flags.byName("agent-address").want)
	}
	if l.usable("agent-address-ipv6", "metadata-address-ipv6") && r.AgentAddressIPv6 == m.AddressIPv6 {
		l.refuse("agent-address-ipv6", "is the metadata address", "give "+l.flags.byName("agent-address-ipv6").want)
	}
}
