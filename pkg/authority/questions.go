package authority

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// longestLifetime is the longest life of tokens that the policies in manifests grant.
const longestLifetime = 6 * time.Hour

// nobody is an audience, a label and a part of a node's name that nobody has.
const nobody = "podrole.io/must-be-refused"

// question is a request to the API server. One that is granted but must be refused changes nothing: a token is thrown away,
// and a change is a dry run.
type question struct {
	what   string
	policy string // folder of the manifests that see to the answer
	ask    func(context.Context) error
}

// Folders of manifests.
const (
	directTokens = "manifests/policies/direct-tokens"
	nodeTokens   = "manifests/policies/node-tokens"
	startupTaint = "manifests/overlays/startup-taint"
)

// questions returns what must be granted and what must be refused to the agent.
func (c Config) questions(s self) (needs, refusals []question) {
	switch c.Kind {
	case Direct:
		needs, refusals = c.tokens(c.Own, s)
		if !c.AnyAccount {
			refusals = append(refusals, question{"a token of a ServiceAccount that names no role", directTokens, func(ctx context.Context) error {
				return request(ctx, c.Own, s, "default", c.spec(s))
			}})
		}
		refusals = append(refusals, c.changed(c.Own, s, "a token bound to a pod by its name alone", func(spec *tokenSpec) {
			spec.BoundObjectRef.UID = ""
		}))
	case Node:
		needs, refusals = c.tokens(c.AsNode, s)
		needs = append(needs, question{"reading the pods of the node", nodeTokens, func(ctx context.Context) error {
			return listPods(ctx, c.AsNode, "spec.nodeName="+c.Node)
		}})
		refusals = append(refusals,
			question{"reading the pods of all nodes", nodeTokens, func(ctx context.Context) error {
				return listPods(ctx, c.AsNode, "")
			}},
			question{"acting as another node", nodeTokens, func(ctx context.Context) error {
				return listPods(ctx, c.AsAnother, "spec.nodeName="+c.Node)
			}},
		)
	}
	if c.StartupTaint {
		refusals = append(refusals, question{"labelling the Node", startupTaint, func(ctx context.Context) error {
			patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:"yes"}}}`, nobody)
			options := metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}
			_, err := c.Own.CoreV1().Nodes().Patch(ctx, c.Node, types.MergePatchType, patch, options)
			return err
		}})
	}
	return needs, refusals
}

type tokenSpec = authenticationv1.TokenRequestSpec

// spec is what the agent asks for all the time, for its own pod.
func (c Config) spec(s self) tokenSpec {
	return tokenSpec{
		Audiences:         []string{c.Audiences[0]},
		ExpirationSeconds: new(int64(c.Lifetime / time.Second)),
		BoundObjectRef: &authenticationv1.BoundObjectReference{
			APIVersion: "v1", Kind: "Pod", Name: s.Pod, UID: types.UID(s.PodUID),
		},
	}
}

// tokens returns the requests for tokens of the agent's own ServiceAccount: such as it makes for pods, and such as nobody
// makes but a thief of its credentials.
func (c Config) tokens(who kubernetes.Interface, s self) (needs, refusals []question) {
	for _, audience := range c.Audiences {
		needs = append(needs, c.changed(who, s, fmt.Sprintf("a token for %s of %s", audience, c.Lifetime), func(spec *tokenSpec) {
			spec.Audiences = []string{audience}
		}))
	}
	tooLong := int64(max(c.Lifetime, longestLifetime)/time.Second) + 1
	return needs, []question{
		c.changed(who, s, "a token for the API server", func(spec *tokenSpec) { spec.Audiences = nil }),
		c.changed(who, s, "a token for an audience that nobody allowed", func(spec *tokenSpec) { spec.Audiences = []string{nobody} }),
		c.changed(who, s, "a token for two audiences", func(spec *tokenSpec) { spec.Audiences = append(spec.Audiences, nobody) }),
		c.changed(who, s, "a token that is not bound to a pod", func(spec *tokenSpec) { spec.BoundObjectRef = nil }),
		c.changed(who, s, "a token that lives longer", func(spec *tokenSpec) { spec.ExpirationSeconds = &tooLong }),
	}
}

// changed is a request for a token of the agent's own ServiceAccount that differs from the usual one.
func (c Config) changed(who kubernetes.Interface, s self, what string, change func(*tokenSpec)) question {
	return question{what, c.component(), func(ctx context.Context) error {
		spec := c.spec(s)
		change(&spec)
		return request(ctx, who, s, s.Account, spec)
	}}
}

func request(ctx context.Context, who kubernetes.Interface, s self, account string, spec tokenSpec) error {
	_, err := who.CoreV1().ServiceAccounts(s.Namespace).CreateToken(
		ctx, account, &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	return err
}

func listPods(ctx context.Context, who kubernetes.Interface, selector string) error {
	_, err := who.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: selector, Limit: 1})
	return err
}

// ask makes all requests and holds the answers against what they must be. What is too much counts more than what is lacking.
func (c Config) ask(ctx context.Context, s self, needs, refusals []question) error {
	var granted, policies []string
	for _, q := range refusals {
		switch err := q.ask(ctx); {
		case refused(err):
		case err == nil || answered(err): // no policy had anything against it
			granted = append(granted, q.what)
			if !slices.Contains(policies, q.policy) {
				policies = append(policies, q.policy)
			}
		default:
			return fmt.Errorf("ask for %s: %w", q.what, err)
		}
	}
	if len(granted) > 0 {
		return c.fault(fmt.Sprintf("apply the policies of %s; in another namespace than podrole, have them name %s (docs/security.md says how)",
			strings.Join(policies, " and "), s.User), "the agent is granted what it must be refused: %s", strings.Join(granted, ", "))
	}
	for _, q := range needs {
		switch err := q.ask(ctx); {
		case err == nil:
		case answered(err):
			fault := c.fault(c.remedyForRefused(s), "%s is refused: %v", q.what, err)
			fault.Lacking = true
			return fault
		default:
			return fmt.Errorf("ask for %s: %w", q.what, err)
		}
	}
	return nil
}

// answered reports whether the API server said no, for whatever reason, rather than that it cannot answer now.
func answered(err error) bool {
	status, ok := errors.AsType[*apierrors.StatusError](err)
	if !ok || apierrors.IsUnauthorized(err) || apierrors.IsTooManyRequests(err) {
		return false
	}
	return status.ErrStatus.Code >= 400 && status.ErrStatus.Code < 500
}

// refused reports whether err is a refusal by right (RBAC, node authorizer, NodeRestriction) or by admission (a policy, a
// webhook). That a request makes no sense is none: who says so had nothing else against it.
func refused(err error) bool {
	if apierrors.IsForbidden(err) {
		return true
	}
	return answered(err) && (strings.Contains(err.Error(), "ValidatingAdmissionPolicy") ||
		strings.Contains(err.Error(), "denied the request"))
}

// component is the folder of manifests that an authority comes from.
func (c Config) component() string {
	if c.Kind == Node {
		return nodeTokens
	}
	return directTokens
}

func (c Config) remedyForRefused(s self) string {
	if c.Kind == Node {
		return fmt.Sprintf("apply %s, for ServiceAccount %s/%s, on Kubernetes 1.36 or later", nodeTokens, s.Namespace, s.Account)
	}
	return fmt.Sprintf("apply %s for ServiceAccount %s/%s, which needs the annotation podrole.io/role-arn: \"\", and have its policies "+
		"allow the audiences of --audiences and the life of --token-lifetime", directTokens, s.Namespace, s.Account)
}
