package kubetest

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// conflictRetries is how often a patch is applied anew because somebody was faster, as by the API server.
const conflictRetries = 5

// patchNode changes a Node by a JSON patch or a merge patch. Of what the API server validates, it is held to keeping name and
// UID; the status is left as it is.
func (x *exchange) patchNode() error {
	if _, err := negotiate(x.r.Header.Values("Accept"), ""); err != nil {
		return err
	}
	form, _, _ := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	nodes := schema.GroupResource{Resource: "nodes"}
	if form != string(types.JSONPatchType) && form != string(types.MergePatchType) {
		return apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, x.target.verb, nodes, x.target.name,
			"only JSON patches and merge patches are modelled", 0, false)
	}
	patch, err := x.readBody()
	if err != nil {
		return err
	}
	for range conflictRetries {
		o, ok := x.api.store.get("nodes", "", x.target.name)
		if !ok {
			return apierrors.NewNotFound(nodes, x.target.name)
		}
		before := o.(*corev1.Node)
		after, err := patchedNode(before, types.PatchType(form), patch)
		if err != nil {
			return err
		}
		err = x.admit(proposal{
			operation: admissionv1.Update, kind: before.GroupVersionKind(), object: after, oldObject: before,
		})
		if err != nil {
			return err
		}
		if x.dryRun || x.api.store.replace("nodes", before, after) {
			return x.answer(http.StatusOK, after)
		}
	}
	return apierrors.NewConflict(nodes, x.target.name, fmt.Errorf("it changed %d times meanwhile", conflictRetries))
}

// patchedNode returns what the patch makes of before, which stays as it is.
func patchedNode(before *corev1.Node, form types.PatchType, patch []byte) (*corev1.Node, error) {
	text, err := json.Marshal(before)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if form == types.MergePatchType {
		if text, err = jsonpatch.MergePatch(text, patch); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
	} else {
		operations, err := jsonpatch.DecodePatch(patch)
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		if text, err = operations.Apply(text); err != nil { // a test that fails, too
			return nil, apierrors.NewGenericServerResponse(
				http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
		}
	}
	var after corev1.Node
	if err := json.Unmarshal(text, &after); err != nil {
		return nil, apierrors.NewInvalid(schema.GroupKind{}, "", field.ErrorList{
			field.Invalid(field.NewPath("patch"), string(text), err.Error()),
		})
	}
	if v := after.ResourceVersion; v != "" && v != before.ResourceVersion {
		return nil, apierrors.NewConflict(schema.GroupResource{Resource: "nodes"}, before.Name,
			fmt.Errorf("it is not at version %s any more", v))
	}
	if after.Name != before.Name || after.Namespace != before.Namespace || after.UID != before.UID {
		return nil, apierrors.NewInvalid(before.GroupVersionKind().GroupKind(), before.Name, field.ErrorList{
			field.Invalid(field.NewPath("metadata"), after.Name, "name and uid cannot be changed"),
		})
	}
	after.TypeMeta, after.CreationTimestamp = before.TypeMeta, before.CreationTimestamp
	after.ResourceVersion = before.ResourceVersion
	after.Status = *before.Status.DeepCopy()
	return &after, nil
}
