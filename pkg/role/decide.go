package role

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Limits of a session's duration.
const (
	// MinDuration is the shortest session STS mints
	// (https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html).
	MinDuration = 15 * time.Minute
	// MaxDuration is the longest maximum a role can be given.
	MaxDuration = 12 * time.Hour
	// MaxChainedDuration is the longest session of a role that is assumed with another role's credentials. It is applied
	// to every assume-role, since the agent's own credentials are as a rule a role's (https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_use.html, role chaining).
	MaxChainedDuration = time.Hour
)

// Limits of an external ID (https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html).
const (
	minExternalID = 2
	maxExternalID = 1224
)

// Keys are the annotation keys that a decision reads.
type Keys struct {
	RoleARN         string // on ServiceAccounts: podrole's own, which the IRSA webhook does not read
	IRSARoleARN     string // on ServiceAccounts: what IRSA users already have
	IRSAAudience    string // on ServiceAccounts, beside IRSARoleARN
	PodRole         string // on pods: what kube2iam and kiam users already have
	ExternalID      string // beside the role
	SessionName     string // beside the role
	SessionDuration string // beside the role
	AllowedRoles    string // on Namespaces: kube2iam's permission
	Permitted       string // on Namespaces: kiam's permission
	MetadataAllow   string // on ServiceAccounts: what their pods may read of the node's metadata
}

// DefaultKeys returns the keys as podrole, IRSA, kube2iam and kiam document them.
func DefaultKeys() Keys {
	return Keys{
		RoleARN:         "podrole.io/role-arn",
		IRSARoleARN:     "eks.amazonaws.com/role-arn",
		IRSAAudience:    "eks.amazonaws.com/audience",
		PodRole:         "iam.amazonaws.com/role",
		ExternalID:      "iam.amazonaws.com/external-id",
		SessionName:     "iam.amazonaws.com/session-name",
		SessionDuration: "podrole.io/session-duration",
		AllowedRoles:    "iam.amazonaws.com/allowed-roles",
		Permitted:       "iam.amazonaws.com/permitted",
		MetadataAllow:   "podrole.io/metadata-allow",
	}
}

// Policy is the operator's part of every decision. It is safe for concurrent use as long as nobody changes it.
type Policy struct {
	Keys              Keys
	Source            Source        // required: the credential source of every Grant
	BaseARN           string        // what bare role names are appended to; empty: bare names are Malformed
	DefaultRole       string        // role of workloads that name none; empty: such workloads are denied
	PodAnnotations    bool          // whether Keys.PodRole counts
	AllowedAsRegexps  bool          // whether Keys.AllowedRoles lists regular expressions; else globs
	RequirePermission bool          // with AssumeRole: whether a Namespace without permissions permits nothing
	Duration          time.Duration // required: of sessions whose annotations say nothing
	Audiences         []string      // with WebIdentity, required: token audiences; the first is the default
	SessionTags       bool          // with AssumeRole: whether sessions carry Tags
	Cluster           string        // value of the cluster tag
	Node              string        // part of the session name
}

// Facts is all that a decision is made from, read from the API server. A missing annotation map means that the object
// has no annotations, never that it was not read.
type Facts struct {
	Workload                 Workload
	Pod                      map[string]string
	ServiceAccount           map[string]string
	Namespace                map[string]string
	ServiceAccountWasDeleted bool
	// Bypass names a variable in the pod's environment that leads SDKs elsewhere for credentials; empty: none. It changes
	// no decision: the pod may have other programs.
	Bypass string
}

// Decide returns the Grant of the workload that f describes, or the *Denial that says why it has none. The role is
// the first found of: podrole's annotation on the ServiceAccount, IRSA's there, the pod's annotation, the default. An
// annotation that is present and empty ends the search with a Denial.
func (p *Policy) Decide(f Facts) (Grant, error) {
	if f.ServiceAccountWasDeleted {
		return Grant{}, deny(ServiceAccountDeleted, "ServiceAccount %s/%s was deleted; create it again, or delete the pod",
			f.Workload.Namespace, f.Workload.ServiceAccount)
	}
	named, err := p.find(f)
	if err != nil {
		return Grant{}, err
	}
	arn, err := resolve(named.role, p.BaseARN)
	if err != nil {
		return Grant{}, deny(Malformed, "%s: %v", named.where, err)
	}
	if err := p.permit(f, named, arn); err != nil {
		return Grant{}, err
	}
	g := Grant{
		Namespace:      f.Workload.Namespace,
		ServiceAccount: f.Workload.ServiceAccount,
		RoleARN:        arn,
		Duration:       p.Duration,
		SessionName:    SessionName(f.Workload.Namespace, f.Workload.ServiceAccount, p.Node),
		Source:         p.Source,
	}
	if p.Source == WebIdentity {
		g.Audience = p.Audiences[0]
	}
	if p.SessionTags && p.Source == AssumeRole { // AssumeRoleWithWebIdentity has no parameter for tags
		g.Tags = Tags{Cluster: p.Cluster, Namespace: g.Namespace, ServiceAccount: g.ServiceAccount}
	}
	return p.shape(g, named)
}

// MetadataAllow returns what the ServiceAccount allows the pod to read of the node's metadata beyond what every pod may, as
// it is written there: nothing, if the ServiceAccount says nothing or is gone. It has nothing to do with the role.
func (p *Policy) MetadataAllow(f Facts) string {
	if f.ServiceAccountWasDeleted {
		return ""
	}
	return f.ServiceAccount[p.Keys.MetadataAllow]
}

// named is a role that some object names.
type named struct {
	role        string
	where       string            // the object and key, for messages
	annotations map[string]string // of that object: they shape the session
	isDefault   bool
}

// find walks the sources in their order. The first key that is present decides, also when it takes the role away.
func (p *Policy) find(f Facts) (named, error) {
	account := fmt.Sprintf("ServiceAccount %s/%s", f.Workload.Namespace, f.Workload.ServiceAccount)
	sources := []struct {
		object      string
		key         string
		annotations map[string]string
		on          bool
	}{
		{account, p.Keys.RoleARN, f.ServiceAccount, true},
		{account, p.Keys.IRSARoleARN, f.ServiceAccount, true},
		{"pod " + f.Workload.String(), p.Keys.PodRole, f.Pod, p.PodAnnotations},
	}
	for _, s := range sources {
		value, present := s.annotations[s.key]
		if !s.on || !present {
			continue
		}
		where := fmt.Sprintf("annotation %s of %s", s.key, s.object)
		if value == "" {
			return named{}, deny(Revoked, "%s is empty, which takes the role away; name a role, or remove the annotation", where)
		}
		return named{role: value, where: where, annotations: s.annotations}, nil
	}
	if p.DefaultRole != "" {
		return named{role: p.DefaultRole, where: "--default-role", isDefault: true}, nil
	}
	return named{}, deny(NoRole, "%s names no role; annotate it with %s: ROLE_ARN", account, p.Keys.RoleARN)
}

// permit asks the Namespace. Its permissions bind whatever the source, as soon as one is present; where the node may
// assume the roles of everyone (AssumeRole), one must be. The default role is the operator's own choice and exempt, as
// in kube2iam.
func (p *Policy) permit(f Facts, n named, arn string) error {
	if n.isDefault {
		return nil
	}
	perm, err := parsePermission(f.Namespace, p)
	switch {
	case err != nil:
		return deny(Malformed, "Namespace %s: annotation %v", f.Workload.Namespace, err)
	case !perm.present && p.Source == AssumeRole && p.RequirePermission:
		return deny(NotPermitted, "Namespace %s permits no role; annotate it with %s: '[\"%s\"]'",
			f.Workload.Namespace, p.Keys.AllowedRoles, arn)
	case !perm.allows(arn):
		return deny(NotPermitted, "Namespace %s does not permit %s; extend its annotation %s or %s",
			f.Workload.Namespace, arn, p.Keys.AllowedRoles, p.Keys.Permitted)
	}
	return nil
}

// Forbids returns the Denial if the Namespace of f, as it is now, forbids the role of a Grant that was made earlier, and nil if
// it permits it or cannot be read. Who keeps a Grant in spite of an annotation that cannot be read asks this first:
// what can be read still binds.
func (p *Policy) Forbids(f Facts, g Grant) error {
	fallback, err := resolve(p.DefaultRole, p.BaseARN)
	n := named{isDefault: err == nil && fallback == g.RoleARN}
	denial, ok := errors.AsType[*Denial](p.permit(f, n, g.RoleARN))
	if !ok || denial.Reason == Malformed {
		return nil
	}
	return denial
}

// shape applies what the annotations beside the role say about the session.
func (p *Policy) shape(g Grant, n named) (Grant, error) {
	if text, ok := n.annotations[p.Keys.SessionDuration]; ok {
		d, err := parseDuration(text, p.Source)
		if err != nil {
			return Grant{}, deny(Malformed, "%s beside %s: %v", p.Keys.SessionDuration, n.where, err)
		}
		g.Duration = d
	}
	if id, ok := n.annotations[p.Keys.ExternalID]; ok && id != "" {
		if len(id) < minExternalID || len(id) > maxExternalID {
			return Grant{}, deny(Malformed, "%s beside %s: an external ID has %d to %d characters, this one %d",
				p.Keys.ExternalID, n.where, minExternalID, maxExternalID, len(id))
		}
		if p.Source == WebIdentity {
			return Grant{}, deny(Unsupported,
				"%s beside %s: AssumeRoleWithWebIdentity takes no external ID; remove it, or use --credential-source=assume-role",
				p.Keys.ExternalID, n.where)
		}
		g.ExternalID = id
	}
	if name, ok := n.annotations[p.Keys.SessionName]; ok && name != "" {
		g.SessionName = CustomSessionName(g.Namespace, name)
	}
	if audience, ok := n.annotations[p.Keys.IRSAAudience]; ok && p.Source == WebIdentity {
		if !slices.Contains(p.Audiences, audience) {
			return Grant{}, deny(Unsupported, "%s beside %s: %s is none of --audiences", p.Keys.IRSAAudience, n.where, quote(audience))
		}
		g.Audience = audience
	}
	return g, nil
}

// parseDuration reads seconds, as AWS writes durations, or a Go duration such as 1h30m.
func parseDuration(text string, source Source) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if seconds, numErr := strconv.ParseInt(text, 10, 32); numErr == nil {
		d, err = time.Duration(seconds)*time.Second, nil
	}
	if err != nil {
		return 0, fmt.Errorf("%s is neither seconds nor a duration such as 1h30m", quote(text))
	}
	longest := MaxDuration
	if source == AssumeRole {
		longest = MaxChainedDuration
	}
	if d < MinDuration || d > longest {
		return 0, fmt.Errorf("%s is outside %s to %s, which is what STS allows with %s", d, MinDuration, longest, source)
	}
	return d.Truncate(time.Second), nil
}

// quote quotes what somebody wrote into an annotation, cut to a length that a log line can bear.
func quote(text string) string {
	const longest = 100
	if len(text) > longest {
		return strconv.Quote(text[:longest]) + "…"
	}
	return strconv.Quote(text)
}

func deny(r Reason, format string, args ...any) *Denial {
	return &Denial{Reason: r, Message: fmt.Sprintf(format, args...)}
}
