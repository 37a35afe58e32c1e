package kubetest

import (
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// nodeMay is the node authorizer (https://kubernetes.io/docs/reference/access-authn-authz/node/), as far as somebody needs
// it who acts as a node: a node lists and watches its own pods, gets its own Node, and requests tokens for the
// ServiceAccounts of its own pods.
func (a *API) nodeMay(node string, t target) bool {
	if t.group != "" {
		return false
	}
	switch t.verb + " " + t.fullResource() {
	case "list pods", "watch pods":
		if t.fields == nil {
			return false
		}
		of, ok := t.fields.RequiresExactMatch("spec.nodeName")
		return ok && of == node
	case "get nodes":
		return t.name == node
	case "create serviceaccounts/token":
		return a.store.has("pods", func(o object) bool {
			p := o.(*corev1.Pod)
			return p.Namespace == t.namespace && p.Spec.ServiceAccountName == t.name && p.Spec.NodeName == node
		})
	}
	return false
}

// restrictNode is the admission plugin NodeRestriction, of a TokenRequest by a node. It comes before everything but
// authorization, so that an audience left out is still one left out.
func (x *exchange) restrictNode(node string, in *authenticationv1.TokenRequest) error {
	ref := in.Spec.BoundObjectRef
	switch {
	case ref == nil || ref.APIVersion != "v1" || ref.Kind != "Pod" || ref.Name == "":
		return x.notAdmitted("node requested token not bound to a pod")
	case ref.UID == "":
		return x.notAdmitted("node requested token with a pod binding without a uid")
	}
	o, ok := x.api.store.get("pods", x.target.namespace, ref.Name)
	if !ok {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, ref.Name)
	}
	pod := o.(*corev1.Pod)
	switch {
	case pod.UID != ref.UID:
		return x.notAdmitted(fmt.Sprintf("the UID in the bound object reference (%s) does not match that in record", ref.UID))
	case pod.Spec.NodeName != node:
		return x.notAdmitted("node requested token bound to a pod scheduled on a different node")
	case len(in.Spec.Audiences) > 1:
		return x.notAdmitted("node may only request 0 or 1 audiences")
	}
	audience := ""
	if len(in.Spec.Audiences) == 1 {
		audience = in.Spec.Audiences[0]
	}
	granted := target{
		verb: "request-serviceaccounts-token-audience", version: "v1", namespace: x.target.namespace,
		resource: audience, name: x.target.name,
	}
	if x.projects(pod, audience) || x.api.cfg.RBAC.allows(x.user, granted) {
		return nil
	}
	return x.notAdmitted(fmt.Sprintf(
		"audience %q not found in pod spec volume, %s is not authorized to request tokens for this audience", audience, x.user.Username))
}

// projects reports whether a volume of the pod is a token of that audience; an empty one is the API server's. Every pod
// has one for the API server that was not told otherwise: the API server's admission adds it, which no object here passed.
func (x *exchange) projects(pod *corev1.Pod, audience string) bool {
	for _, v := range pod.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience == audience {
				return true
			}
		}
	}
	if automount := pod.Spec.AutomountServiceAccountToken; automount != nil {
		return audience == "" && *automount
	}
	o, ok := x.api.store.get("serviceaccounts", pod.Namespace, pod.Spec.ServiceAccountName)
	if !ok {
		return audience == ""
	}
	automount := o.(*corev1.ServiceAccount).AutomountServiceAccountToken
	return audience == "" && (automount == nil || *automount)
}
