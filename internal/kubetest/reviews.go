package kubetest

import (
	"fmt"
	"net/http"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// reviewSelf is SelfSubjectReview: who the client is to the API server.
func (x *exchange) reviewSelf() error {
	in, err := decode[*authenticationv1.SelfSubjectReview](x)
	if err != nil {
		return err
	}
	in.SetGroupVersionKind(authenticationv1.SchemeGroupVersion.WithKind("SelfSubjectReview"))
	in.CreationTimestamp = metav1.Now()
	in.Status.UserInfo = x.user
	return x.answer(http.StatusCreated, in)
}

// reviewAccess is SelfSubjectAccessReview: whether the client may do something. Selectors are not modelled.
func (x *exchange) reviewAccess() error {
	in, err := decode[*authorizationv1.SelfSubjectAccessReview](x)
	if err != nil {
		return err
	}
	if err := validateAccessReview(in); err != nil {
		return err
	}
	var t target
	if a := in.Spec.ResourceAttributes; a != nil {
		t = target{
			verb: a.Verb, group: a.Group, version: a.Version, resource: a.Resource, subresource: a.Subresource,
			namespace: a.Namespace, name: a.Name,
		}
	} else {
		t = target{verb: in.Spec.NonResourceAttributes.Verb, path: in.Spec.NonResourceAttributes.Path}
	}
	in.SetGroupVersionKind(authorizationv1.SchemeGroupVersion.WithKind("SelfSubjectAccessReview"))
	in.Status = authorizationv1.SubjectAccessReviewStatus{Allowed: x.api.allows(x.user, t)}
	return x.answer(http.StatusCreated, in)
}

// validateAccessReview checks what the API server checks
// (https://github.com/kubernetes/kubernetes, pkg/apis/authorization/validation).
func validateAccessReview(in *authorizationv1.SelfSubjectAccessReview) error {
	a := in.Spec.ResourceAttributes
	var errs field.ErrorList
	if (a == nil) == (in.Spec.NonResourceAttributes == nil) {
		errs = append(errs, field.Invalid(field.NewPath("spec"), in.Spec, "wants one of resourceAttributes, nonResourceAttributes"))
	}
	if !equality.Semantic.DeepEqual(in.ObjectMeta, metav1.ObjectMeta{}) {
		errs = append(errs, field.Invalid(field.NewPath("metadata"), in.ObjectMeta, "must be empty"))
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(authorizationv1.SchemeGroupVersion.WithKind("SelfSubjectAccessReview").GroupKind(), "", errs)
	}
	if a != nil && (a.FieldSelector != nil || a.LabelSelector != nil) {
		return apierrors.NewBadRequest("access reviews with selectors are not modelled")
	}
	return nil
}

// decode returns the object in the body, which must be of that type, for an answer that is going to be JSON.
func decode[T any](x *exchange) (T, error) {
	var none T
	if _, err := negotiate(x.r.Header.Values("Accept"), ""); err != nil {
		return none, err
	}
	decoded, err := x.decodeBody()
	if err != nil {
		return none, err
	}
	in, ok := decoded.(T)
	if !ok {
		return none, apierrors.NewBadRequest(fmt.Sprintf("want a %T, got a %T", none, decoded))
	}
	return in, nil
}
