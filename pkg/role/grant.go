package role

import (
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Workload is the calling pod. It is comparable and safe to use as a map key.
type Workload struct {
	Namespace      string
	Name           string
	UID            string
	ServiceAccount string
}

// String returns namespace/name, the form Kubernetes tools print.
func (w Workload) String() string { return w.Namespace + "/" + w.Name }

// LogValue implements slog.LogValuer.
func (w Workload) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("namespace", w.Namespace),
		slog.String("name", w.Name),
		slog.String("uid", w.UID),
		slog.String("service_account", w.ServiceAccount),
	)
}

// Source says where the credentials of a Grant come from.
type Source string

const (
	// WebIdentity is TokenRequest for the pod's ServiceAccount followed by sts:AssumeRoleWithWebIdentity:
	// the role's own IRSA trust policy is the judge.
	WebIdentity Source = "web-identity"
	// AssumeRole is sts:AssumeRole with the node's or the agent's own credentials, as kube2iam and kiam do.
	AssumeRole Source = "assume-role"
)

// Tags are the session tags of a Grant. The zero value sends none: a role's trust policy must allow
// sts:TagSession before any tag may be sent, which kube2iam's and kiam's do not.
type Tags struct {
	Cluster        string
	Namespace      string
	ServiceAccount string
}

// Grant is the role a Workload may use, with all that shapes its session. It is comparable: two pods share a
// session exactly when their Grants are equal, which takes the same ServiceAccount and the same everything.
type Grant struct {
	Namespace      string
	ServiceAccount string
	RoleARN        string
	ExternalID     string
	Duration       time.Duration // of the session, as asked of STS
	SessionName    string
	Audience       string // of the ServiceAccount token; empty with AssumeRole
	Tags           Tags
	Source         Source
}

// RoleName returns the last segment of the role's ARN: the name under which the metadata service lists it.
// Role names are unique in an account whatever their path
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html).
func (g Grant) RoleName() string { return g.RoleARN[strings.LastIndexByte(g.RoleARN, '/')+1:] }

// LogValue implements slog.LogValuer. An external ID is not a secret to AWS, but it is not ours to print either.
func (g Grant) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("namespace", g.Namespace),
		slog.String("service_account", g.ServiceAccount),
		slog.String("role_arn", g.RoleARN),
		slog.String("source", string(g.Source)),
	)
}

// Reason is why a Workload gets no role. The set is fixed: reasons are metric labels.
type Reason string

const (
	// NoRole: neither the ServiceAccount nor the pod names a role, and there is no default.
	NoRole Reason = "no-role"
	// Revoked: the role annotation is present and empty, which takes the role away and falls through to nothing.
	Revoked Reason = "revoked"
	// Malformed: an annotation of the ServiceAccount, the pod or the Namespace cannot be read.
	Malformed Reason = "malformed"
	// NotPermitted: the Namespace's permissions do not allow the role, or it has none where one is required.
	NotPermitted Reason = "not-permitted"
	// Unsupported: an annotation asks for what the credential source cannot do.
	Unsupported Reason = "unsupported"
	// ServiceAccountDeleted: the pod's ServiceAccount no longer exists.
	ServiceAccountDeleted Reason = "service-account-deleted"
)

// Denial says why a Workload may not use any role. As an error it is final until one of the objects it was
// decided on changes.
type Denial struct {
	Reason  Reason
	Message string // what is wrong, on which object, and what to do
}

// Error implements error.
func (d *Denial) Error() string { return fmt.Sprintf("denied (%s): %s", d.Reason, d.Message) }
