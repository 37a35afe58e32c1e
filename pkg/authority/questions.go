package authority

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// longestLifetime is the longest life of tokens that the policies in manifests grant.
const longestLifetime = 6 * time.Hour

// nobody is an audience and a label that nobody has.
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
	startupTaint = "manifests/options/startup-taint"
)

// questions returns what must be granted and what must be refused to the agent.
func (c Config) questions(s self) (needs, refusals []question) {
	switch c.Kind {
	case Direct:
		needs, refusals = c.tokens(c.Own, s)
		if !c.AnyAccount {
			refusals = append(refusals, question{"a token of a ServiceAccount that names no role", directTokens, func(ctx context.Context) error {
				_, err := request(ctx, c.Own, s.Namespace, "default", c.spec(s))
				return err
			}})
		}
		refusals = append(refusals, c.changed(c.Own, s, "a token bound to a pod by its name alone", func(spec *tokenSpec) {
			spec.BoundObjectRef.UID = ""
		}))
	case Node:
		needs, refusals = c.tokens(c.AsNode, s)
		needs = append(needs, question{"reading the pods of the node", nodeTokens, func(ctx context.Context) error {
			return listPods(ctx, c.AsNode, c.Node)
		}})
		refusals = append(refusals,
			question{"reading the pods of all nodes", nodeTokens, func(ctx context.Context) error {
				return listPods(ctx, c.AsNode, "")
			}},
			question{"acting as another node", nodeTokens, func(ctx context.Context) error {
				return listPods(ctx, c.AsAnother, c.Another)
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
		what := fmt.Sprintf("a token for %s of %s", audience, c.Lifetime)
		needs = append(needs, question{what, c.component(), func(ctx context.Context) error {
			spec := c.spec(s)
			spec.Audiences = []string{audience}
			token, err := request(ctx, who, s.Namespace, s.Account, spec)
			if err != nil {
				return err
			}
			return c.mustBeWorthless(ctx, token, audience)
		}})
	}
	tooLong := int64(max(c.Lifetime, longestLifetime)/time.Second) + 1
	return needs, []question{
		c.changed(who, s, "a token for the API server", func(spec *tokenSpec) { spec.Audiences = nil }),
		c.changed(who, s, "a token for an audience that nobody allowed", func(spec *tokenSpec) { spec.Audiences = []string{nobody} }),
		c.changed(who, s, "a token for two audiences", func(spec *tokenSpec) { spec.Audiences = append(spec.Audiences, nobody) }),
		c.changed(who, s, "a token that is not bound to a pod", func(spec *tokenSpec) { spec.BoundObjectRef = nil }),
		c.changed(who, s, "a token that lives longer", func(spec *tokenSpec) { spec.ExpirationSeconds = &tooLong }),
		// A binding may leave namespaces out, and this one matters most.
		{"a token of another namespace that is not bound to a pod", c.component(), func(ctx context.Context) error {
			spec := c.spec(s)
			spec.BoundObjectRef = nil
			_, err := request(ctx, who, metav1.NamespaceSystem, "default", spec)
			if apierrors.IsNotFound(err) { // as good as a refusal
				return apierrors.NewForbidden(corev1.Resource("serviceaccounts"), "default", err)
			}
			return err
		}},
	}
}

// changed is a request for a token of the agent's own ServiceAccount that differs from the usual one.
func (c Config) changed(who kubernetes.Interface, s self, what string, change func(*tokenSpec)) question {
	return question{what, c.component(), func(ctx context.Context) error {
		spec := c.spec(s)
		change(&spec)
		_, err := request(ctx, who, s.Namespace, s.Account, spec)
		return err
	}}
}

// mustBeWorthless holds that the API server does not take a token for AWS for a credential of its own, which it does where
// its --api-audiences have that audience: then policies that allow no other bound nothing.
func (c Config) mustBeWorthless(ctx context.Context, token, audience string) error {
	client, err := c.WithToken(token)
	if err != nil {
		return fmt.Errorf("make client with a token: %w", err)
	}
	_, err = client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	switch {
	case apierrors.IsUnauthorized(err):
		return nil
	case err == nil || answered(err):
		return c.fault(fmt.Sprintf("take %s out of the API server's --api-audiences, or say --token-authority=unverified", audience),
			"the API server itself takes tokens for %s", audience)
	}
	return err
}

func request(ctx context.Context, who kubernetes.Interface, namespace, account string, spec tokenSpec) (token string, err error) {
	granted, err := who.CoreV1().ServiceAccounts(namespace).CreateToken(
		ctx, account, &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return granted.Status.Token, nil
}

// listPods lists pods of a node; of all, if it is empty.
func listPods(ctx context.Context, who kubernetes.Interface, node string) error {
	options := metav1.ListOptions{Limit: 1}
	if node != "" {
		options.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", node).String()
	}
	_, err := who.CoreV1().Pods(metav1.NamespaceAll).List(ctx, options)
	return err
}

// ask makes all requests and holds the answers against what they must be. Needs come first: while the right to ask is not yet in
// force, everything is refused. What is too much counts more than what is lacking.
func (c Config) ask(ctx context.Context, s self, needs, refusals []question) error {
	var lacking *Fault
	for _, q := range needs {
		err := q.within(ctx)
		if fault, ok := errors.AsType[*Fault](err); ok {
			return fault
		}
		if err != nil && !answered(err) {
			return fmt.Errorf("ask for %s: %w", q.what, err)
		}
		if err != nil {
			lacking = c.fault(c.remedyForRefused(s), "%s is refused: %v", q.what, err)
			lacking.Lacking = true
			break
		}
	}
	var granted, policies []string
	for _, q := range refusals {
		switch err := q.within(ctx); {
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
	switch {
	case len(granted) > 0:
		return c.fault(fmt.Sprintf("apply the policies of %s; in another namespace than podrole, have them name %s (docs/security.md says how)",
			strings.Join(policies, " and "), s.User), "the agent is granted what it must be refused: %s", strings.Join(granted, ", "))
	case lacking != nil:
		return lacking
	}
	return nil
}

// within asks for as long as a request may take.
func (q question) within(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return q.ask(ctx)
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
	return fmt.Sprintf("apply %s for ServiceAccount %s/%s, and have its policies allow that one's tokens, the audiences of --audiences "+
		"and the life of --token-lifetime", directTokens, s.Namespace, s.Account)
}
