package authority_test

import (
	"errors"
	"slices"
	"strings"
	"sync"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

const (
	agent = "system:serviceaccount:podrole:podrole"
	own   = "system:node:node-1"
)

// apiServer is an API server as the manifests set it up, unless changed. Fields are changed before it is asked, or under mu.
type apiServer struct {
	mu     sync.Mutex
	user   authenticationv1.UserInfo
	rights []string // such as "create serviceaccounts/token", beyond those of everybody
	// token, list and patch decide on requests: nil is granted.
	token   func(who, account string, spec authenticationv1.TokenRequestSpec) error
	list    func(who, selector string) error
	patch   func(dryRun []string) error
	down    error
	asked   int
	fail    int // the request that fails with failure; 0: none
	failure error
	taken   bool // tokens for AWS are taken by the API server
}

func newAPIServer() *apiServer {
	return &apiServer{
		user: authenticationv1.UserInfo{Username: agent, Extra: map[string]authenticationv1.ExtraValue{
			"authentication.kubernetes.io/node-name": {"node-1"},
			"authentication.kubernetes.io/pod-name":  {"podrole-abcde"},
			"authentication.kubernetes.io/pod-uid":   {"1234"},
		}},
		token: noToken, list: noPods, patch: func([]string) error { return denied("podrole-startup-taint") },
	}
}

func forbidden(resource string) error {
	return apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "x", errors.New("no right"))
}

// denied is how the API server says that a policy refuses.
func denied(policy string) error {
	err := apierrors.NewForbidden(schema.GroupResource{Resource: "x"}, "x",
		errors.New("ValidatingAdmissionPolicy '"+policy+"' with binding '"+policy+"' denied request: no"))
	err.ErrStatus.Reason, err.ErrStatus.Code = metav1.StatusReasonInvalid, 422
	return err
}

func noToken(string, string, authenticationv1.TokenRequestSpec) error {
	return forbidden("serviceaccounts")
}
func noPods(string, string) error { return forbidden("pods") }

// shaped refuses what is not the token that agents ask for.
func shaped(spec authenticationv1.TokenRequestSpec) error {
	ref := spec.BoundObjectRef
	if !slices.Equal(spec.Audiences, []string{"sts.amazonaws.com"}) || *spec.ExpirationSeconds > 21600 ||
		ref == nil || ref.Name != "podrole-abcde" || ref.UID != "1234" {
		return denied("podrole-token-shape")
	}
	return nil
}

// direct is manifests/policies/direct-tokens.
func direct() *apiServer {
	s := newAPIServer()
	s.rights = []string{"create serviceaccounts/token"}
	s.token = func(who, account string, spec authenticationv1.TokenRequestSpec) error {
		switch {
		case who != "":
			return forbidden("nodes")
		case account != "podrole":
			return denied("podrole-token-role")
		}
		return shaped(spec)
	}
	return s
}

// node is manifests/policies/node-tokens.
func node() *apiServer {
	s := newAPIServer()
	s.rights = []string{"impersonate:associated-node nodes.authentication.k8s.io"}
	s.token = func(who, _ string, spec authenticationv1.TokenRequestSpec) error {
		if who != own {
			return forbidden("nodes")
		}
		return shaped(spec)
	}
	s.list = func(who, selector string) error {
		if who != own || selector != "spec.nodeName=node-1" {
			return forbidden("pods")
		}
		return nil
	}
	return s
}

// as returns a client of s. who is empty for the agent itself.
func (s *apiServer) as(who string) kubernetes.Interface {
	clients := fake.NewClientset()
	clients.PrependReactor("*", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.asked++; s.asked == s.fail {
			return true, nil, s.failure
		}
		if s.down != nil {
			return true, nil, s.down
		}
		switch a := action.(type) {
		case clienttesting.CreateActionImpl:
			object, err := s.create(who, a)
			return true, object, err
		case clienttesting.ListActionImpl:
			return true, &corev1.PodList{}, s.list(who, a.ListRestrictions.Fields.String())
		case clienttesting.PatchActionImpl:
			return true, &corev1.Node{}, s.patch(a.PatchOptions.DryRun)
		}
		return true, nil, errors.New("nobody asks for that")
	})
	return clients
}

func (s *apiServer) create(who string, a clienttesting.CreateActionImpl) (runtime.Object, error) {
	switch in := a.Object.(type) {
	case *authenticationv1.SelfSubjectReview:
		if strings.HasPrefix(who, "bearer ") && !s.taken {
			return nil, apierrors.NewUnauthorized("Unauthorized")
		}
		in.Status.UserInfo = s.user
		return in, nil
	case *authorizationv1.SelfSubjectAccessReview:
		r := in.Spec.ResourceAttributes
		text := r.Verb + " " + strings.TrimSuffix(r.Resource+"/"+r.Subresource, "/") + strings.TrimSuffix("."+r.Group, ".")
		in.Status.Allowed = slices.Contains(s.rights, text) || slices.Contains(s.rights, "everything") ||
			r.Namespace != "" && slices.Contains(s.rights, text+" in "+r.Namespace)
		return in, nil
	case *authenticationv1.TokenRequest:
		in.Status.Token = "t-" + a.Namespace + "-" + a.Name
		account := a.Name
		if a.Namespace != "podrole" {
			account = a.Namespace + "/" + a.Name
		}
		return in, s.token(who, account, in.Spec)
	}
	return nil, errors.New("nobody creates that")
}
