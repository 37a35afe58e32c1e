package kubetest

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

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
	if _, err := negotiate(x.r.Header.Values("Accept"), ""); err != nil {
		return err
	}
	in, err := x.decodeTokenRequest()
	if err != nil {
		return err
	}
	namespace, name := x.target.namespace, x.target.name
	account, ok := x.api.store.get("serviceaccounts", namespace, name)
	if !ok {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "serviceaccounts"}, name)
	}
	if err := validateTokenRequest(in, namespace, name); err != nil {
		return err
	}
	claims := awstest.TokenRequest{
		Namespace: namespace, ServiceAccount: name, ServiceAccountUID: string(account.GetUID()),
		Audiences: in.Spec.Audiences, Lifetime: time.Duration(*in.Spec.ExpirationSeconds) * time.Second,
	}
	if ref := in.Spec.BoundObjectRef; ref != nil {
		pod, err := x.boundPod(ref)
		if err != nil {
			return err
		}
		// There are no Nodes here; the API server, too, writes down the name of one that it does not find.
		claims.Pod, claims.PodUID, claims.Node = pod.Name, string(pod.UID), pod.Spec.NodeName
	}
	now := time.Now()
	token, err := x.api.cfg.Signer.Token(claims)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	x.api.store.change(func(s *store) { s.tokens = append(s.tokens, token) })
	in.SetGroupVersionKind(authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"))
	in.Name, in.Namespace, in.CreationTimestamp = name, namespace, metav1.NewTime(now)
	in.Status = authenticationv1.TokenRequestStatus{Token: token, ExpirationTimestamp: metav1.NewTime(now.Add(claims.Lifetime))}
	return x.answer(http.StatusCreated, in)
}

// decodeTokenRequest reads the body and fills in defaults.
func (x *exchange) decodeTokenRequest() (*authenticationv1.TokenRequest, error) {
	decoded, err := x.decodeBody()
	if err != nil {
		return nil, err
	}
	in, ok := decoded.(*authenticationv1.TokenRequest)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("want a TokenRequest, got %T", decoded))
	}
	if in.Spec.ExpirationSeconds == nil {
		in.Spec.ExpirationSeconds = new(int64(3600))
	}
	if len(in.Spec.Audiences) == 0 {
		in.Spec.Audiences = []string{"https://kubernetes.default.svc"}
	}
	return in, nil
}

func validateTokenRequest(in *authenticationv1.TokenRequest, namespace, name string) error {
	var errs field.ErrorList
	if in.Name != "" && in.Name != name {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), in.Name, "is not the ServiceAccount of the path"))
	}
	if in.Namespace != "" && in.Namespace != namespace {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "namespace"), in.Namespace, "is not the namespace of the path"))
	}
	if s := *in.Spec.ExpirationSeconds; s < minTokenSeconds || s > maxTokenSeconds {
		errs = append(errs, field.Invalid(field.NewPath("spec", "expirationSeconds"), s, "must be 10 minutes to 2^32 seconds"))
	}
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(authenticationv1.SchemeGroupVersion.WithKind("TokenRequest").GroupKind(), name, errs)
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
