package kubetest

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/podrole/podrole/internal/awstest"
)

const (
	// minTokenSeconds and maxTokenSeconds bound the lifetime that may be asked for
	// (https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-request-v1/ and its validation).
	minTokenSeconds = 600
	maxTokenSeconds = 1 << 32
)

// createToken is TokenRequest: a token for a ServiceAccount, bound to a pod if that is asked for. The checks and their
// order are those of the API server (https://github.com/kubernetes/kubernetes, pkg/registry/core/serviceaccount/storage).
func (x *exchange) createToken() error {
	in, err := decode[*authenticationv1.TokenRequest](x)
	if err != nil {
		return err
	}
	if in.Spec.ExpirationSeconds == nil {
		in.Spec.ExpirationSeconds = new(int64(3600))
	}
	namespace, name := x.target.namespace, x.target.name
	if node, ok := nodeOf(x.user); ok {
		if err := x.restrictNode(node, in); err != nil {
			return err
		}
	}
	if err := validateTokenRequestMeta(in, namespace, name); err != nil {
		return err
	}
	o, ok := x.api.store.get("serviceaccounts", namespace, name)
	if !ok {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "serviceaccounts"}, name)
	}
	now := time.Now()
	if err := prepareTokenRequest(in, o.(*corev1.ServiceAccount), now); err != nil {
		return err
	}
	err = x.admit(proposal{operation: admissionv1.Create, kind: tokenRequestKind(), object: in})
	if err != nil {
		return err
	}
	claims := awstest.TokenRequest{
		Namespace: namespace, ServiceAccount: name, ServiceAccountUID: string(o.GetUID()),
		Audiences: in.Spec.Audiences, Lifetime: time.Duration(*in.Spec.ExpirationSeconds) * time.Second,
	}
	if ref := in.Spec.BoundObjectRef; ref != nil {
		pod, err := x.boundPod(ref)
		if err != nil {
			return err
		}
		// The API server, too, writes down the name of a Node that it does not find.
		claims.Pod, claims.PodUID, claims.Node = pod.Name, string(pod.UID), pod.Spec.NodeName
		if node, ok := x.api.store.get("nodes", "", pod.Spec.NodeName); ok {
			claims.NodeUID = string(node.GetUID())
		}
	}
	token, err := x.api.cfg.Signer.Token(claims)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	x.api.store.change(func(s *store) { s.tokens = append(s.tokens, token) })
	in.SetGroupVersionKind(tokenRequestKind())
	in.Status = authenticationv1.TokenRequestStatus{Token: token, ExpirationTimestamp: metav1.NewTime(now.Add(claims.Lifetime))}
	return x.answer(http.StatusCreated, in)
}

func tokenRequestKind() schema.GroupVersionKind {
	return authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")
}

// validateTokenRequestMeta holds what the request says of its ServiceAccount against the path.
func validateTokenRequestMeta(in *authenticationv1.TokenRequest, namespace, name string) error {
	var errs field.ErrorList
	if in.Name != "" && in.Name != name {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), in.Name, "is not the ServiceAccount of the path"))
	}
	if in.Namespace != "" && in.Namespace != namespace {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "namespace"), in.Namespace, "is not the namespace of the path"))
	}
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(tokenRequestKind().GroupKind(), name, errs)
}

// prepareTokenRequest makes of a request what policies see: defaults filled in, and valid.
func prepareTokenRequest(in *authenticationv1.TokenRequest, account *corev1.ServiceAccount, now time.Time) error {
	if in.UID != "" && in.UID != account.UID {
		return apierrors.NewConflict(schema.GroupResource{Group: authenticationv1.GroupName, Resource: "TokenRequest"}, account.Name,
			errors.New("the UID in the token request is not that of the ServiceAccount"))
	}
	if len(in.Spec.Audiences) == 0 {
		in.Spec.Audiences = []string{"https://kubernetes.default.svc"}
	}
	in.Name, in.Namespace, in.UID, in.CreationTimestamp = account.Name, account.Namespace, account.UID, metav1.NewTime(now)
	in.Status = authenticationv1.TokenRequestStatus{}
	if s := *in.Spec.ExpirationSeconds; s < minTokenSeconds || s > maxTokenSeconds {
		return apierrors.NewInvalid(tokenRequestKind().GroupKind(), "", field.ErrorList{
			field.Invalid(field.NewPath("spec", "expirationSeconds"), s, "must be 10 minutes to 2^32 seconds"),
		})
	}
	return nil
}

// boundPod returns the pod that a token is to be bound to.
func (x *exchange) boundPod(ref *authenticationv1.BoundObjectReference) (*corev1.Pod, error) {
	if ref.Kind != "Pod" || ref.APIVersion != "v1" {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("tokens are bound to v1 Pods here, not to %s %s", ref.APIVersion, ref.Kind))
	}
	o, ok := x.api.store.get("pods", x.target.namespace, ref.Name)
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, ref.Name)
	}
	pod := o.(*corev1.Pod)
	if pod.Spec.ServiceAccountName != x.target.name {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("pod %s runs as ServiceAccount %q, not as %q",
			ref.Name, pod.Spec.ServiceAccountName, x.target.name))
	}
	if ref.UID != "" && ref.UID != pod.UID {
		return nil, apierrors.NewConflict(schema.GroupResource{Resource: "Pod"}, ref.Name,
			errors.New("the pod's UID is another: it has been deleted and created anew"))
	}
	return pod, nil
}

// Tokens returns every token that was granted, oldest first: what no log may hold.
func (a *API) Tokens() []string {
	a.store.mu.Lock()
	defer a.store.mu.Unlock()
	return slices.Clone(a.store.tokens)
}
